"""Training curves: `training.jsonl` always, TensorBoard beside it, Weights & Biases on request."""

import json
import os
import re
import secrets
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sae.base.errors import UserError
from sae.base.files import write_text
from sae.base.foreign import read_bytes, require_file

LONGEST_RECORD = 2**16
WANDB_ID = "wandb/loupe-id"  # in the coder's folder, beside what wandb itself keeps there


class TrainingLog:
    """Appends records of one coder. On resume, what lies behind `step` is cut off first.

    `wandb_run` (of `start_wandb`) gets them too, and is finished with the log.
    """

    def __init__(self, folder: Path, step: int = 0, wandb_run: Any = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "training.jsonl"
        kept = ""
        if step and self.path.exists():
            require_file(self.path)
            kept = "".join(line for line in _lines(self.path) if _step_of(line) <= step)
        write_text(self.path, kept)
        self._file = self.path.open("a")
        self._board = _tensorboard(folder / "tensorboard", purge_step=step + 1)
        self._wandb = wandb_run

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        values = {k: v for k, v in record.items() if k != "step"}
        for key, value in values.items():
            self._board.add_scalar(key, value, record["step"])
        if self._wandb is not None:
            self._wandb.log(values, step=record["step"])

    def sync(self) -> None:
        """Returns when every record is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _lines(path: Path) -> Iterator[str]:
    """Whole lines, as far as they are of the length of a record."""
    with path.open(errors="replace", newline="\n") as file:
        while line := file.readline(LONGEST_RECORD):
            if line.endswith("\n"):
                yield line


def _step_of(line: str) -> float:
    """Infinity for what is no record: a line that a kill cut short, or a disk spoilt."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError):
        return float("inf")


def _tensorboard(folder: Path, purge_step: int) -> Any:
    from torch.utils.tensorboard.writer import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)


def require_wandb(project: str | None) -> None:
    """Raises `UserError` if Weights & Biases was asked for and is not installed."""
    found = find_spec("wandb") if project else None
    if project and (found is None or found.origin is None):  # a mere folder, as it makes itself
        raise UserError(
            "`wandb` was asked for but is not installed: pip install 'loupe-sae[wandb]'."
        )


def start_wandb(project: str | None, folder: Path, *, resumed: bool) -> Any:
    """A run of Weights & Biases for the coder of this folder; None if no project was asked for.

    A training that is resumed goes on with the run that it began.
    """
    require_wandb(project)
    if not project:
        return None
    import wandb  # pyright: ignore[reportMissingImports] -- an extra

    known = _wandb_id(folder) if resumed else None
    chosen = known or secrets.token_hex(8)
    if not known:
        write_text(folder / WANDB_ID, chosen + "\n")
    try:
        return wandb.init(
            project=project,
            name=folder.name,
            dir=str(folder),
            id=chosen,
            resume="allow",
            reinit="create_new",  # beside those of the coders that are trained with it
        )
    except Exception as error:  # of its own kinds: no login, no network, no such project
        raise UserError(
            f"Weights & Biases began no run ({error}); give `wandb login`, or set "
            "WANDB_MODE=offline, or leave out `train.wandb`."
        ) from error


def _wandb_id(folder: Path) -> str | None:
    try:
        kept = read_bytes(folder / WANDB_ID, LONGEST_RECORD).decode("ascii", "replace").strip()
    except (OSError, UserError):
        return None
    return kept if re.fullmatch(r"[0-9a-f]{16}", kept) else None
