"""Would one encoder product for all coders of a sweep be faster than one for each?

    python -m benchmarks.shared_product [--coders 8] [--threads 1] [--device cpu]

bfloat16 scores of one batch for several coders of equal shape: one product per coder, one product
with the encoders stacked, and one batched product; medians of interleaved repetitions. A shared
product also has to wait for every coder, and holds the scores of all at once.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

SHAPES = (  # (B, D, F)
    (512, 256, 1024),
    (512, 256, 4096),
    (512, 512, 4096),
    (2048, 768, 4096),
    (2048, 768, 16_384),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Products of a sweep's coders, apart and shared.")
    parser.add_argument("--coders", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    table = Table(title=f"{given.coders} coders, bfloat16 on {given.device}, ms")
    for name in ("B", "D", "F", "apart", "stacked", "batched", "best shared / apart"):
        table.add_column(name, justify="right")
    for batch, d, width in SHAPES:
        apart, stacked, batched = measure(given, batch, d, width)
        ratio = min(stacked, batched) / apart
        cells = [f"{1e3 * seconds:.1f}" for seconds in (apart, stacked, batched)]
        table.add_row(str(batch), str(d), str(width), *cells, f"{ratio:.2f}")
    Console().print(table)


def measure(given: argparse.Namespace, batch: int, d: int, width: int) -> list[float]:
    """Median seconds of the three forms, in the order of the table."""
    drawn = torch.Generator().manual_seed(0)
    x_BD = torch.randn(batch, d, generator=drawn).to(given.device)
    W_CFD = torch.randn(given.coders, width, d, generator=drawn).to(given.device, torch.bfloat16)
    W_ND = W_CFD.flatten(0, 1)
    centre_CD = torch.randn(given.coders, d, generator=drawn).to(given.device)  # as coders' b_dec

    def apart() -> object:
        pairs = zip(centre_CD, W_CFD, strict=True)
        return [(x_BD - c_D).bfloat16() @ W_FD.T for c_D, W_FD in pairs]

    def stacked() -> object:
        return x_BD.bfloat16() @ W_ND.T

    def batched() -> object:
        return torch.bmm((x_BD - centre_CD[:, None]).bfloat16(), W_CFD.mT)

    forms: list[Callable[[], object]] = [apart, stacked, batched]
    seconds: list[list[float]] = [[] for _ in forms]
    for _ in range(given.repeat + 1):
        for form, found in zip(forms, seconds, strict=True):
            found.append(timed(form, given.device))
    return [median(found[1:]) for found in seconds]


def timed(form: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    form()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
