"""The command line, end to end on a tiny model: what a user sees."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from pipelines.cli import main
from pipelines.config import RunConfig
from sae.base.config import load_config
from sae.lm.model import LanguageModel
from sae.store import ActivationStore
from tests.conftest import tiny_settings


def sae(*arguments: str, code: int = 0) -> str:
    """Runs `sae` in this process, expects an exit code, returns stdout and stderr together."""
    output, found = io.StringIO(), 0
    with redirect_stdout(output), redirect_stderr(output):
        try:
            main(list(arguments))
        except SystemExit as exit:
            found = int(exit.code or 0)
    assert found == code, output.getvalue()
    return output.getvalue()


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_corpus: Path
) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    output = sae("run", *tiny_settings(folder, tiny_folder, tiny_corpus))
    assert "topk" in output
    assert "sae browse" in output
    return folder


def test_a_run_makes_everything(finished: Path) -> None:
    for made in (
        "run.yaml",
        "manifest.json",
        "activations.zarr/zarr.json",
        "coders/topk/cfg.json",
        "coders/topk/sae_weights.safetensors",
        "coders/topk/training.jsonl",
        "evaluation/topk.json",
        "evaluation/report.html",
        "evaluation/compare/comparison.html",
        "features/topk/index.json",
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


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        (["--export.features", "1-5"], ["export topk"]),
        (["evaluate.seed=3"], ["evaluate topk", "compare"]),
        (
            ["train.batch=128"],
            ["train topk", "evaluate topk", "compare", "index topk", "export topk"],
        ),
        (["--from", "index"], ["index topk", "export topk"]),
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
    done = ("train b", "evaluate b", "compare", "index b", "export b")
    assert lines == [f"would do {what}" for what in done]


def test_verify_finds_what_is_broken(finished: Path, tmp_path: Path) -> None:
    assert "sound" in sae("verify", str(finished))
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    shards = [p for p in (copy / "activations.zarr/activations").rglob("c/*/*") if p.is_file()]
    raw = bytearray(shards[0].read_bytes())
    raw[100] ^= 1
    shards[0].write_bytes(raw)
    weights = copy / "coders/topk/sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    output = sae("verify", str(copy), code=1)
    assert "damaged" in output
    assert "cannot be read" in output


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.bach=3"], "Unknown configuration key `train.bach`. Did you mean `batch`"),
        (["--train.coders.0.archtecture", "topk"], "Did you mean `architecture`"),
        (["model.name=./nowhere"], "model folder ./nowhere does not exist"),
        (["harvest.sites=[blocks.9.hook_resid_post]"], "`blocks.0` to `blocks.1`"),
        (["harvest.sites=[blocks.0.resid]"], "Did you mean `hook_resid_p"),
        (["corpus.source=/nowhere/at/all"], "was not found"),
        (["corpus.context=64"], "longer than the context"),
        (["train.coders=[{name: a, k: 999}]"], "between 1 and the dictionary's width"),
        (["train.coders=[{name: a, architecture: topkk}]"], "Did you mean `topk`"),
        (["train.coders=[{name: a, width: 2000000000}]"], "needs about .* of memory"),
        (["corpus.train_tokens=1e15", "corpus.source=hf:x"], "datasets|could not be opened"),
        (["train.batch=0"], "greater than or equal to 1"),
        (["train.batch"], "No such|is no setting|does not exist"),
        (["--only", "trian"], "Did you mean `train`"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    tiny_config: list[str], settings: list[str], message: str
) -> None:
    import re

    output = sae("run", *tiny_config, *settings, code=2)
    assert re.search(message, output), output
    assert len([line for line in output.splitlines() if line.startswith("sae:")]) == 1


def test_a_store_of_another_model_is_refused(finished: Path, tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    config = load_config(RunConfig, finished / "run.yaml")
    other = tmp_path / "other"
    shutil.copytree(config.model.name, other)
    model = GPT2LMHeadModel.from_pretrained(other)
    model.transformer.wte.weight.data += 1
    model.save_pretrained(other)
    output = sae("evaluate", str(finished), f"model.name={other}", code=2)
    assert "another model" in output


def test_a_failed_self_test_publishes_no_report(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer next to the right one is spliced: no numbers, one sentence, exit code 1."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "evaluation" / "topk.json").unlink()
    monkeypatch.setattr("sae.lm.model.LanguageModel.capture", _wrong_layer(LanguageModel.capture))
    output = sae("evaluate", str(copy), f"folder={copy}", code=1)
    assert output.splitlines()[-1].startswith("sae: ")
    assert not (copy / "evaluation" / "topk.json").exists()


def _wrong_layer(capture):
    def wrong(lm, tokens, sites):
        found = capture(lm, tokens, [site.replace("blocks.0", "blocks.1") for site in sites])
        return dict(zip(sites, found.values(), strict=True))

    return wrong


def test_an_incomplete_run_says_what_to_run(finished: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((finished / "run.yaml").read_text())
    settings["folder"] = str(tmp_path / "new")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    assert "sae harvest" in sae("train", str(tmp_path / "c.yaml"), code=2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["harvest", "train", "evaluate", "index", "export"])
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
