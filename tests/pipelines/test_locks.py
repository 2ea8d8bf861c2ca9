"""Whoever reads what is about to change is kept out, whichever configuration names it."""

from pathlib import Path

import pytest

from pipelines.arguments import config_of
from pipelines.locks import at_work, readers
from pipelines.stages import STAGES
from sae.base.errors import UserError
from tests.pipelines.command import sae

SEEDS = "train.coders=[{name: a, k: 4}, {name: b, k: 4, seed: 1}, {name: c, k: 5}]"


@pytest.mark.parametrize(
    ("reader", "changed"),
    [
        ("compare", "train"),
        ("compare", "harvest"),
        ("evaluate-foreign", "harvest"),
        ("scorecard-foreign-s1", "train"),  # of which the one that is trained may be another seed
        ("mechanisms-topk", "index"),
        ("mechanisms-foreign", "harvest"),
        ("explain-topk", "index"),
    ],
)
def test_what_somebody_reads_is_not_changed(copy: Path, reader: str, changed: str) -> None:
    with at_work(copy, reader):
        output = sae("run", str(copy), "--only", changed, "--from", changed, code=2)
    assert f"`{reader.replace('-', '/', 1)}` of {copy} is in use" in " ".join(output.split())
    assert "up to date" in sae("run", str(copy), "--dry-run")


def test_who_reads_something_else_is_left_alone(copy: Path) -> None:
    with at_work(copy, "evaluate-foreign"), at_work(copy, "explain-foreign"):
        sae("train", str(copy), "train.seed=9")


def test_each_stage_keeps_out_what_reads_it(finished: Path) -> None:
    config = config_of(finished, [SEEDS])

    def kept_out(stage: str, *coders: str | None) -> set[str]:
        return set(readers(config, STAGES[stage], coders))

    of_a = {"evaluate-a", "compare", "index-a", "scorecard-a", "scorecard-b", "mechanisms-a"}
    assert kept_out("train", "a") == of_a
    assert kept_out("index", "c") == {"scorecard-c", "export-c", "mechanisms-c", "explain-c"}
    assert kept_out("evaluate", "a") == set()
    per_coder = {f"{work}-{c}" for work in ("evaluate", "index", "mechanisms") for c in "abc"}
    assert kept_out("harvest", None) == {"train", "compare"} | per_coder


def test_a_name_is_one_lock_in_either_form(tmp_path: Path) -> None:
    with at_work(tmp_path, "index-a-b"), pytest.raises(UserError, match="is in use"):
        at_work(tmp_path, "index/a-b")


def test_no_folder_is_made_for_a_lock(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        at_work(tmp_path / "nowhere", "explain-topk")
    assert not (tmp_path / "nowhere").exists()
