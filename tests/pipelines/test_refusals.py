"""What a refused setting or an interrupt leaves: all that was on record, and a sound run."""

from pathlib import Path

import pytest

from pipelines.manifest import Manifest
from sae.features.layout import SCORECARD
from tests.pipelines.command import sae


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("scorecard", ["scorecard.tokens=300", "model.device=cuda:99"]),
        ("export", ["export.features=9-2"]),
    ],
)
def test_a_refused_setting_changes_nothing(copy: Path, stage: str, settings: list[str]) -> None:
    before = (copy / "features/topk" / SCORECARD).read_bytes()
    sae(stage, str(copy), *settings, code=2)
    assert (copy / "features/topk" / SCORECARD).read_bytes() == before
    assert f"{stage}/topk" in Manifest.open(copy).items
    assert "up to date" in sae(stage, str(copy))


def test_a_failed_check_takes_the_scorecard_away(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import scorecard
    from sae.base.errors import CheckFailure

    def fail(*_: object, **__: object) -> None:
        raise CheckFailure("it cannot be continued")

    monkeypatch.setattr(scorecard, "build_scorecard", fail)
    sae("scorecard", str(copy), "scorecard.tokens=300", code=1)
    assert not (copy / "features/topk" / SCORECARD).exists()
    assert "scorecard/topk" not in Manifest.open(copy).items


def test_an_interrupted_evaluation_of_new_weights_leaves_a_sound_run(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import evaluate

    def stop(*_: object) -> None:
        raise OSError("stopped")

    sae("train", str(copy), "train.seed=9")
    monkeypatch.setattr(evaluate, "_evaluated", stop)
    with pytest.raises(OSError, match="stopped"):
        sae("evaluate", str(copy), "train.seed=9")
    assert "missing" not in sae("verify", str(copy))
