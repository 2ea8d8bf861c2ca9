"""The command line, end to end on a tiny model: what a user sees."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from pipelines.config import RunConfig
from sae.base.config import load_config
from sae.lm.model import LanguageModel
from sae.metrics.evaluate import FULL, QUICK
from sae.store import ActivationStore
from tests.pipelines.command import sae

INDEXED = ["index topk", "scorecard topk", "export topk"]


def test_a_run_makes_everything(finished: Path) -> None:
    for made in (
        "run.yaml",
        "manifest.json",
        "activations.zarr/zarr.json",
        "coders/topk/cfg.json",
        "coders/topk/sae_weights.safetensors",
        "coders/topk/training.jsonl",
        "evaluation/topk.json",
        "evaluation/topk.html",
        "evaluation/report.html",
        "evaluation/compare/comparison.html",
        "features/topk/index.json",
        "features/topk/scorecard.parquet",
        "export/topk.h5",
    ):
        assert (finished / made).exists(), made
    metrics = json.loads((finished / "evaluation/topk.json").read_text())["metrics"]
    assert metrics["l0"]["value"] == pytest.approx(4, abs=0.05)
    assert metrics["ev"]["low"] <= metrics["ev"]["value"] <= metrics["ev"]["high"]


def test_a_second_run_does_nothing(finished: Path) -> None:
    before = (finished / "manifest.json").read_bytes()
    output = sae("run", str(finished))
    assert "up to date" in output
    assert (finished / "manifest.json").read_bytes() == before


def test_a_copied_run_is_a_run_of_its_own(finished: Path, tmp_path: Path) -> None:
    """Its run.yaml names the folder that it was made in; that one stays as it is."""
    copied = shutil.copytree(finished, tmp_path / "copied")
    assert f"{copied} is up to date" in sae("run", str(copied))
    before = (finished / "manifest.json").read_bytes()
    sae("export", str(copied), "--features", "1-5")  # a stage's own setting, without its name
    assert (finished / "manifest.json").read_bytes() == before
    assert (copied / "manifest.json").read_bytes() != before
    assert yaml.safe_load((copied / "run.yaml").read_text())["export"]["features"] == "1-5"


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        (["--export.features", "1-5"], ["export topk"]),
        (["evaluate.seed=3"], ["evaluate topk", "compare"]),
        (
            ["train.batch=128"],
            ["train topk", "evaluate topk", "compare", *INDEXED],
        ),
        (["--from", "index"], INDEXED),
        (["scorecard.tokens=100"], ["scorecard topk"]),
        (["--only", "evaluate", "evaluate.seed=3"], ["evaluate topk", "compare"]),
        (["train.checkpoint_seconds=5"], []),
    ],
)
def test_only_what_changed_is_done_again(
    finished: Path, settings: list[str], stages: list[str]
) -> None:
    output = sae("run", str(finished), "--dry-run", *settings)
    assert [
        line.removeprefix("would do ") for line in output.splitlines() if "would" in line
    ] == stages


def test_a_new_coder_leaves_the_others_alone(finished: Path) -> None:
    both = (
        "train.coders=[{name: topk, k: 4, expansion: 4}, {name: b, architecture: batchtopk, k: 3}]"
    )
    lines = sae("run", str(finished), "--dry-run", both).splitlines()
    done = ("train b", "evaluate b", "compare", "index b", "scorecard b", "export b")
    assert lines == [f"would do {what}" for what in done]


def test_verify_finds_what_is_broken(finished: Path, tmp_path: Path) -> None:
    assert "sound" in sae("verify", str(finished))
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    weights = copy / "coders/topk/sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert str(weights) in sae("verify", str(copy), code=1)
    assert "is damaged" in sae("evaluate", str(copy), f"folder={copy}", "evaluate.seed=1", code=2)


def test_info_knows_each_kind(finished: Path) -> None:
    assert "harvest" in sae("info", str(finished))
    assert "sequences x 32 positions" in sae("info", str(finished / "activations.zarr"))
    assert "blocks.0.hook_resid_post" in sae("info", str(finished / "coders/topk"))
    assert "128" in sae("info", str(finished / "features/topk"))
    assert "architecture" in sae("info", str(finished / "export/topk.h5"))


def test_export_agrees_with_the_index(finished: Path) -> None:
    from sae.features import FeatureIndex

    index = FeatureIndex.open(finished / "features/topk")
    with h5py.File(finished / "export/topk.h5") as file:
        ids = file["features/id"][...]  # pyright: ignore
        labels = [label.decode() for label in file["features/label"][...]]  # pyright: ignore
        np.testing.assert_array_equal(ids, index.table["id"])
        assert labels == [str(label) for label in index.labels()]


def test_help_lists_the_settings() -> None:
    output = sae("train", "--help")
    assert "train.dead_after" in output
    assert "train.coders.0.architecture" in output


def test_a_store_of_another_model_is_refused(copy: Path, tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    config = load_config(RunConfig, copy / "run.yaml")
    other = tmp_path / "other"
    shutil.copytree(config.model.name, other)
    model = GPT2LMHeadModel.from_pretrained(other)
    model.transformer.wte.weight.data += 1
    model.save_pretrained(other)
    output = sae("evaluate", str(copy), f"model.name={other}", code=2)
    assert "another model" in output


@pytest.mark.parametrize("retrained", [True, False])
def test_a_failed_self_test_leaves_no_report(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retrained: bool
) -> None:
    """The layer next to the right one is spliced: no numbers, one sentence, exit code 1.

    Neither new ones nor old ones: a report says that all self-tests passed.
    """
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    if retrained:
        sae("train", str(copy), "train.seed=7")
    monkeypatch.setattr("sae.lm.model.LanguageModel.capture", _wrong_layer(LanguageModel.capture))
    output = sae("evaluate", str(copy), "evaluate.seed=5", code=1)
    assert output.splitlines()[-1].startswith("sae: ")
    left = [path.name for path in (copy / "evaluation").rglob("*") if path.is_file()]
    assert left == ["SHA256SUMS"]
    assert "sound" in sae("verify", str(copy))
    monkeypatch.undo()
    sae("run", str(copy))
    assert (copy / "evaluation" / "report.html").exists()
    assert "sound" in sae("verify", str(copy))


def test_refused_settings_leave_the_evaluation_that_is_there(copy: Path) -> None:
    before = {p: p.read_bytes() for p in (copy / "evaluation").rglob("*.*") if p.is_file()}
    sae("evaluate", str(copy), "evaluate.controls=[pac]", code=2)
    assert {p: p.read_bytes() for p in before} == before


def test_quick_and_whole_evaluations_take_each_others_place(copy: Path) -> None:
    """The run was evaluated quickly, on token counts of its own."""

    def budget() -> tuple[bool, int, int]:
        said = json.loads((copy / "evaluation" / "topk.json").read_text())["provenance"]
        return said["quick"], said["budget"]["tokens"], said["budget"]["loss_tokens"]

    assert budget() == (True, 1500, 1500)
    whole = f"sae evaluate {copy} --full"
    assert (
        " --full</code>" in (copy / "evaluation" / "topk.html").read_text()
    )  # of where it was made
    for again in ([], ["--quick"]):
        output = sae("evaluate", str(copy), *again)
        assert "up to date" in output
        assert whole in output
    sae("evaluate", str(copy), "--full", "evaluate.controls=[pca]")
    assert budget() == (False, FULL.tokens, FULL.loss_tokens)
    assert "The whole: " not in (copy / "evaluation" / "topk.html").read_text()
    assert "--full" not in sae("evaluate", str(copy))
    sae("evaluate", str(copy), "--quick", "evaluate.tokens=700")
    assert budget() == (True, 700, QUICK.loss_tokens)


def test_the_report_is_made_anew_with_an_evaluation_that_was_lost(copy: Path) -> None:
    """Nothing that decides it has changed, but it goes when the coder is evaluated."""
    (copy / "evaluation" / "topk.json").unlink()
    sae("evaluate", str(copy))
    assert (copy / "evaluation" / "report.html").exists()
    assert "sound" in sae("verify", str(copy))


def test_an_evaluation_of_other_weights_is_not_compared(copy: Path) -> None:
    sae("train", str(copy), "train.seed=7")
    output = sae("run", str(copy), "--only", "compare", "--from", "compare", code=2)
    assert "is the evaluation of other weights" in output
    assert f"sae evaluate {copy}" in output


def _wrong_layer(capture):
    def wrong(lm, tokens, sites):
        next_to = {site: site.replace("blocks.0", "blocks.1") for site in sites}
        found = capture(lm, tokens, list(dict.fromkeys(next_to.values())))
        return {site: found[other] for site, other in next_to.items()}

    return wrong


def test_an_incomplete_run_says_what_to_run(finished: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((finished / "run.yaml").read_text())
    settings["folder"] = str(tmp_path / "new")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    assert "sae harvest" in sae("train", str(tmp_path / "c.yaml"), code=2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["harvest", "train", "evaluate", "index", "scorecard", "export"])
def test_killed_in_a_stage_it_continues_to_the_same_result(
    finished: Path, tmp_path: Path, stage: str
) -> None:
    """`kill -9` as soon as the stage is at work; the next run ends as the undisturbed one did."""
    settings = yaml.safe_load((finished / "run.yaml").read_text())
    settings["folder"] = str(tmp_path / "run")
    settings["train"]["checkpoint_seconds"] = 0.01
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "pipelines.cli", "run", str(tmp_path / "c.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(stage):
                time.sleep(0.7)
                process.send_signal(signal.SIGKILL)
                break
    sae("run", str(tmp_path / "c.yaml"))
    site = "blocks.0.hook_resid_post"
    stores = [ActivationStore.open(f / "activations.zarr") for f in (finished, tmp_path / "run")]
    rows = [store.read(site, 0, store.spec.rows) for store in stores]
    np.testing.assert_array_equal(*rows)
    for name in ("coders/topk/sae_weights.safetensors", "features/topk/acts.npy"):
        assert (finished / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    metrics = [
        json.loads((f / "evaluation/topk.json").read_text())["metrics"]
        for f in (finished, tmp_path / "run")
    ]
    assert metrics[0] == metrics[1]
