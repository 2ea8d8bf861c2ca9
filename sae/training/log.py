"""Training curves: `training.jsonl` always, TensorBoard beside it, Weights & Biases on request."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae.base.errors import UserError
from sae.base.files import write_text
from sae.base.foreign import require_file

LONGEST_RECORD = 2**16


class TrainingLog:
    """Appends records of one coder. On resume, what lies behind `step` is cut off first."""

    def __init__(self, folder: Path, step: int = 0, wandb_project: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "training.jsonl"
        kept = ""
        if step and self.path.exists():
            require_file(self.path)
            kept = "".join(line for line in _lines(self.path) if _step_of(line) <= step)
        write_text(self.path, kept)
        self._file = self.path.open("a")
        self._board = _tensorboard(folder / "tensorboard", purge_step=step + 1)
        self._wandb = _wandb(wandb_project, folder)

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


def _wandb(project: str | None, folder: Path) -> Any:
    if not project:
        return None
    try:
        import wandb  # pyright: ignore[reportMissingImports] -- an extra
    except ImportError:
        raise UserError(
            "`wandb` was asked for but is not installed: pip install 'loupe-sae[wandb]'."
        ) from None
    return wandb.init(project=project, name=folder.name, dir=str(folder), resume="allow")
