"""Days of checkpoints in minutes: nothing accumulates on disk, in memory or among open files."""

import resource
from pathlib import Path

import numpy as np
import pytest

from sae.coders import make_coder
from sae.store import SiteStats
from sae.training import CoderTrainer, Settings
from sae.training.checkpoint import load_checkpoint, save_checkpoint, verify_checkpoints
from tests.torture.machine import number
from tests.torture.table import Tables

CHECKPOINTS = number("CHECKPOINTS", 10_000, full=100_000)

pytestmark = [pytest.mark.torture, pytest.mark.timeout(0)]


def test_ten_thousand_checkpoints(tmp_path: Path, tables: Tables) -> None:
    stats = SiteStats(1000, np.zeros(16), 16.0, 4.0)
    coder = make_coder("topk", 16, 256, k=4)
    trainer = CoderTrainer("c", coder, "", stats, Settings(steps=CHECKPOINTS))
    seen: list[tuple[int, int, int]] = []
    for step in range(1, CHECKPOINTS + 1):
        trainer.done = step
        save_checkpoint(tmp_path, [trainer], "f")
        if step in (100, CHECKPOINTS):
            files = sum(path.is_file() for path in tmp_path.rglob("*"))
            handles = len(list(Path("/proc/self/fd").iterdir()))
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            seen.append((files, handles, memory))
    (files, handles, memory), (files_end, handles_end, memory_end) = seen
    headings = ["checkpoints", "files", "more open files", "more MiB of memory"]
    more = handles_end - handles, f"{(memory_end - memory) / 1024:.1f}"
    tables.add("rotation, since the hundredth", headings, [f"{CHECKPOINTS:,}", files_end, *more])
    assert files == files_end == 4
    assert handles_end <= handles
    assert memory_end - memory < 16 * 1024
    assert verify_checkpoints(tmp_path) == []
    assert load_checkpoint(tmp_path, [trainer], "f", print) == CHECKPOINTS
