"""How the browser is started: the one place that knows Streamlit's flags."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.run_folder import ENVIRONMENT, STARTED_IN

HERE = Path(__file__).parent
PROTECTION: dict[str, str | bool | list[str]] = {
    "server.address": "127.0.0.1",
    "server.allowedHosts": ["127.0.0.1", "localhost"],
    "server.enableXsrfProtection": True,
    "server.enableCORS": True,
    "server.corsAllowedOrigins": ["http://127.0.0.1"],
    "server.enableAgentApi": False,
    "server.enableStaticServing": False,
    "global.developmentMode": False,
}
"""What keeps other machines and other sites' pages out, whatever a configuration of the user's
says."""


def streamlit_arguments(
    run: Path | str, *, port: int | None = None, headless: bool = True
) -> list[str]:
    """Arguments for `python -m streamlit`, to browse the run folder `run`.

    No statistics are sent anywhere, and nothing but this machine is asked for anything.
    """
    flags = {
        **PROTECTION,
        "theme.base": str(HERE / "theme" / "loupe.toml"),
        "server.headless": headless,
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        **({"server.port": str(port)} if port is not None else {}),
    }
    options = [
        f"--{name}={value}"
        for name, values in flags.items()
        for value in (values if isinstance(values, list) else [_flag(values)])
    ]
    return ["run", str(HERE / "main.py"), *options, "--", str(Path(run).absolute())]


def _flag(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value


def lacking(option: Callable[[str], Any]) -> list[str]:
    """Names of the protections that a server lacks; `option` gives its value of one."""

    def is_there(name: str) -> bool:
        found, wanted = option(name), PROTECTION[name]
        return (sorted(found or ()) if isinstance(wanted, list) else found) == wanted

    return [name for name in PROTECTION if not is_there(name)]


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
