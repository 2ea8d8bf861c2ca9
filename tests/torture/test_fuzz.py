"""Every loader on files that were changed at random: it reads them, or refuses in a sentence.

Two minutes for each (`TORTURE=full`: ten, `TORTURE_FUZZ_SECONDS=N`), as many loaders at a time as
there are cores. A case that ends in anything else (another error, a hang, more memory than it may
take, another file or program opened) is kept, with its seed:

    python -m tests.fuzz.worker LOADER FOLDER
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fuzz.campaign import HEADINGS, Tally, fuzz, make_wholes
from tests.fuzz.loaders import LOADERS
from tests.torture.machine import number
from tests.torture.table import Tables

SECONDS = number("FUZZ_SECONDS", 120, full=600)

pytestmark = [pytest.mark.torture, pytest.mark.timeout(0)]


@pytest.fixture(scope="module")
def campaigns(
    finished: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Tally]]]:
    """All loaders at once: who waits for one gives the others their time."""
    folder = tmp_path_factory.mktemp("fuzz")
    wholes = make_wholes(folder / "whole", finished, tiny_folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            name: pool.submit(fuzz, name, wholes[name], folder / name, SECONDS) for name in LOADERS
        }


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_gives_what_it_reads_or_a_sentence(
    loader: str, campaigns: dict[str, Future[Tally]], tables: Tables
) -> None:
    tally = campaigns[loader].result()
    tables.add("fuzzing", HEADINGS, tally.row())
    assert not tally.failures, "\n\n".join(f"{k}: {v}" for k, v in tally.failures.items())
    assert tally.outcomes["refused"], "no case was refused: the changes do not reach the loader"
