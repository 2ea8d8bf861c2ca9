"""Tensors in large pages of memory."""

import mmap

import torch
from torch import Tensor

LEAST = 4 << 20  # bytes: less is not worth a mapping of its own


def on_large_pages(values: Tensor) -> Tensor:
    """A copy of a CPU tensor in memory that Linux may map in pages of 2 MB.

    Rows that are gathered from all over a dictionary each cost a look-up of their page; with
    pages of 4 KB most of these miss. Elsewhere, and for small tensors: `values` itself.
    """
    size = values.numel() * values.element_size()
    if values.device.type != "cpu" or size < LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return values
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer.madvise(mmap.MADV_HUGEPAGE)
    out = torch.frombuffer(buffer, dtype=values.dtype).view(values.shape)
    return out.copy_(values)
