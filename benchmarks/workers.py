"""A system in a process of its own: asked for one step at a time, within a memory and a time cap.

Between its turns a process is stopped, so that spinning threads of one system never run beside
the measured step of another.
"""

import json
import os
import queue
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.spec import Spec
from sae.base.memory import available_memory

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "peers" / "step_worker.py"
WATCH_SECONDS = 0.05
SPARE = 400 << 20  # bytes: below this the machine itself is in danger


class OverCap(Exception):  # noqa: N818 -- an outcome to print, not an error
    """The system did not finish: too much memory, too much time, or an error of its own."""


@dataclass(frozen=True)
class Caps:
    """Limits of one process: resident bytes, seconds of a step, seconds of set-up."""

    memory: int = 20 << 30
    step_seconds: float = 120.0
    start_seconds: float = 300.0


class Worker:
    """A running process with a built system. `facts` is what it told of itself."""

    def __init__(
        self, system: str, python: str, spec: Spec, dead_share: float, caps: Caps, log: Path
    ) -> None:
        self.system, self.caps, self._log = system, caps, log
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        if system.startswith("loupe"):
            environment["PYTHONPATH"] = str(ROOT)
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [python, str(SCRIPT), system],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self._answers: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._answer(caps.start_seconds, "start")
        request = {"do": "build", "spec": asdict(spec), "dead_share": dead_share}
        self.facts = self._ask(request, caps.start_seconds)

    def step(self) -> dict[str, Any]:
        """One timed step: {"seconds", "peak_bytes"}. Raises `OverCap`, the process then dead."""
        self.process.send_signal(signal.SIGCONT)
        answer = self._ask({"do": "step"}, self.caps.step_seconds)
        self.process.send_signal(signal.SIGSTOP)
        return answer

    @property
    def resident(self) -> int:
        """Bytes in main memory; 0 where the system doesn't say (no /proc)."""
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._listener.join()
        with suppress(BrokenPipeError):  # of a request that it no longer read
            if self.process.stdin is not None:
                self.process.stdin.close()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self.process.stdin is None:
            raise OverCap("no way to ask")
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise OverCap(self._last_words()) from None
        return self._answer(seconds, request["do"])

    def _answer(self, seconds: float, what: str) -> dict[str, Any]:
        began = time.monotonic()
        while True:
            try:
                line = self._answers.get(timeout=WATCH_SECONDS)
            except queue.Empty:
                self._check(time.monotonic() - began, seconds, what)
                continue
            if not line:
                raise OverCap(self._last_words())
            return json.loads(line)

    def _check(self, passed: float, seconds: float, what: str) -> None:
        note = ""
        if self.resident > self.caps.memory:
            note = f"over the memory cap of {self.caps.memory / 2**30:.0f} GiB"
        elif available_memory() < SPARE:
            note = f"out of memory at {self.resident / 2**30:.1f} GiB"
        elif passed > seconds:
            note = f"over the time cap of {seconds:.0f} s for one {what}"
        if note:
            self.close()
            raise OverCap(note)

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            self._answers.put(line)
        self._answers.put("")

    def _last_words(self) -> str:
        """Why a process that has closed its output ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.close()
        if self.process.returncode == -signal.SIGKILL:
            return "killed by the machine, most likely for its memory"
        lines = [x.strip() for x in self._log.read_text(errors="replace").splitlines() if x.strip()]
        return f"failed: {lines[-1][:200] if lines else self.process.returncode}"


class Pool:
    """The workers of one case. What doesn't fit beside the next step is closed, and built again
    when its own turn comes."""

    def __init__(
        self, pythons: dict[str, str], spec: Spec, dead_share: float, caps: Caps, folder: Path
    ) -> None:
        self.pythons, self.spec, self.dead_share = pythons, spec, dead_share
        self.caps, self.folder = caps, folder
        self.running: dict[str, Worker] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.peaks: dict[str, int] = {}

    def step(self, system: str, warm_up: int) -> dict[str, Any]:
        """A timed step, straight after `warm_up` untimed ones: as in a training that goes on.

        A step after a pause is slower, and the more so the more memory it takes and gives back.
        """
        self._make_room(system)
        worker = self.running.get(system)
        if worker is None:
            log = self.folder / f"{system}.log"
            python = self.pythons[system]
            worker = Worker(system, python, self.spec, self.dead_share, self.caps, log)
            self.running[system] = worker
            self.facts[system] = worker.facts
        for _ in range(warm_up):
            worker.step()
        answer = worker.step()
        self.peaks[system] = max(self.peaks.get(system, 0), answer["peak_bytes"])
        return answer

    def forget(self, system: str) -> None:
        if system in self.running:
            self.running.pop(system).close()

    def close(self) -> None:
        for system in list(self.running):
            self.forget(system)

    def _make_room(self, system: str) -> None:
        if self.spec.device != "cpu":
            return
        own = self.running[system].resident if system in self.running else 0
        need = self.peaks.get(system, self._guess(system)) * 1.1 + (1 << 30) - own
        others = {s: w.resident for s, w in self.running.items() if s != system}
        for other in sorted(others, key=lambda s: -others[s]):
            if available_memory() >= need:
                return
            self.forget(other)

    def _guess(self, system: str) -> int:
        """Bytes, before the first measurement: dense (B, F) tensors, weights and Adam's moments."""
        dense = {"sparsify": 3, "dictionary_learning": 6, "sae_lens": 8}.get(system, 1)
        spec = self.spec
        return 4 * (dense * spec.batch * spec.width + 8 * spec.width * spec.d)
