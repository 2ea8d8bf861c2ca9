"""Stages at work at the same time, in processes of their own: each works, or says why not."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from app.run_folder import open_run
from pipelines.config import RunConfig
from sae.base.config import load_config
from sae.base.errors import UserError
from sae.features import FeatureIndex, layout
from sae.store import ActivationStore, StoreWriter
from tests.pipelines.command import sae
from tests.store.fixtures import make_parts, write_shards


def test_training_on_a_store_that_is_being_harvested_is_refused(tmp_path: Path, copy: Path) -> None:
    """The manifest still has the last harvest: the store itself must say that it is not whole."""
    shutil.rmtree(copy / "activations.zarr")
    spec, tokens, documents, data = make_parts(sequences=9000, train=8500)
    with StoreWriter(copy / "activations.zarr", spec, tokens, documents) as writer:
        write_shards(writer, data, [0])
        with pytest.raises(UserError, match="is incomplete; `sae harvest` goes on with it"):
            ActivationStore.open(copy / "activations.zarr")
        for stage, setting in (("index", "index.tokens=5000"), ("train", "train.seed=9")):
            said = sae(stage, str(copy), setting, code=2)
            assert "is incomplete; `sae harvest` goes on with it" in said


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["harvest", "train", "index"])
def test_the_second_of_two_processes_is_refused_and_told_of_the_first(
    finished: Path, tmp_path: Path, stage: str
) -> None:
    """The first is stopped in the middle of the stage, and then ends as if nothing had been."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    settings = yaml.safe_load((finished / "run.yaml").read_text())
    settings["folder"] = str(run)
    settings["corpus"]["seed"] = settings["train"]["seed"] = 5  # so that all is to be done anew
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "pipelines.cli", "run", str(tmp_path / "c.yaml")]
    lock = run / ".locks" / (stage if stage != "index" else "index-topk")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        while not (lock.exists() and lock.read_text()) and first.poll() is None:
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        said = sae("run", str(tmp_path / "c.yaml"), "--only", stage, code=2)
        first.send_signal(signal.SIGCONT)
        first.communicate()
    assert f"is in use by process {first.pid} on" in said
    assert first.returncode == 0
    assert "sound" in sae("verify", str(run))


def test_a_run_is_browsed_while_its_coders_are_trained_and_indexed(copy: Path) -> None:
    """What is in the works is not shown; an index that is built anew is read as it was opened."""
    (copy / "coders" / "new" / "checkpoint").mkdir(parents=True)
    (copy / "coders" / "new" / "training.jsonl").write_text('{"step": 20}\n')
    for folder in (layout.partial_folder(copy / "features" / "topk"), copy / "features/topk.old"):
        shutil.copytree(copy / "features" / "topk", folder)
    assert open_run(copy).coders == ["topk"]
    index = FeatureIndex.open(copy / "features" / "topk")
    before = index.firings(3)[0].tolist()
    sae("index", str(copy), "index.tokens=4000")
    assert index.firings(3)[0].tolist() == before
    assert FeatureIndex.open(copy / "features" / "topk").meta["tokens"] < index.meta["tokens"]


def test_a_browser_on_a_run_that_holds_nothing_yet_says_so(copy: Path) -> None:
    shutil.rmtree(copy / "coders")
    shutil.rmtree(copy / "features")
    with pytest.raises(UserError, match="holds no coder yet"):
        open_run(copy)
    assert load_config(RunConfig, copy / "run.yaml").folder == copy
