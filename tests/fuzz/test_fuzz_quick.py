"""A few seconds of the fuzzing of `make torture`, with the same cases each time."""

from pathlib import Path

import pytest

from tests.fuzz.campaign import fuzz
from tests.fuzz.loaders import LOADERS

CASES = {"model": 20, "evaluation": 20, "index": 40}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_gives_what_it_reads_or_a_sentence(
    loader: str, wholes: dict[str, Path], tmp_path: Path
) -> None:
    tally = fuzz(loader, wholes[loader], tmp_path, 60, CASES.get(loader, 60))
    assert not tally.failures, "\n\n".join(f"{k}: {v}" for k, v in tally.failures.items())
