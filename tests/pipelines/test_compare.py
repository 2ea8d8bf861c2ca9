"""Which coders of a run are looked at for what they have in common; the settings of evaluation."""

from pathlib import Path

import pytest

from pipelines.compare import never_scored, pairs
from pipelines.config import CoderConfig, EvaluateConfig
from pipelines.progress import with_interval
from sae.base.errors import UserError
from sae.metrics.evaluate import FULL, QUICK
from tests.pipelines.command import sae


def coder(name: str, **given: object) -> CoderConfig:
    return CoderConfig.model_validate({"name": name, "k": 8, **given})


def test_pairs_differ_in_one_thing_alone() -> None:
    coders = [
        coder("s2", seed=2),
        coder("s0"),
        coder("s1", seed=1),
        coder("wide", expansion=32),
        coder("dense", k=16),
        coder("other", architecture="batchtopk"),
        coder("wide-s1", expansion=32, seed=1),
    ]
    assert pairs(coders) == [
        ("s0", "s1", "seed"),
        ("s0", "s2", "seed"),
        ("s1", "s2", "seed"),
        ("wide", "wide-s1", "seed"),
        ("s0", "wide", "width"),
        ("s1", "wide-s1", "width"),
    ]
    assert pairs(coders[:1]) == []


def test_latents_live_on_tokens_that_are_scored() -> None:
    """EOS and PAD as well as BOS, as the evaluations have it."""
    said = {"a": [0, 50256], "b": []}
    evaluations = {name: {"provenance": {"special": ids}} for name, ids in said.items()}
    assert never_scored(evaluations) == {0, 50256}
    with pytest.raises(UserError, match="run `sae evaluate` again"):
        never_scored({"old": {"provenance": {}}})


@pytest.mark.parametrize("missing", ["low", "high"])
def test_a_number_may_have_no_interval(missing: str) -> None:
    entry = {"value": 0.5, "low": 0.25, "high": 0.75}
    assert with_interval(entry) == "0.500 [0.250, 0.750]"
    assert with_interval({**entry, missing: None}) == "0.500"


def test_the_settings_say_the_budgets_that_there_are() -> None:
    for name in ("tokens", "loss_tokens"):
        said = str(EvaluateConfig.model_fields[name].description)
        assert f"default: {getattr(FULL, name):,}" in said
        assert f"quick {getattr(QUICK, name):,}" in said


def test_controls_are_kept_by_the_code_that_fits_them(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Path] = []
    for code in ("a", "b"):
        monkeypatch.setattr("pipelines.evaluate.code_hash", lambda *_, code=code: code)
        (copy / "evaluation" / "topk.json").unlink()
        sae("evaluate", str(copy), "evaluate.controls=[frozen_decoder]")
        kept = list((copy / "controls").glob("frozen_decoder-*"))
    assert len(kept) == 2
