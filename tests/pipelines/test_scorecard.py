"""The stage scorecard: made once, made again, with other seeds, and undone in the middle."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import scorecard
from pipelines.alike import other_seeds
from pipelines.config import CoderConfig
from pipelines.manifest import Manifest
from sae.base.errors import UserError
from sae.features import FeatureIndex
from sae.features.layout import SCORECARD
from sae.features.scorecard import read_scorecard
from tests.pipelines.command import sae


def coder(name: str, **given: object) -> CoderConfig:
    return CoderConfig.model_validate({"name": name, "k": 8, **given})


def test_other_seeds_are_those_that_differ_in_nothing_else() -> None:
    coders = [
        coder("a"),
        coder("b", seed=1),
        coder("wide", seed=1, expansion=32),
        coder("c", seed=7),
        coder("twin"),
    ]
    assert [other.name for other in other_seeds(coders, "a")] == ["b", "c"]
    assert [other.name for other in other_seeds(coders, "b")] == ["a", "c", "twin"]
    assert other_seeds(coders, "wide") == []


def test_a_run_has_one_and_it_is_sound(copy: Path) -> None:
    found = read_scorecard(FeatureIndex.open(copy / "features/topk"))
    assert found is not None
    facts = Manifest.open(copy).items["scorecard/topk"]["facts"]
    assert facts["features"] == len(found)
    assert facts["ablated"] == (found["ablation_tokens"] > 0).sum() > 0
    assert "sound" in sae("verify", str(copy))
    assert "up to date" in sae("scorecard", str(copy))


def test_it_is_made_again_alone_and_the_same(copy: Path) -> None:
    path = copy / "features/topk" / SCORECARD
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    assert SCORECARD in sae("verify", str(copy), code=1)
    sae("run", str(copy), "--from", "scorecard")  # a damaged one does not stand in the way
    assert path.read_bytes() == before
    assert "sound" in sae("verify", str(copy))
    sae("scorecard", str(copy), "scorecard.tokens=200")
    assert path.read_bytes() != before
    assert "sound" in sae("verify", str(copy))


def test_the_command_that_it_names_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = SimpleNamespace(meta={"coder_hash": "of others"})
    monkeypatch.setattr(scorecard.FeatureIndex, "open", lambda *_, **__: index)
    monkeypatch.setattr(scorecard, "coder_hash", lambda folder: "own")
    config: Any = SimpleNamespace(folder=tmp_path / "my run", coder_folder=lambda name: tmp_path)
    with pytest.raises(UserError, match=r"`sae index '.*/my run'` first"):
        scorecard.run(config, "topk")


def test_a_new_index_has_none(copy: Path) -> None:
    sae("index", str(copy), "index.tokens=5000")
    assert not (copy / "features/topk" / SCORECARD).exists()
    assert "sound" in sae("verify", str(copy))
    assert "would do scorecard topk" in sae("run", str(copy), "--dry-run")


def test_what_is_undone_in_the_middle_is_done_again(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the file and its sum: the index still opens, and the same command ends it."""
    from pipelines import runner

    def stop(*_: object) -> None:
        raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "seal", stop)
        with pytest.raises(OSError, match="stopped"):
            sae("scorecard", str(copy), "scorecard.tokens=300")
    FeatureIndex.open(copy / "features/topk")
    sae("scorecard", str(copy), "scorecard.tokens=300")
    assert "sound" in sae("verify", str(copy))


def test_two_seeds_look_each_other_up(copy: Path) -> None:
    coders = (
        "train.coders=[{name: topk, k: 4, expansion: 4}, {name: b, k: 4, expansion: 4, seed: 1}]"
    )
    for stage in ("train", "index", "scorecard"):
        sae(stage, str(copy), coders)
    for name in ("topk", "b"):
        found = read_scorecard(FeatureIndex.open(copy / "features" / name))
        assert found is not None
        assert (found["seed_coders"] == 1).all()
        assert found["seed_replicated"].isin([0, 1]).all()
        assert found["seed_decoder_cosine"].between(-1, 1.001).all()


def test_without_an_index_the_command_names_it(copy: Path) -> None:
    Manifest.open(copy).forget(["index/topk", "scorecard/topk"])
    assert f"run `sae index {copy}` first" in sae("scorecard", str(copy), code=2)
