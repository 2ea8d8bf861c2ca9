"""Trains one system on rows of activations in its own environment: see `benchmarks.quality`.

    PYTHON train_worker.py SYSTEM '{"d": ..., "width": ..., ...}' rows.npy OUT_FOLDER

Batch i is the rows [i B, (i + 1) B) of the file (N, D), which starts over when it is used up. The
coder is saved into OUT_FOLDER by the system's own code. Prints {"seconds", "step_seconds", ...}:
the loop with its reading, and the steps alone; importing, building and saving left out.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from spec import Spec, load_system

SAMPLE_ROWS = 65_536  # for what a system sets from data before its first step


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the system prints goes to the log
    name, options, file, out = sys.argv[1:]
    spec = Spec(**json.loads(options))
    rows = np.load(file, mmap_mode="r")
    batches = len(rows) // spec.batch
    torch.manual_seed(spec.seed)
    system = load_system(name).System(spec, as_tensor(rows[:SAMPLE_ROWS], spec))
    stepping = 0.0
    began = time.perf_counter()
    for step in range(spec.steps):
        start = step % batches * spec.batch
        x_BD = as_tensor(rows[start : start + spec.batch], spec)
        before = time.perf_counter()
        system.step(x_BD)
        stepping += time.perf_counter() - before
    if spec.device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    system.save(Path(out))
    found = {"seconds": seconds, "step_seconds": stepping, "threads": torch.get_num_threads()}
    answers.write(json.dumps(found) + "\n")


def as_tensor(rows: np.ndarray, spec: Spec) -> torch.Tensor:
    return torch.from_numpy(np.asarray(rows, dtype=np.float32)).to(spec.device) * spec.scale


if __name__ == "__main__":
    main()
