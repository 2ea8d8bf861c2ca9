"""Checkpoints of a whole list of coders, switched over in one rename.

    coders/<name>/checkpoint/step-1000.pt     one per coder
    coders/checkpoint.json                    {"step": 1000, "coders": [...]}: the valid ones

A kill between the files leaves the last `checkpoint.json`, and the files it names, untouched.
"""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch

from sae.base.errors import UserError
from sae.base.files import atomic_write, read_json, write_json
from sae.training.trainer import CoderTrainer

MANIFEST = "checkpoint.json"


def save_checkpoint(folder: Path, trainers: Sequence[CoderTrainer], fingerprint: str) -> None:
    """Saves every trainer at its present step, then forgets the checkpoint before."""
    step = trainers[0].done
    for trainer in trainers:
        state = trainer.state_dict()
        atomic_write(_path(folder, trainer.name, step), lambda f, s=state: torch.save(s, f))
    names = [trainer.name for trainer in trainers]
    write_json(folder / MANIFEST, {"step": step, "coders": names, "fingerprint": fingerprint})
    for trainer in trainers:
        for old in _path(folder, trainer.name, step).parent.glob("step-*.pt"):
            if old != _path(folder, trainer.name, step):
                old.unlink()


def load_checkpoint(folder: Path, trainers: Sequence[CoderTrainer], fingerprint: str) -> int:
    """Brings the trainers to the last checkpoint of this very training; returns its step, or 0."""
    if not (folder / MANIFEST).exists():
        return 0
    manifest = read_json(folder / MANIFEST)
    if manifest.get("fingerprint") != fingerprint:
        return 0
    step = int(manifest["step"])
    for trainer in trainers:
        path = _path(folder, trainer.name, step)
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise UserError(
                f"The checkpoint {path} cannot be read ({error}); remove {folder / MANIFEST} "
                "to train from the start."
            ) from None
        trainer.load_state_dict(state)
    return step


def remove_checkpoint(folder: Path, trainers: Sequence[CoderTrainer]) -> None:
    """Once the coders are saved, nothing is left to resume."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for trainer in trainers:
        checkpoints = folder / trainer.name / "checkpoint"
        for path in checkpoints.glob("step-*.pt"):
            path.unlink()
        if checkpoints.is_dir() and not any(checkpoints.iterdir()):
            checkpoints.rmdir()


def _path(folder: Path, name: str, step: int) -> Path:
    return folder / name / "checkpoint" / f"step-{step}.pt"
