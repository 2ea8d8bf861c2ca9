"""`sae browse`: the feature browser on a run folder, as a process of its own (`app.launch`)."""

import subprocess
import sys
from pathlib import Path

from sae.base.errors import UserError


def browse(folder: Path, port: int = 8501, headless: bool = False) -> int:
    """Starts Streamlit and waits for it; returns its exit code.

    `-P` keeps the current folder off Python's path: it may be a run that somebody else made, and
    its `argparse.py` must not be imported.
    """
    if not (folder / "features").is_dir():
        raise UserError(
            f"{folder} has no feature index to browse; make one with `sae run` or `sae index`."
        )
    run = str(folder.absolute())
    command = [sys.executable, "-P", "-m", "app.launch", run, "--port", str(port)]
    return subprocess.call([*command, "--headless"] if headless else command)
