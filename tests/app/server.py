"""The browser's server as `sae browse` starts it, in a process of its own."""

import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.launch import HERE, environment, streamlit_command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(run: Path, folder: Path) -> Iterator[str]:
    """The address of the server while it runs; its log, in `folder`, must hold no traceback."""
    port, log = free_port(), folder / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            streamlit_command(run, port=port),
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(run),
            cwd=HERE,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/_stcore/health", process, log)
        yield address
    finally:
        process.terminate()
        process.wait(20)
    said = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
    assert "Traceback" not in said, said[-6000:]


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"The server did not start: {log.read_text()[-2000:]}")
