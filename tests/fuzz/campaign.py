"""Cases for one loader until its time is over: a worker that is started again when it dies."""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.loaders import LOADERS

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
"""Seconds of a case after which it hangs; valid files take under one."""
MOST_KINDS = 12
"""Different failures after which a campaign ends: there is enough to mend."""


@dataclass
class Tally:
    """What came of the cases of a loader. `failures`: key -> what was said, seed, kept folder."""

    loader: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        return self.cases - self.outcomes["accepted"] - self.outcomes["refused"]

    def row(self) -> list[str]:
        counts = (self.cases, self.outcomes["accepted"], self.outcomes["refused"], self.failed)
        return [self.loader, *(f"{count:,}" for count in counts), f"{self.seconds:.0f}"]


HEADINGS = ["loader", "cases", "accepted", "refused", "failures", "seconds"]


class Worker:
    """The process of `tests.fuzz.worker`, and what it says."""

    def __init__(self, loader: str, whole: Path, scratch: Path) -> None:
        arguments = ["-m", "tests.fuzz.worker", loader, str(whole), str(scratch)]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **threads},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        if self.hear(600) != "ready":
            said = self.process.stderr.read() if self.process.stderr else ""
            log = scratch / "said.txt"
            raise RuntimeError(said + (log.read_text()[-4000:] if log.exists() else ""))

    def _listen(self) -> None:
        if self.process.stdout is not None:
            for line in self.process.stdout:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def say(self, line: str) -> None:
        if self.process.stdin is not None:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def hear(self, patience: float) -> str | None:
        """The next line; None if the process died; raises `queue.Empty` if none came in time."""
        return self._lines.get(timeout=patience)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def fuzz(loader: str, whole: Path, scratch: Path, seconds: float, cases: int = 10**9) -> Tally:
    """Cases 0, 1, 2, ... of a loader for so long; folders of failed ones are kept in `scratch`."""
    tally, worker = Tally(loader), None
    began = time.perf_counter()
    try:
        for seed in range(cases):
            if time.perf_counter() - began > seconds or len(tally.failures) >= MOST_KINDS:
                break
            worker = worker or Worker(loader, whole, scratch)
            verdict = try_case(worker, str(seed))
            tally.outcomes[verdict["outcome"]] += 1
            if verdict["outcome"] not in ("accepted", "refused"):
                _keep(tally, verdict, scratch)
            if verdict["outcome"] in ("hang", "crash"):
                worker.end()
                worker = None
    finally:
        if worker is not None:
            worker.end()
    tally.seconds = time.perf_counter() - began
    return tally


def try_case(worker: Worker, seed: str) -> dict[str, str]:
    lost = {"seed": seed, "key": "", "said": ""}
    try:
        worker.say(seed)
        if worker.hear(60) != "made":
            return {**lost, "outcome": "crash", "said": "while the case was made"}
        verdict = worker.hear(PATIENCE)
    except queue.Empty:
        return {**lost, "outcome": "hang"}
    except BrokenPipeError:
        verdict = None
    if verdict is None:
        return {**lost, "outcome": "crash", "said": f"exit code {worker.process.wait()}"}
    return json.loads(verdict)


def _keep(tally: Tally, verdict: dict[str, str], scratch: Path) -> None:
    """The first case of each kind, with its folder, which `tests.fuzz.worker` loads again."""
    key = f"{verdict['outcome']} {verdict['key']}".strip()
    if key in tally.failures:
        return
    kept = scratch / "kept" / f"{tally.loader}-{verdict['seed']}"
    shutil.copytree(scratch / "case", kept, symlinks=True, copy_function=_copy, dirs_exist_ok=True)
    tally.failures[key] = f"seed {verdict['seed']}, kept in {kept}\n{verdict['said']}"


def _copy(source: str, target: str) -> None:
    if os.path.isfile(source):  # a pipe would never end
        shutil.copy(source, target)


def make_wholes(folder: Path, run: Path, model: Path) -> dict[str, Path]:
    """{loader: valid files to start from}, of a finished run and its model."""
    for name, loader in LOADERS.items():
        (folder / name).mkdir(parents=True)
        loader.make(folder / name, run, model)
    return {name: folder / name for name in LOADERS}
