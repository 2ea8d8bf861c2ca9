"""How long the Prompt page takes to answer a typed sentence, in Chromium.

    python -m benchmarks.prompt_page runs/demo

From the click on "Read" until the new text's tokens stand on the page and the script is done.
The first answer loads the model and the coder; the others are warm.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from app.run_folder import open_run
from app.screenshots import FLAGS, serving

SENTENCES = (
    "Who is there?",
    "raise ValueError('shapes do not match')",
    "It was the best of times, it was the worst of times.",
    "def area(width, height):\n    return width * height",
    "Returns the mean of an array, or None if it is empty.",
    "for name in sorted(names):\n    print(name)",
)
DONE = '[data-testid="stApp"][data-test-script-state="notRunning"]'


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the Prompt page.")
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    coder = open_run(given.run).coders[0]
    chromium = os.environ.get("LOUPE_CHROMIUM", "/usr/bin/chromium")
    with serving(given.run) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page()
        page.goto(f"{address}/prompt?coder={coder}")
        box = page.get_by_role("textbox", name="Text")
        box.wait_for(timeout=120_000)
        page.wait_for_selector(DONE)
        seconds = []
        for sentence in SENTENCES * 2:
            box.fill(sentence)
            began = time.perf_counter()
            page.get_by_role("button", name="Read").click()
            shown = page.locator(".document")
            expect(shown).to_contain_text(sentence.split("\n")[0], timeout=60_000)
            page.wait_for_selector(DONE)
            seconds.append(time.perf_counter() - began)
        browser.close()
    warm = seconds[1:]
    print(
        f"first {seconds[0]:.2f} s; {len(warm)} warm: "
        f"median {statistics.median(warm):.2f} s, slowest {max(warm):.2f} s"
    )


if __name__ == "__main__":
    main()
