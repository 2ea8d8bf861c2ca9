"""Launching Triton's kernels: where their tensors are, and whether it can be done at all."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Runs a kernel on the device of its first argument, a tensor.

    Triton itself takes the current device, which is cuda:0 however many others hold tensors.
    """
    if 0 in grid:  # of an empty batch; CUDA refuses to launch nothing
        return
    with torch.cuda.device_of(arguments[0]):
        # Fused multiply-adds are said to be wanted: Triton's default for them is changing.
        kernel[grid](*arguments, **constants, enable_fp_fusion=True)


def accumulator(tensor: Tensor) -> tl.dtype:
    """The precision in which kernels add up values of this tensor: float32 for half precision."""
    return tl.float64 if tensor.dtype is torch.float64 else tl.float32


def probe(device: str) -> None:
    """Builds and runs a kernel; raises whatever Triton, its compiler or the C compiler raises."""
    out = torch.zeros(1, device=device)
    launch(_write_one, (1,), out)
    if float(out) != 1:
        raise RuntimeError("a kernel was launched and left no trace")


@triton.jit
def _write_one(out):
    tl.store(out, 1.0)
