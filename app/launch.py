"""How the browser is started: the one place that knows Streamlit's flags."""

import argparse
import os
import sys
from pathlib import Path

from app.run_folder import ENVIRONMENT, STARTED_IN

HERE = Path(__file__).parent
LOCAL = ("127.0.0.1", "localhost")


def streamlit_arguments(
    run: Path | str, *, port: int | None = None, headless: bool = True
) -> list[str]:
    """Arguments for `python -m streamlit`, to browse the run folder `run`.

    No statistics are sent anywhere, and nothing but this machine is asked for anything.
    """
    flags: dict[str, str] = {
        "theme.base": str(HERE / "theme" / "loupe.toml"),
        "server.headless": str(headless).lower(),
        "server.address": "127.0.0.1",
        "server.enableXsrfProtection": "true",  # whatever a configuration of the user's says
        "server.enableCORS": "true",
        "server.corsAllowedOrigins": "http://127.0.0.1",
        "server.enableAgentApi": "false",
        "server.enableStaticServing": "false",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        **({"server.port": str(port)} if port is not None else {}),
    }
    options = [f"--{name}={value}" for name, value in flags.items()]
    options += [f"--server.allowedHosts={host}" for host in LOCAL]
    return ["run", str(HERE / "main.py"), *options, "--", str(Path(run).absolute())]


def streamlit_command(
    run: Path | str, *, port: int | None = None, headless: bool = True
) -> list[str]:
    """To be started in the folder `HERE`: Streamlit obeys a `.streamlit/config.toml` of the current
    one, which may be a run that somebody else made. `-P` keeps its modules off Python's path.
    """
    arguments = streamlit_arguments(run, port=port, headless=headless)
    return [sys.executable, "-P", "-m", "streamlit", *arguments]


def environment(run: Path | str) -> dict[str, str]:
    """Of the browser's process: no model is downloaded, unless the user set HF_HUB_OFFLINE."""
    own = {ENVIRONMENT: str(Path(run).absolute()), STARTED_IN: os.getcwd()}
    return {"HF_HUB_OFFLINE": "1", **os.environ, **own}


def main() -> None:
    """`python -m app.launch RUN [--port N] [--headless]`, which is what `sae browse` starts."""
    parser = argparse.ArgumentParser(prog="python -m app.launch")
    parser.add_argument("run", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--headless", action="store_true")
    given = parser.parse_args()
    command = streamlit_command(given.run, port=given.port, headless=given.headless)
    variables = environment(given.run)
    os.chdir(HERE)
    os.execve(sys.executable, command, variables)


if __name__ == "__main__":
    main()
