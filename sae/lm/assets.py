"""Where models lie on this machine. Free of torch, so that fingerprints cost nothing."""

from importlib.resources import files
from pathlib import Path

from sae.base.errors import UserError

POCKET = "pocket"


def pocket_folder() -> Path:
    return Path(str(files("sae") / "assets" / "pocket-gpt2"))


def local_model_folder(name: str) -> Path | None:
    """The folder that `name` means, or None if it must be a hub id."""
    if name == POCKET:
        return pocket_folder()
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")):
        raise UserError(f"The model folder {name} does not exist; give `pocket` or a hub id.")
    return None
