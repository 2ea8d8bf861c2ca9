"""Damage of every kind to every kind of file is found by `sae verify`, and refused by readers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines.manifest import Manifest
from sae.base.sums import read_sums
from tests.damage import Damage, kinds_of_files
from tests.disk import full_disk
from tests.pipelines.command import sae

TABLE = ("store", "coder", "index", "evaluation", "export", "checkpoint", "run")


def test_each_kind_of_damage_to_each_kind_of_file_is_found(copy: Path) -> None:
    sae("run", str(copy))  # an item that another test made stale
    assert "sound" in sae("verify", str(copy))
    rng = np.random.default_rng(0)
    kinds = kinds_of_files(copy)
    assert set(TABLE) - {"checkpoint"} <= set(kinds)
    for kind, files in kinds.items():
        for _ in range(4):
            damage = Damage.draw(rng, files)
            with damage:
                assert damage.name in sae("verify", str(copy), code=1), (kind, damage)
    assert "sound" in sae("verify", str(copy))


def test_parts_are_verified_by_themselves(copy: Path) -> None:
    parts = ["activations.zarr", "coders/topk", "features/topk", "export", "export/topk.h5"]
    parts += ["evaluation", "evaluation/topk.html", "evaluation/compare/comparison.json"]
    for part in parts:
        assert "sound" in sae("verify", str(copy / part))
    with Damage(copy / "export/topk.h5", "flip", 0.5):
        assert "topk.h5" in sae("verify", str(copy / "export/topk.h5"), code=1)


def test_the_next_stage_refuses_what_is_damaged(copy: Path) -> None:
    sae("run", str(copy))
    for name, stage, setting in (
        ("features/topk/acts.npy", "export", "export.features=1-5"),
        ("evaluation/topk.json", "run", "--from=compare"),
        ("coders/topk/sae_weights.safetensors", "index", "index.tokens=5000"),
    ):
        with Damage(copy / name, "flip", 0.5):
            assert "is damaged" in sae(stage, str(copy), setting, code=2), name


def start(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.cli", "run", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_training_saves_and_says_so_and_the_same_command_ends_it(
    finished: Path, tmp_path: Path, number: int, code: int
) -> None:
    run = tmp_path / "run"
    (run / "coders").mkdir(parents=True)
    shutil.copytree(finished / "activations.zarr", run / "activations.zarr")
    settings = yaml.safe_load((finished / "run.yaml").read_text())
    settings["folder"] = str(run)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    with start(tmp_path / "c.yaml") as process:
        log = run / "coders" / "topk" / "training.jsonl"
        while not log.exists() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == code, said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    items = Manifest.open(run).items
    assert "harvest" in items  # found whole, not harvested again
    assert "train/topk" not in items
    assert "sound" in sae("verify", str(run))
    sae("run", str(tmp_path / "c.yaml"))
    weights = "sae_weights.safetensors"
    ours, theirs = (read_sums(f / "coders/topk") for f in (run, finished))
    assert ours[weights] == theirs[weights]
    assert not list(run.rglob("checkpoint*"))


def test_two_runs_in_one_folder_do_not_meet(copy: Path) -> None:
    code = (
        "import sys, time\nfrom sae.base.locks import Lock\n"
        "with Lock(sys.argv[1], 'x'):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    lock = copy / ".locks" / "train"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        said = sae("train", str(copy), "train.seed=9", code=2)
        process.kill()
    assert f"`train` of {copy} is in use by process {process.pid}" in said


def test_the_manifest_takes_up_what_others_recorded(copy: Path) -> None:
    mine, theirs = Manifest.open(copy), Manifest.open(copy)
    theirs.record("other", "f", [], 0.0, {})
    mine.forget(["train/topk"])
    assert "other" in Manifest.open(copy).items
    assert "train/topk" not in Manifest.open(copy).items


def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(
    tiny_config: list[str], tmp_path: Path
) -> None:
    with full_disk(40):
        said = sae("harvest", *tiny_config, code=1)
    assert "The disk is full" in said
    assert "Traceback" not in said
    sae("harvest", *tiny_config)
    assert "sound" in sae("verify", str(tmp_path / "run"))


def test_a_folder_that_cannot_be_written_is_a_sentence(tiny_config: list[str], tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    said = sae("run", *tiny_config, f"folder={tmp_path}/locked/run", code=2)
    assert "give a path that can be read and written" in said
