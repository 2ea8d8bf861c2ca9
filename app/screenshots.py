"""Pictures of the browser for the documentation: `python -m app.screenshots RUN docs/images`.

Needs playwright and a Chromium (`LOUPE_CHROMIUM`, default /usr/bin/chromium). Every page is taken
in the light theme, the Feature page in the dark one too.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from app.launch import HERE, environment, streamlit_command
from app.run_folder import Run, open_run
from sae.base.errors import UserError
from sae.features import FeatureIndex
from sae.features.gallery import interesting

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTH, HEIGHT, LOADING = 1440, 1000, 120_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
TEXT = '''def mean(values):
    """Return the mean of a list of numbers.

    Raises ValueError if the list is empty.
    """
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)
'''


class Shot(NamedTuple):
    """A picture: file name, address, what must be drawn, theme, largest height in pixels."""

    name: str
    path: str
    awaits: str
    theme: str = "light"
    height: int = HEIGHT


def shots(run: Run, coder: str, feature: int | None) -> list[Shot]:
    """The pictures of a run; of its most interesting feature if none is named."""
    index = FeatureIndex.open(run.index(coder))
    if feature is None:
        feature = interesting(index, index.view(), 1)[0]
    one = urlencode({"coder": coder, "feature": feature})
    found = [
        Shot("overview", f"?coder={coder}", ".card", height=1250),
        Shot("features", f"features?{urlencode({'coder': coder, **BEST})}", "tbody tr"),
        Shot("feature", f"feature?{one}", ".example", height=1250),
        Shot("feature-dark", f"feature?{one}", ".example", "dark", height=1250),
    ]
    if (run.coder(coder) / "cfg.json").is_file():
        query = urlencode({"coder": coder, "text": TEXT})
        found.append(Shot("prompt", f"prompt?{query}", ".heat tbody tr", height=1250))
    return found


BEST = {"sort": "label_score", "order": "down", "filter": "count>0"}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The browser on a free port; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        streamlit_command(folder, port=port),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(folder),
        cwd=HERE,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def take(browser: "Browser", address: str, shot: Shot, folder: Path) -> Path:
    """Opens a page, waits until it is drawn, and saves its picture."""
    context = browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT},
        color_scheme=shot.theme,  # pyright: ignore[reportArgumentType]
    )
    page = context.new_page()
    page.set_default_timeout(LOADING)
    page.goto(f"{address}/{shot.path}")
    page.locator(shot.awaits).first.wait_for()
    settle(page)
    content = page.locator('[data-testid="stMain"]').evaluate("e => e.scrollHeight")
    page.set_viewport_size({"width": WIDTH, "height": min(max(content, 600), shot.height)})
    page.wait_for_timeout(800)  # charts draw themselves anew in the new size
    path = folder / f"{shot.name}.png"
    page.screenshot(path=path)
    context.close()
    return path


def settle(page: "Page") -> None:
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    page.wait_for_timeout(1000)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m app.screenshots")
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--coder", help="default: the first of the run")
    parser.add_argument("--feature", type=int, help="default: the most interesting one")
    given = parser.parse_args(arguments)
    try:
        run = open_run(given.run)
        wanted = shots(run, given.coder or run.coders[0], given.feature)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    from playwright.sync_api import sync_playwright

    given.folder.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("LOUPE_CHROMIUM", "/usr/bin/chromium")
    with serving(given.run) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for shot in wanted:
            print(take(browser, address, shot, given.folder))
        browser.close()


if __name__ == "__main__":
    main()
