"""One system of `benchmarks.train_step`, in its own environment: JSON lines in, JSON lines out.

    PYTHON step_worker.py SYSTEM

    {"do": "build", "spec": {...}, "dead_share": 0.05}  ->  {"baseline": bytes, "versions": {...}}
    {"do": "step"}                                      ->  {"seconds", "peak_bytes"}

Memory is the process's high-water mark (VmHWM, set back before building; `ru_maxrss` where there
is no /proc) over what it held once everything was imported and the batches were made; on CUDA,
the most that torch had allocated.
"""

import json
import os
import platform
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from spec import Spec, load_system, synthetic_batches

BATCHES = 4
PACKAGES = ("torch", "numpy", "numba", "triton", "eai-sparsify", "dictionary-learning", "sae-lens")


class Server:
    """Keeps one built system and answers requests about it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module = load_system(name)
        self.revives = not name.startswith("gemm")
        self.steps = 0

    def build(self, spec: dict[str, Any], dead_share: float) -> dict[str, Any]:
        self.spec = Spec(**spec)
        torch.manual_seed(self.spec.seed)
        self.batches = synthetic_batches(self.spec, BATCHES)
        count = int(dead_share * self.spec.width)
        shuffled = torch.randperm(self.spec.width, generator=torch.Generator().manual_seed(2))
        self.dead = shuffled[:count].sort().values.to(self.spec.device)
        torch.ones(1024, 1024) @ torch.ones(1024, 1024)  # thread pools and scratch space
        self.baseline = baseline(self.spec.device)
        if self.revives:
            self.system = self.module.System(self.spec, self.batches[0])
        else:
            dtype = self.name.removeprefix("gemm_")
            self.system = self.module.System(self.spec, self.batches[0], dtype)
        if self.revives and len(self.dead):
            # So quiet that they win no place among the k, but half of them positive for AuxK.
            self.system.encoder_FD[self.dead] *= 0.01
        return {
            "baseline": self.baseline,
            "threads": torch.get_num_threads(),
            "device": device_name(self.spec.device),
            "versions": versions(),
            "about": getattr(self.module, "ABOUT", ""),
        }

    def step(self) -> dict[str, Any]:
        x_BD = self.batches[self.steps % BATCHES]
        if self.revives and len(self.dead):
            self.system.flag_dead(self.dead)
        synchronise(self.spec.device)
        began = time.perf_counter()
        self.system.step(x_BD)
        synchronise(self.spec.device)
        seconds = time.perf_counter() - began
        self.steps += 1
        return {"seconds": seconds, "peak_bytes": self.peak()}

    def peak(self) -> int:
        if self.spec.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated() - self.baseline
        return high_water() - self.baseline


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def baseline(device: str) -> int:
    """What is held before the system is built; the mark of the most is set back to it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    reset_high_water()
    return high_water()


def high_water() -> int:
    """Bytes; unlike `ru_maxrss`, VmHWM doesn't inherit the mark of the process that started us."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_high_water() -> None:
    """Forgets the mark that importing left (Linux); without it small systems would show 0."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the system prints goes to the log
    server = Server(sys.argv[1])
    answers.write(json.dumps({"imported": sys.argv[1]}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        answer = server.build(**request) if do == "build" else server.step()
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
