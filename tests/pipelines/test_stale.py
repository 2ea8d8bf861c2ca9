"""What counts as up to date: what was made of the things that are there, and is as it was made."""

import shutil
from pathlib import Path

import pytest

from pipelines.arguments import config_of
from pipelines.fingerprints import Fingerprints
from pipelines.manifest import Manifest
from pipelines.stages import STAGES
from tests.damage import Damage
from tests.pipelines.command import sae

SEEDS = "train.coders=[{name: a, k: 4, seed: 0}, {name: b, k: 4, seed: 1}, {name: c, k: 5}]"
MADE = {
    "train": "coders/topk/sae_weights.safetensors",
    "evaluate": "evaluation/topk.json",
    "index": "features/topk/rows.npy",
    "scorecard": "features/topk/scorecard.parquet",
    "export": "export/topk.h5",
}


@pytest.mark.parametrize("stage", MADE)
@pytest.mark.parametrize("how", ["flip", "gone"])
def test_a_stage_that_is_named_makes_again_what_is_damaged(
    copy: Path, stage: str, how: str
) -> None:
    file = copy / MADE[stage]
    with Damage(file, how, 0.5):
        assert f"would do {stage} topk" in sae("run", str(copy), "--only", stage, "--dry-run")
        said = sae(stage, str(copy)).replace("\n", "")
        if how == "flip" or stage in ("train", "index"):  # else the manifest names it
            assert file.name in said
            assert "it is made again" in said
        made = file.read_bytes()
    file.write_bytes(made)
    if stage == "index":
        sae("scorecard", str(copy))
    if stage == "evaluate":
        assert (copy / "evaluation/report.html").exists()
    assert "sound" in sae("verify", str(copy))
    assert "up to date" in sae(stage, str(copy))


def test_a_comparison_that_is_damaged_is_made_again(copy: Path) -> None:
    file = copy / "evaluation/compare/core.csv"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    said = sae("evaluate", str(copy))
    assert "core.csv" in said
    assert "done in" in said
    assert file.read_bytes() == whole


def test_a_store_that_lacks_a_file_is_not_up_to_date(copy: Path) -> None:
    """It may be a hundred gigabytes: only its owner may say that all of it goes."""
    shard = next((copy / "activations.zarr/activations").rglob("c/0/0"))
    with Damage(shard, "gone", 0):
        said = sae("harvest", str(copy), code=2)
    assert "lacks" in said
    assert "up to date" in sae("harvest", str(copy))


def test_text_that_was_only_touched_costs_a_look(copy: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    shutil.copytree(config_of(copy, []).corpus.source, texts)
    here = f"corpus.source={texts}"
    for stage in ("harvest", "train", "index"):
        sae(stage, str(copy), here)
    weights = copy / "coders/topk/sae_weights.safetensors"
    made = weights.stat().st_mtime_ns
    next(texts.iterdir()).touch()
    planned = sae("run", str(copy), "--dry-run")
    assert "would do train topk" in planned  # nobody has looked yet
    assert "if the store then holds other things" in planned
    sae("harvest", str(copy))
    for stage in ("train", "index"):
        assert "up to date" in sae(stage, str(copy))
    assert weights.stat().st_mtime_ns == made
    for file in texts.iterdir():  # of one alone, it may be beyond the budget of tokens
        file.write_text(file.read_text().swapcase())
    sae("harvest", str(copy))
    assert "would do train topk" in sae("run", str(copy), "--only", "train", "--dry-run")


def test_touched_text_trains_nothing_in_the_same_run(copy: Path, tmp_path: Path) -> None:
    """The plan is made before the harvest has looked; the stages behind it look again."""
    texts = tmp_path / "texts"
    shutil.copytree(config_of(copy, []).corpus.source, texts)
    sae("run", str(copy), f"corpus.source={texts}")
    next(texts.iterdir()).touch()
    said = sae("run", str(copy))
    assert said.count("done in") == 1
    assert "up to date" in sae("run", str(copy), "--dry-run")


def recorded(config_folder: Path) -> tuple[Fingerprints, dict]:
    config = config_of(config_folder, [SEEDS])
    manifest = Manifest.open(config_folder)
    for stage in STAGES.values():
        for coder in stage.coders(config):
            manifest.items.setdefault(stage.item(coder), {"fingerprint": stage.item(coder)})
    return Fingerprints(config, manifest), manifest.items


def test_a_scorecard_is_made_of_the_other_seeds_that_it_read(finished: Path) -> None:
    """By their record: their settings may say what is still to be trained."""
    fingerprints, items = recorded(finished)
    before = {coder: fingerprints.made(STAGES["scorecard"], coder) for coder in "abc"}
    items["train/b"] = {"fingerprint": "trained anew"}
    changed = [c for c in "abc" if fingerprints.made(STAGES["scorecard"], c) != before[c]]
    assert changed == ["a", "b"]


def test_a_comparison_is_made_of_store_coders_and_evaluations(finished: Path) -> None:
    fingerprints, items = recorded(finished)
    before = fingerprints.made(STAGES["compare"], None)
    for item in ("harvest", "train/c", "evaluate/a"):
        old = items[item]
        items[item] = {"fingerprint": "made anew"}
        assert fingerprints.made(STAGES["compare"], None) != before, item
        items[item] = old
    items["harvest"] = {**items["harvest"], "fingerprint": "touched"}
    assert fingerprints.made(STAGES["compare"], None) == before  # it is the same store
