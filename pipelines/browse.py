"""`sae browse`: the feature browser on a run folder, as a process of its own (`app.launch`)."""

import subprocess
import sys
from pathlib import Path

from sae.base.errors import UserError


def browse(folder: Path, port: int = 8501, headless: bool = False) -> int:
    """Starts Streamlit and waits for it; returns its exit code."""
    if not (folder / "features").is_dir():
        raise UserError(
            f"{folder} has no feature index to browse; make one with `sae run` or `sae index`."
        )
    command = [sys.executable, "-m", "app.launch", str(folder), "--port", str(port)]
    return subprocess.call([*command, "--headless"] if headless else command)
