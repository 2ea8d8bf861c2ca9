"""Launching Triton's kernels: where their tensors are, and whether it can be done at all."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 4  # of a program, Triton's own default


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = WARPS, **constants: Any
) -> None:
    """Runs a kernel on the device of its first argument, a tensor.

    Triton itself takes the current device, which is cuda:0 however many others hold tensors.
    """
    if 0 in grid:  # of an empty batch; CUDA refuses to launch nothing
        return
    with torch.cuda.device_of(arguments[0]):
        # Fused multiply-adds are said to be wanted: Triton's default for them is changing.
        kernel[grid](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)


def warps_for(columns: int) -> int:
    """Of a program that holds whole rows, a power of two like `columns`: up to 8 values of each
    array in a thread's registers, of very wide rows more."""
    return min(16, max(WARPS, columns // 256))


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
