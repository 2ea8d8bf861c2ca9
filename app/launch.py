"""How the browser is started: the one place that knows Streamlit's flags."""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent


def streamlit_arguments(
    run: Path | str, *, port: int | None = None, headless: bool = True
) -> list[str]:
    """Arguments for `python -m streamlit`, to browse the run folder `run`.

    No statistics are sent anywhere, and nothing but this machine is asked for anything.
    """
    flags = {
        "theme.base": str(HERE / "theme" / "loupe.toml"),
        "server.headless": str(headless).lower(),
        "server.address": "127.0.0.1",
        "server.enableXsrfProtection": "true",  # whatever a configuration of the user's says
        "server.enableCORS": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        **({"server.port": str(port)} if port is not None else {}),
    }
    options = [f"--{name}={value}" for name, value in flags.items()]
    return ["run", str(HERE / "main.py"), *options, "--", str(Path(run).absolute())]


def main() -> None:
    """`python -m app.launch RUN [--port N] [--headless]`, which is what `sae browse` starts."""
    parser = argparse.ArgumentParser(prog="python -m app.launch")
    parser.add_argument("run", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--headless", action="store_true")
    given = parser.parse_args()
    arguments = streamlit_arguments(given.run, port=given.port, headless=given.headless)
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", *arguments])


if __name__ == "__main__":
    main()
