"""The backends that are tested, each on a device on which it can work here.

Triton's kernels run on a GPU where there is one, and else in its interpreter (tests/conftest.py).
"""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from sae.kernels import Kernels, Support, get_kernels

CUDA = torch.cuda.is_available()
PLACES = [("sparse", "cpu"), ("cpu", "cpu"), ("gather", "cpu")]
if CUDA:
    PLACES += [("sparse", "cuda"), ("gather", "cuda")]
if find_spec("triton") is not None:
    PLACES.append(("triton", "cuda" if CUDA else "cpu"))
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="TRITON IS NOT INSTALLED: its kernels were not tested"
)
needs_gpu = pytest.mark.skipif(not CUDA, reason="NO CUDA DEVICE: this was not tested")
REFERENCE = get_kernels("reference")


def kernels_at(backend: str, device: str) -> Kernels:
    return get_kernels(backend, device)  # pyright: ignore[reportArgumentType]


def moved(support: Support, device: str) -> Support:
    there = support.indices_N.to(device), support.offsets_B1.to(device)
    return replace(support, indices_N=there[0], offsets_B1=there[1])
