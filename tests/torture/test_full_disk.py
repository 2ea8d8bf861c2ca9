"""The disk fills up at any moment of a whole run: it ends with a sentence, and resumes.

A small file system in memory (Linux, root) is filled to its last byte at random moments, by what
could be any other program; then room is made, and the same command must end as if nothing had
been. Default 20 moments; `TORTURE=full` 100.
"""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from pipelines.verify import verify
from tests.torture.machine import (
    STAGES,
    context,
    durations,
    goes_on_into,
    make_config,
    number,
    results_of,
    stage_of,
    start,
)
from tests.torture.table import Tables
from tests.torture.test_kills import settings

POINTS = number("POINTS", 20, full=100)
WRITERS = [stage for stage in STAGES if stage != "compare"]  # which lasts no time

pytestmark = [pytest.mark.torture, pytest.mark.timeout(0)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "loupe-torture", str(disk)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount).returncode:
        pytest.skip("needs root on Linux, to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Takes every byte that is free."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 4096):
            try:
                while True:
                    file.write(b"\1" * size)
            except OSError:
                continue
    return ballast


def test_full_disk(
    tiny_folder: Path, tiny_corpus: Path, small_disk: Path, tmp_path: Path, tables: Tables
) -> None:
    server, rng = context(), np.random.default_rng(1)
    wanted = settings(tiny_folder, tiny_corpus)
    config = make_config(tmp_path / "undisturbed", wanted)
    for name in ("warm", "undisturbed"):
        config = make_config(tmp_path / name, wanted)
        process = start(server, config, tmp_path / "out")
        process.join()
    assert process.exitcode == 0, (tmp_path / "out").read_text()
    truth, lasts = results_of(tmp_path / "undisturbed"), durations(tmp_path / "undisturbed")
    stages: Counter[str] = Counter()
    ends: Counter[tuple[str, str]] = Counter()
    targets = cycle(WRITERS)
    while sum(stages.values()) < POINTS:
        (tmp_path / "out").unlink(missing_ok=True)
        folder = small_disk / "run"
        config = tmp_path / "run.yaml"
        shutil.move(make_config(folder, wanted), config)
        process = start(server, config, tmp_path / "out")
        target = next(targets)
        delay = rng.uniform(0.0, 0.8) * lasts[target]
        goes_on_into(process, tmp_path / "out", target, delay)
        ballast = fill(small_disk)
        process.join()
        said = (tmp_path / "out").read_text()
        ballast.unlink()
        if process.exitcode == 0:  # it had nothing more to write
            shutil.rmtree(folder)
            continue
        stage = stage_of(tmp_path / "out")
        stages[stage] += 1
        ends[stage, "sentence" if "sae: " in said and "Traceback" not in said else "other"] += 1
        assert process.exitcode in (1, 2), (process.exitcode, said)
        again = start(server, config, tmp_path / "out")
        again.join()
        assert again.exitcode == 0, said + (tmp_path / "out").read_text()
        found = results_of(folder)
        assert [key for key, value in truth.items() if found[key] != value] == [], said
        assert verify(folder) == []
        shutil.rmtree(folder)
    for stage, times in sorted(stages.items()):
        row = [stage, times, ends[stage, "sentence"], times]
        tables.add("full disks", ["full in", "times", "sentence", "resumed"], row)
    assert all(how == "sentence" for _, how in ends), ends
    assert len(stages) >= 4, stages
