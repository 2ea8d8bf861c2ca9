"""`kill -9` at random moments of a whole run; each resumed run must end as the undisturbed one.

Default 100 kills; `TORTURE=full` 1,000, or `TORTURE_KILLS=N`.
"""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.verify import verify
from tests.conftest import tiny_settings
from tests.torture.machine import (
    STAGES,
    context,
    durations,
    goes_on_into,
    make_config,
    next_target,
    number,
    results_of,
    stage_of,
    start,
)
from tests.torture.table import Tables

KILLS = number("KILLS", 100, full=1_000)
OF_WORK = ("harvest", "train", "index", "export")  # each is to be hit often enough to count
CODERS = (
    "train.coders=[{name: topk, k: 4, expansion: 4}, "
    "{name: relu, architecture: relu, l1: 1.0, expansion: 4}]"
)

pytestmark = [pytest.mark.torture, pytest.mark.timeout(0)]


def settings(tiny_folder: Path, tiny_corpus: Path) -> list[str]:
    """Several shards, two coders, and an index of several blocks."""
    base = tiny_settings(Path("unused"), tiny_folder, tiny_corpus)
    return [*base, CODERS, "train.tokens=40000"]


def test_kills(tiny_folder: Path, tiny_corpus: Path, tmp_path: Path, tables: Tables) -> None:
    server, rng = context(), np.random.default_rng(0)
    wanted = settings(tiny_folder, tiny_corpus)
    config = make_config(tmp_path / "whole", wanted)
    start(server, config, tmp_path / "warm").join()  # the forkserver's imports, Numba's cache
    began = time.perf_counter()
    config = make_config(tmp_path / "undisturbed", wanted)
    process = start(server, config, tmp_path / "out")
    process.join()
    seconds = time.perf_counter() - began
    assert process.exitcode == 0, (tmp_path / "out").read_text()
    truth, lasts = results_of(tmp_path / "undisturbed"), durations(tmp_path / "undisturbed")

    killed: Counter[str] = Counter()
    resumed: Counter[str] = Counter()
    runs = differences = 0
    while sum(killed.values()) < KILLS:
        runs += 1
        folder = tmp_path / f"run-{runs}"
        config = make_config(folder, wanted)
        last: list[str] = []
        target: str | None = "start"
        for _ in range(1000):
            (tmp_path / "out").unlink(missing_ok=True)
            process = start(server, config, tmp_path / "out")
            target = next_target(rng, target)
            if target is None or sum(killed.values()) == KILLS:
                process.join()
                break
            delay = rng.uniform(0.0, 1.0) * lasts.get(target, 0.3)
            if not goes_on_into(process, tmp_path / "out", target, delay):
                break
            process.kill()
            process.join()
            last.append(stage_of(tmp_path / "out"))
            killed[last[-1]] += 1
        assert process.exitcode == 0, (tmp_path / "out").read_text()
        resumed.update(last)
        found = results_of(folder)
        wrong = [key for key, value in truth.items() if found[key] != value]
        assert not wrong, f"{folder} after kills in {last}: {wrong}"
        assert verify(folder) == [], folder
        assert not [p for p in folder.rglob("*.partial") if p.parent != folder], folder
    headings = ["killed in", "kills", "resumed", "different"]
    for stage in ("start", *STAGES):
        tables.add("kills", headings, [stage, killed[stage], resumed[stage], differences])
    total = [f"{runs} runs of {seconds:.1f} s", killed.total(), resumed.total(), differences]
    tables.add("kills", headings, total)
    assert min(killed[stage] for stage in OF_WORK) >= KILLS // 20, killed
