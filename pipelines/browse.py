"""`sae browse`: the feature browser on a run folder."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from sae.base.errors import UserError


def browse(folder: Path, port: int = 8501, headless: bool = False) -> int:
    """Starts Streamlit and waits for it; returns its exit code."""
    if not (folder / "features").is_dir():
        raise UserError(
            f"{folder} has no feature index to browse; make one with `sae run` or `sae index`."
        )
    spec = find_spec("app.main")
    if spec is None or spec.origin is None:
        raise UserError("The browser (package `app`) is not installed; reinstall Loupe.")
    command = [sys.executable, "-m", "streamlit", "run", spec.origin]
    command += ["--server.port", str(port), "--server.headless", str(headless).lower()]
    command += ["--browser.gatherUsageStats", "false", "--", str(folder.absolute())]
    return subprocess.call(command, env={**os.environ, "LOUPE_RUN": str(folder.absolute())})
