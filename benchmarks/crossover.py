"""At which share of active entries dense products become the faster ones, for `coders.entries`.

python -m benchmarks.crossover [--d 256] [--f 4096] [--batch 1024] [--threads 1]

Both forms of a ReLU coder's forward and backward pass, interleaved, medians, in milliseconds.
"""

import argparse
import time
from statistics import median

import torch

from sae.coders import Coder, entries, make_coder
from sae.kernels import get_kernels

SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128)
DENSE, SPARSE = 0.0, 1.0  # values of DENSE_ABOVE that choose a form whatever the density


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--d", type=int, default=256)
    parser.add_argument("--f", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    coder = make_coder("relu", given.d, given.f, l1=1.0)
    coder.initialise(torch.zeros(given.d), torch.Generator().manual_seed(0))
    x_BD = torch.randn(given.batch, given.d)
    pre_BF = x_BD @ coder.W_enc_FD.detach().T
    print(f"D={given.d} F={given.f} B={given.batch}, threads {given.threads}")
    print(f"{'share':>8} {'L0':>7} {'dense ms':>9} {'sparse ms':>9}")
    for share in SHARES:
        cut = pre_BF.flatten().kthvalue(int(pre_BF.numel() * (1 - share))).values
        coder.b_enc_F.data.fill_(-float(cut))
        seconds: dict[float, list[float]] = {DENSE: [], SPARSE: []}
        for _ in range(given.repeat + 1):
            for form, found in seconds.items():
                entries.DENSE_ABOVE = form
                found.append(one_pass(coder, x_BD))
        dense, sparse = (1e3 * median(seconds[form][1:]) for form in (DENSE, SPARSE))
        print(f"{share:8.4f} {share * given.f:7.0f} {dense:9.1f} {sparse:9.1f}")


def one_pass(coder: Coder, x_BD: torch.Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    began = time.perf_counter()
    forward = coder.training_forward(x_BD, get_kernels())
    penalty = 0 if forward.penalty is None else forward.penalty
    ((x_BD - forward.x_hat_BD).square().sum() / x_BD.numel() + penalty).backward()
    seconds = time.perf_counter() - began
    coder.zero_grad()
    return seconds


if __name__ == "__main__":
    main()
