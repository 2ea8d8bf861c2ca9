"""Checkpoints of a whole list of coders: valid from one rename on, verified, the last two kept.

    coders/<name>/checkpoint/step-1000.pt     one per coder
    coders/checkpoint-1000.json               step, fingerprint, what that is the hash of, and the
                                              sha256 of each file: it is valid

A kill between the files leaves the checkpoints before untouched; what no `checkpoint-*.json` names
is removed with the next one. A damaged checkpoint is passed over for the one before.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.base.errors import UserError
from sae.base.files import atomic_write, read_sealed_json, sha256_file, write_sealed_json
from sae.base.foreign import is_inside, reading
from sae.base.tensors import read_state, write_state
from sae.training.trainer import CoderTrainer

KEPT = 2
_LEFT = re.compile(r"step-\d+\.pt|\..*\.partial")
Say = Callable[[str], object]


def save_checkpoint(
    folder: Path,
    trainers: Sequence[CoderTrainer],
    fingerprint: str,
    made_of: Mapping[str, Any] | None = None,
) -> Path:
    """Saves every trainer at its present step; returns the file that makes it valid.

    Kept are this one and the one before of the same training. Checkpoints of later steps are
    those that resuming had to pass over, or another training's: they go.
    """
    step = trainers[0].done
    sums = {t.name: _save(_state_file(folder, t.name, step), t.state_dict()) for t in trainers}
    commit = commit_file(folder, step)
    what: dict[str, Any] = {"step": step, "fingerprint": fingerprint, "sha256_of": sums}
    write_sealed_json(commit, {**what, "made_of": dict(made_of)} if made_of else what)
    earlier = [c for c in checkpoints(folder) if _step(c) < step and _is_of(c, fingerprint)]
    _remove_others(folder, [commit, *earlier[: KEPT - 1]])
    return commit


def load_checkpoint(
    folder: Path, trainers: Sequence[CoderTrainer], fingerprint: str, say: Say
) -> int:
    """Brings the trainers to the last whole checkpoint of this very training; its step, or 0.

    Raises:
        UserError: there are checkpoints, and none of them is whole.
    """
    damaged: list[str] = []
    others: list[int] = []
    for commit in checkpoints(folder):
        try:
            content = _committed(commit)
            if content["fingerprint"] != fingerprint:
                others.append(_step(commit))
                continue
            states = _verified(folder, content)
        except UserError as error:
            damaged.append(str(error))
            continue
        for problem in damaged:
            say(f"{problem} Going back to the checkpoint before it, of step {content['step']}.")
        if missing := [t.name for t in trainers if t.name not in states]:
            raise UserError(f"{commit} has no state of `{missing[0]}`; remove it.")
        for trainer in trainers:
            _load_into(trainer, states[trainer.name])
        return int(content["step"])
    if damaged:
        raise UserError(
            f"No checkpoint in {folder} can be read ({damaged[0]}); remove {folder}/checkpoint-*"
            " to train from the start."
        )
    if others:
        say(
            f"The checkpoint of step {others[0]} in {folder} is of a training with other settings, "
            "data or code; this one starts from step 0."
        )
    return 0


def other_training(folder: Path, fingerprint: str) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint, with what it says, if all that can be read are of other trainings;
    None if there is one of this training, or none at all.
    """
    others: list[tuple[Path, dict[str, Any]]] = []
    for commit in checkpoints(folder):
        try:
            content = _committed(commit)
        except UserError:  # `load_checkpoint` says so
            continue
        if content["fingerprint"] == fingerprint:
            return None
        others.append((commit, content))
    return others[0] if others else None


def verify_checkpoints(folder: Path) -> list[str]:
    """A sentence for each checkpoint that is not what was written, and each foreign file.

    What a kill left of a checkpoint that never became valid is no damage.
    """
    problems: list[str] = []
    named: set[Path] = set()
    for commit in checkpoints(folder):
        try:
            content = _committed(commit)
            named |= {_state_file(folder, n, content["step"]) for n in content["sha256_of"]}
            _verified(folder, content)
        except UserError as error:
            problems.append(str(error))
    others = sorted(set(folder.glob("*/checkpoint/*")) - named)
    return problems + [f"{path}: extra" for path in others if not _LEFT.fullmatch(path.name)]


def remove_checkpoints(folder: Path) -> None:
    """Once the coders are saved and recorded, nothing is left to resume."""
    _remove_others(folder, [])
    for states in folder.glob("*/checkpoint"):
        if not any(states.iterdir()):
            states.rmdir()


def commit_file(folder: Path, step: int) -> Path:
    """The file that makes the checkpoint of a step valid."""
    return folder / f"checkpoint-{step}.json"


def checkpoints(folder: Path) -> list[Path]:
    """The files that make checkpoints valid, the newest first."""
    found = [p for p in folder.glob("checkpoint-*.json") if p.stem.rpartition("-")[2].isdigit()]
    return sorted(found, key=_step, reverse=True)


def _save(path: Path, state: dict[str, Any]) -> str:
    """Writes a state; returns the sha256 of the file, taken on its way to the disk."""
    digest = hashlib.sha256()
    atomic_write(path, lambda file: write_state(state, file, digest))
    return digest.hexdigest()


def _committed(commit: Path) -> dict[str, Any]:
    """What the file says that makes a checkpoint valid; its names are those of folders here."""
    content = read_sealed_json(commit)
    names = content.get("sha256_of")
    fits = isinstance(names, dict) and all(is_inside(n) and "/" not in n for n in names)
    fits = fits and isinstance(content.get("made_of", {}), dict)
    if not fits or content.get("step") != _step(commit) or "fingerprint" not in content:
        raise UserError(f"{commit} is damaged: it does not say which checkpoint is valid.")
    return content


def _verified(folder: Path, content: dict[str, Any]) -> dict[str, Path]:
    """{coder: file of its state}, each file being what was written."""
    step = int(content["step"])
    found = {name: _state_file(folder, name, step) for name in content["sha256_of"]}
    for name, path in found.items():
        if not path.is_file():
            raise UserError(f"The checkpoint {path} is missing.")
        if sha256_file(path) != content["sha256_of"][name]:
            raise UserError(f"The checkpoint {path} is damaged: its SHA-256 has changed.")
    return found


def _load_into(trainer: CoderTrainer, path: Path) -> None:
    advice = f"remove {path.parents[2]}/checkpoint-* to train from the start"
    with reading(f"The checkpoint {path}, by this version of torch,", advice):
        state = read_state(path, advice)
        require_form(trainer.state_dict(), state)
        trainer.load_state_dict(state)


def require_form(own: Any, saved: Any, where: str = "state") -> None:
    """Raises `ValueError` unless `saved` has the names, shapes and types of a trainer's own state:
    torch copies one number into a whole matrix without a word."""
    if isinstance(own, dict):
        if not isinstance(saved, dict) or set(saved) != set(own):
            raise ValueError(f"its {where} holds other names")
        for name, value in own.items():
            require_form(value, saved[name], f"{where}.{name}")
    elif isinstance(own, list | tuple):
        if not isinstance(saved, list | tuple) or len(saved) != len(own):
            raise ValueError(f"its {where} holds other things")
        for number, value in enumerate(own):
            require_form(value, saved[number], f"{where}.{number}")
    elif isinstance(own, Tensor):
        first = 1 if where.startswith("state.resampler") else 0  # a reservoir of any length
        shape = own.shape[first:]
        if not isinstance(saved, Tensor) or saved.ndim != own.ndim or saved.dtype != own.dtype:
            raise ValueError(f"its {where} is no tensor of {own.dtype}")
        if saved.shape[first:] != shape:
            raise ValueError(f"its {where} has shape {tuple(saved.shape)}, not {tuple(own.shape)}")
    elif type(saved) is not type(own) or (isinstance(own, float) and not math.isfinite(saved)):
        raise ValueError(f"its {where} is {saved!r}")


def _is_of(commit: Path, fingerprint: str) -> bool:
    try:
        return _committed(commit)["fingerprint"] == fingerprint
    except UserError:
        return False


def _remove_others(folder: Path, kept: Sequence[Path]) -> None:
    """Removes the checkpoints that are not `kept`, and what kills left of others.

    The files that make them valid go first, so that a kill in between leaves none that lacks one.
    """
    for commit in checkpoints(folder):
        if commit not in kept:
            commit.unlink()
    wanted = {f"step-{_step(commit)}.pt" for commit in kept}
    for path in (*folder.glob("*/checkpoint/*"), *folder.glob(".checkpoint-*.partial")):
        if path.name not in wanted:
            path.unlink()


def _step(commit: Path) -> int:
    return int(commit.stem.rpartition("-")[2])


def _state_file(folder: Path, name: str, step: int) -> Path:
    return folder / name / "checkpoint" / f"step-{step}.pt"
