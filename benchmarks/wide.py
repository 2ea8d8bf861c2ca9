"""Steps of a very wide TopK coder: do they run, how long do they take, how much memory.

    python -m benchmarks.wide [--width 1048576] [--steps 3] [--dead-share 0.5] [--save FOLDER]

The trainer and the batches of `benchmarks.train_step`, d = 768, K = 32, B = 4096. The yardstick is
one bf16 encoder product in chunks of the rows that the CPU backend takes. With `--save`, the coder
and a checkpoint are written, and a process of its own goes on from there.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from loupe_system import System  # pyright: ignore[reportMissingImports]
from spec import Spec, synthetic_batches  # pyright: ignore[reportMissingImports]

from sae.coders import save_coder
from sae.kernels import chunks
from sae.training import CoderTrainer
from sae.training.checkpoint import load_checkpoint, save_checkpoint

REPEATS = 3  # of the yardstick


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps of a very wide coder.")
    parser.add_argument("--width", type=int, default=1 << 20)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dead-share", type=float, default=0.0, help="of latents, for AuxK")
    parser.add_argument("--save", type=Path, help="an empty folder for coder and checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from what --save has")
    given = parser.parse_args()
    spec = Spec(768, given.width, 32, 4096, steps=100_000, auxk=given.dead_share > 0)
    batches = synthetic_batches(spec, 2)
    before = peak()
    began = time.perf_counter()
    system = System(spec, batches[0])
    moments = system.trainer.optimizer.moments["W_enc_FD"][0]
    print(
        f"F={spec.width:,}: built in {time.perf_counter() - began:.0f} s, "
        f"moments in {str(moments.dtype).removeprefix('torch.')}"
    )
    if given.resume:
        began = time.perf_counter()
        step = load_checkpoint(given.save, [system.trainer], "wide", print)
        report(f"resumed at step {step}", began, before)
    dead = torch.randperm(spec.width, generator=torch.Generator().manual_seed(0))
    dead = dead[: int(given.dead_share * spec.width)]
    for step in range(given.steps):
        system.trainer.dead.silent_F[dead] = system.trainer.dead.after
        began = time.perf_counter()
        log = system.trainer.step(batches[step % 2])
        report(f"step {step}, loss {float(log.loss):.3f}", began, before)
    if given.save and not given.resume:
        save(system.trainer, given.save, before)
        options = ["--width", str(given.width), "--steps", "1", "--save", str(given.save)]
        options += ["--dead-share", str(given.dead_share)]
        del system
        subprocess.run([sys.executable, "-m", "benchmarks.wide", *options, "--resume"], check=True)
        return
    print(f"bf16 encoder product: {product_seconds(spec, batches[0]):.1f} s")


def save(trainer: CoderTrainer, folder: Path, before: int) -> None:
    began = time.perf_counter()
    save_checkpoint(folder, [trainer], "wide")
    report("checkpoint", began, before)
    began = time.perf_counter()
    save_coder(trainer.finished_coder(borrow=True), folder / "coder")
    report("coder saved", began, before)


def report(what: str, began: float, before: int) -> None:
    held = (peak() - before) / 2**30
    print(f"{what}: {time.perf_counter() - began:.1f} s, peak {held:.1f} GiB", flush=True)


def peak() -> int:
    """Bytes: the most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def product_seconds(spec: Spec, x_BD: torch.Tensor) -> float:
    W_FD = torch.randn(spec.width, spec.d, dtype=torch.bfloat16)
    rows = chunks.cpu_score_rows(spec.width)
    out = torch.empty(rows, spec.width, dtype=torch.bfloat16)
    samples = []
    for _ in range(1 + REPEATS):  # the first one finds its kernels, and touches its memory
        began = time.perf_counter()
        for part in x_BD.bfloat16().split(rows):
            torch.mm(part, W_FD.T, out=out[: len(part)])
        samples.append(time.perf_counter() - began)
    return statistics.median(samples[1:])


if __name__ == "__main__":
    main()
