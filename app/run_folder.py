"""The run folder that the browser was started on: what is in it, and what makes what is not."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.base.commands import command
from sae.base.errors import UserError, nearest
from sae.base.files import read_json_object, sha256_file
from sae.base.results import read_evaluation
from sae.base.sums import SUMS, read_sums, require_intact

ENVIRONMENT = "LOUPE_RUN"
STARTED_IN = "LOUPE_STARTED_IN"
"""Variable with the folder in which the browser was started: an index may name a model relative to
it, and the browser's process works elsewhere (see `app.launch`)."""
WEIGHTS = "sae_weights.safetensors"  # as `sae.coders` writes them; to ask it would load torch
UNFINISHED = (".partial", ".old")
"""Ends of the names of folders that an index is made in, or that it replaced."""


@dataclass(frozen=True)
class Run:
    """A run folder: what the stages made (`docs/formats.md`)."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def coders(self) -> list[str]:
        """Names of the coders that were trained or indexed here; the indexed ones first."""
        indexed = _folders_with(self.folder / "features", "index.json")
        trained = _folders_with(self.folder / "coders", "cfg.json")
        return indexed + [name for name in trained if name not in indexed]

    def index(self, coder: str) -> Path:
        return self.folder / "features" / coder

    def coder(self, coder: str) -> Path:
        return self.folder / "coders" / coder

    def weights(self, coder: str) -> str | None:
        """Hash of the coder's weights: of its folder, or, where that is not here, of its index."""
        folder, index = self.coder(coder), self.index(coder) / "index.json"
        if (folder / SUMS).is_file():
            return read_sums(folder).get(WEIGHTS)
        if (folder / WEIGHTS).is_file():  # of another tool
            return sha256_file(folder / WEIGHTS)
        return read_json_object(index).get("coder_hash") if index.is_file() else None

    def evaluation(self, coder: str) -> dict[str, Any] | None:
        """The evaluation of a coder, or None if it has not been made.

        Raises:
            UserError: it is damaged, or none.
        """
        path = self.folder / "evaluation" / f"{coder}.json"
        if not path.is_file():
            return None
        require_intact(path.parent, [path.name])
        return read_evaluation(path)

    def command(self, stage: str) -> str:
        """The command that makes what `stage` makes."""
        return command(stage, self.folder)


def _folders_with(parent: Path, file: str) -> list[str]:
    if not parent.is_dir():
        return []
    found = (folder.name for folder in parent.iterdir() if (folder / file).is_file())
    return sorted(name for name in found if not name.endswith(UNFINISHED))


def find_run() -> Run:
    """The run named in `LOUPE_RUN` or on the command line (after `--`).

    Raises:
        UserError: none was named, or it is not a folder with at least one coder.
    """
    given = os.environ.get(ENVIRONMENT) or next(iter(sys.argv[1:]), None)
    if not given:
        raise UserError(
            "No run folder was given; start the browser with `sae browse RUN` "
            f"(or set {ENVIRONMENT})."
        )
    return open_run(Path(given))


def open_run(folder: Path) -> Run:
    """The run in `folder`; see `find_run`."""
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(
            f"{folder} is not a folder; give the folder of a run, such as runs/demo."
            f"{nearest(folder.name, siblings)}"
        )
    run = Run(folder)
    if not run.coders:
        raise UserError(
            f"{folder} holds no coder yet; make one with `sae run CONFIG.yaml`, or give the "
            "folder of another run."
        )
    return run
