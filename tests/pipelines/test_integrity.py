"""Damage of every kind to every kind of file is found by `sae verify`, and refused by readers."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines import runner
from pipelines.config import RunConfig
from pipelines.manifest import Made, Manifest
from pipelines.verify import verify
from sae.base.config import load_config
from sae.base.errors import UserError
from sae.base.files import write_text
from sae.base.locks import Lock
from sae.base.sums import read_sums
from sae.features import FeatureIndex
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
    theirs.record({"other": Made("f", [], 0.0, {})})
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


def test_refused_settings_lose_nothing(copy: Path) -> None:
    """What a stage refuses, before it has changed anything, leaves the record of what is there."""
    for stage, wrong in (
        ("train", "train.coders.0.k=99999"),
        ("train", "train.batch=1000000"),
        ("evaluate", "evaluate.controls=[pac]"),
        ("harvest", "corpus.context=4096"),
    ):
        sae("run", str(copy), "--only", stage, "--from", stage, wrong, code=2)
        assert "up to date" in sae("run", str(copy), "--dry-run")
    assert "sound" in sae("verify", str(copy))


def test_what_was_made_of_other_weights_is_stale_once_they_are_there(copy: Path) -> None:
    """An index of the coder that there is, asked for with the settings of another one."""
    sae("index", str(copy), "train.seed=9", "index.tokens=3000")
    settings = ["train.seed=9", "index.tokens=3000"]
    assert "would do index" in sae("run", str(copy), "--dry-run", *settings)
    sae("train", str(copy), *settings)
    assert "would do index" in sae("run", str(copy), "--dry-run", *settings)


def test_what_another_process_has_done_meanwhile_is_not_done_again(copy: Path) -> None:
    config = load_config(RunConfig, copy / "run.yaml", ["train.seed=9"])
    todo = runner.plan(config, Manifest.open(copy), only="train")
    runner.run_stages(config, todo)
    made = (copy / "coders/topk/sae_weights.safetensors").stat().st_mtime_ns
    runner.run_stages(config, todo)  # the plan of a process that waited for the first one
    assert (copy / "coders/topk/sae_weights.safetensors").stat().st_mtime_ns == made


def test_coders_trained_together_are_recorded_together(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the seals of two coders leaves both to be recorded, from their checkpoint."""
    both = "train.coders=[{name: topk, k: 4, width: 64}, {name: other, k: 4, width: 64}]"
    sealed = iter([runner.seal])

    def killed_at_the_second(*given) -> None:
        next(sealed)(*given)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "seal", killed_at_the_second)
        with pytest.raises(BaseException, match=r"^$"):  # StopIteration
            sae("train", str(copy), both)
    assert not {"train/topk", "train/other"} & set(Manifest.open(copy).items)
    steps = iter(range(10))
    monkeypatch.setattr("sae.training.run.step_all", lambda *_: next(steps) and 1 / 0)
    sae("train", str(copy), both)  # not a step is done again
    assert {"train/topk", "train/other"} <= set(Manifest.open(copy).items)


@pytest.mark.parametrize("name", ["try #2", "2024", "a: b", "k=32", "null"])
def test_a_folder_may_have_any_name(copy: Path, name: str) -> None:
    other = copy.parent / name
    copy.rename(other)
    assert f"{other} is up to date." in sae("run", str(other), "--dry-run").replace("\n", "")


@pytest.mark.parametrize("name", ["[", "run[old]", "my run"])
def test_paths_are_shown_as_they_are(copy: Path, name: str) -> None:
    """No part of one is taken for markup; commands that are shown can be copied."""
    other = copy.parent / name
    if name == "[":
        other = other / "a]"  # as a path: `[/a]`
        other.parent.mkdir()
    copy.rename(other)
    said = sae("export", str(other), "--features", "1-5").replace("\n", "")
    assert f"-> {other}/export/topk.h5" in said
    (other / "manifest.json").unlink()
    said = sae("export", str(other), code=2)
    assert f"run `{shlex.join(['sae', 'index', str(other)])}` first" in said


def test_run_yaml_and_its_hash_are_written_together(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other process can write one of them in between."""
    held: list[str] = []

    def write(path: Path, text: str) -> Path:
        with pytest.raises(UserError, match="is in use"):
            Lock(copy / ".manifest.lock", "the manifest")
        held.append(path.name)
        return write_text(path, text)

    monkeypatch.setattr("pipelines.manifest.write_text", write)
    sae("export", str(copy), "--features", "1-5")
    assert held == ["run.yaml"]
    assert "sound" in sae("verify", str(copy))


def test_notes_are_a_part_of_what_is_exported(copy: Path) -> None:
    FeatureIndex.open(copy / "features/topk").notes.set_label(3, "a label")
    assert "would do export" in sae("run", str(copy), "--dry-run")
    sae("export", str(copy))
    assert "up to date" in sae("run", str(copy), "--dry-run")
    saved = copy / "filter.json"
    saved.write_text('{"filter": "0-9"}')
    sae("export", str(copy), f"export.features=@{saved}")
    assert "up to date" in sae("run", str(copy), "--dry-run")
    saved.write_text('{"filter": "0-19"}')
    assert "would do export" in sae("run", str(copy), "--dry-run")


def test_a_device_makes_nothing_stale(copy: Path) -> None:
    assert "up to date" in sae("run", str(copy), "--dry-run", "model.device=cuda:1")


def test_other_text_of_the_same_size_is_noticed(copy: Path) -> None:
    config = load_config(RunConfig, copy / "run.yaml")
    texts = copy.parent / "texts"
    shutil.copytree(config.corpus.source, texts)
    sae("harvest", str(copy), f"corpus.source={texts}")
    assert "would do" not in sae("run", str(copy), "--only", "harvest", "--dry-run")
    file = next(texts.iterdir())
    file.write_text(file.read_text().swapcase())
    assert "would do harvest" in sae("run", str(copy), "--only", "harvest", "--dry-run")


def test_a_damaged_control_is_found(copy: Path) -> None:
    """Fitted controls are kept between evaluations."""
    with Damage(next((copy / "controls").glob("*.safetensors")), "flip", 0.9) as damage:
        assert [problem for problem in verify(copy) if "controls" in problem], damage
        assert "sound" not in sae("verify", str(copy), code=1)


def test_a_control_is_sealed_though_its_folder_is_not(copy: Path) -> None:
    """Where only coders were fitted, nothing but these has sums."""
    shutil.rmtree(copy / "controls")
    control = Path(shutil.copytree(copy / "coders/topk", copy / "controls/random-0"))
    assert verify(copy) == []
    with Damage(control / "sae_weights.safetensors", "flip", 0.9):
        assert [problem for problem in verify(copy) if "random-0" in problem]
    (control / "SHA256SUMS").unlink()
    config = json.loads((control / "cfg.json").read_text())
    (control / "cfg.json").write_text(json.dumps({**config, "metadata": {}}))
    assert [problem for problem in verify(copy) if "random-0/SHA256SUMS is missing" in problem]


def test_what_lies_beside_the_coders_and_indexes_is_named(copy: Path) -> None:
    (copy / "coders/.checkpoint-3.json.host-1.partial").write_text("left by a kill")
    assert verify(copy) == []
    (copy / "coders/notes.txt").write_text("x")
    (copy / "features/nowhere").symlink_to(copy / "gone")
    assert verify(copy) == [f"{copy}/coders/notes.txt: extra", f"{copy}/features/nowhere: extra"]


def test_a_harvest_that_does_not_fit_loses_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = "harvest.sites=[blocks.0.hook_resid_post,blocks.1.hook_resid_post]"
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(copy)._replace(free=0)
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        said = sae("run", str(copy), "--from", "harvest", sites, code=2)
    assert "The activation store needs" in said
    assert "up to date" in sae("run", str(copy), "--dry-run")
    assert "sound" in sae("verify", str(copy))


def test_metadata_of_another_form_is_a_sentence(copy: Path) -> None:
    file = copy / "coders/topk/cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "metadata": 5}))
    assert verify(copy / "coders/topk")


@pytest.mark.parametrize(
    ("reader", "changed"),
    [("train", "harvest"), ("evaluate-topk", "harvest"), ("index-topk", "train")],
)
def test_what_another_stage_reads_is_not_changed(copy: Path, reader: str, changed: str) -> None:
    with Lock(copy / ".locks" / reader, "somebody"):
        output = sae("run", str(copy), "--only", changed, "--from", changed, code=2)
    assert f"`{reader.replace('-', '/')}` of {copy} is in use" in " ".join(output.split())
    assert "up to date" in sae("run", str(copy), "--dry-run")
    assert "sound" in sae("verify", str(copy))
