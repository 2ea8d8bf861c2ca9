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
    mapped = _mapped(values, values.dtype)
    return values if mapped is None else mapped.copy_(values)


def zeros_on_large_pages(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros of the shape and place of `like`, in such memory where `on_large_pages` would use it.

    Nothing is written, so that a page takes no memory before it is used.
    """
    mapped = _mapped(like, dtype)
    return torch.zeros_like(like, dtype=dtype) if mapped is None else mapped


def _mapped(like: Tensor, dtype: torch.dtype) -> Tensor | None:
    """A fresh mapping, which the system fills with zeros; None where it would be worth nothing."""
    size = like.numel() * dtype.itemsize
    if like.device.type != "cpu" or size < LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(buffer, dtype=dtype).view(like.shape)
