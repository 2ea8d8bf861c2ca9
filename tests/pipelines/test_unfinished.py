"""What is begun and not finished is gone on with, or left alone with a sentence; never removed."""

import errno
import os
from pathlib import Path

import pytest

from pipelines.manifest import Manifest
from sae.store import ActivationStore, StoreWriter
from sae.training import run as loop
from sae.training.checkpoint import checkpoints
from tests.conftest import tiny_settings
from tests.pipelines.command import sae

OFTEN = "train.checkpoint_seconds=0.0001"
BOTH = "train.coders=[{name: topk, k: 4, expansion: 4}, {name: other, k: 3, expansion: 4}]"


def begin_training(run: Path, *settings: str) -> list[Path]:
    """A training that is killed in its sixth step; the files that make its checkpoints valid."""
    steps, real = iter(range(5)), loop.step_all

    def killed(*given):
        if next(steps, None) is None:
            raise ZeroDivisionError
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step_all", killed)
        with pytest.raises(ZeroDivisionError):
            sae("train", str(run), OFTEN, *settings)
    return checkpoints(run / "coders")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["train.batch=128"], "`train.batch` was 256 and is 128"),
        ([BOTH], "coder other was not a part of it"),
        (["train.coders.0.k=5"], "coder topk: `k` was 4 and is 5"),
    ],
)
def test_another_training_is_refused_before_it_changes_anything(
    copy: Path, settings: list[str], told: str
) -> None:
    before = {path: path.read_bytes() for path in begin_training(copy, "train.seed=9")}
    assert before
    said = sae("train", str(copy), "train.seed=9", *settings, code=2)
    assert told in said
    assert "end that one with its own settings" in said
    assert {path: path.read_bytes() for path in checkpoints(copy / "coders")} == before
    sae("train", str(copy), "train.seed=9")  # which goes on, and ends
    assert not checkpoints(copy / "coders")
    assert "sound" in sae("verify", str(copy))


def test_another_training_that_is_forced_begins_anew(copy: Path) -> None:
    assert begin_training(copy, "train.seed=9")
    sae("run", str(copy), "--only", "train", "--from", "train", "train.batch=128")
    assert "train/topk" in Manifest.open(copy).items
    assert "sound" in sae("verify", str(copy))


def test_checkpoints_of_a_training_that_ended_are_in_nobodys_way(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the record of its end and their removal."""
    with monkeypatch.context() as patch:
        patch.setattr("sae.training.checkpoint.remove_checkpoints", lambda _: None)
        sae("train", str(copy), "train.seed=9")
    assert checkpoints(copy / "coders")
    sae("train", str(copy), "train.seed=10")


def test_a_training_does_not_go_on_with_the_batches_of_another_site(
    tmp_path: Path, tiny_folder: Path, tiny_corpus: Path
) -> None:
    """A coder that names no site reads the first one that is harvested."""
    run = tmp_path / "run"
    a, b = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
    sae("harvest", *tiny_settings(run, tiny_folder, tiny_corpus), f"harvest.sites=[{a},{b}]")
    begin_training(run)
    said = sae("train", str(run), f"harvest.sites=[{b},{a}]", code=2)
    assert f"`site` was {a} and is {b}" in said


def test_the_same_harvest_goes_on_after_a_full_disk_though_it_is_forced(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ["run", str(copy), "--only", "harvest", "--from", "harvest"]

    def full(_: StoreWriter) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "_seal", full)
        assert "The disk is full" in sae(*again, code=1)

    def asked(*_: object) -> None:
        raise AssertionError("the model was run again")

    monkeypatch.setattr("sae.lm.model.LanguageModel.capture", asked)
    sae(*again)
    assert ActivationStore.open(copy / "activations.zarr")
    with pytest.raises(AssertionError, match="run again"):
        sae(*again)  # now it is whole


@pytest.mark.parametrize(
    ("stage", "sums", "setting"),
    [
        ("evaluate", "evaluation/SHA256SUMS", "evaluate.seed=4"),
        ("export", "export/SHA256SUMS", "export.features=1-5"),
    ],
)
def test_sums_that_cannot_be_added_to_are_noticed_before_the_work(
    copy: Path, stage: str, sums: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("it was measured, and could not be written")

    monkeypatch.setattr("pipelines.evaluate._evaluated", work)
    monkeypatch.setattr("pipelines.export.export_dictionary", work)
    (copy / sums).write_text("damaged")
    said = sae(stage, str(copy), setting, code=2)
    assert "remove the whole of" in said
    assert f"{stage}/topk" in Manifest.open(copy).items


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluate.controls=[pcaa]", "Unknown control `pcaa`"),
        ("train.wandb=project", "`wandb` was asked for but is not installed"),
    ],
)
def test_mistakes_that_can_be_known_are_told_before_the_harvest(
    tiny_config: list[str],
    tmp_path: Path,
    setting: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sae.training.log.find_spec", lambda _: None)
    assert message in sae("run", *tiny_config, setting, code=2)
    assert not (tmp_path / "run").exists()


def test_more_files_than_may_be_open_are_refused_before_anything_changes(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (40, 40))
    said = sae("train", str(copy), "train.seed=9", code=2)
    assert "`train` of 1 coders needs about" in said
    assert "train/topk" in Manifest.open(copy).items
