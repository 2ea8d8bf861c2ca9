"""Sparse encode, decode and their gradients. `reference` defines the truth; see `dispatch`."""

from sae.kernels.codes import Codes, Support
from sae.kernels.dispatch import Backend, Kernels, get_kernels, kernels_for
from sae.kernels.select import select_above, select_batchtopk, select_positive, select_topk

__all__ = [
    "Backend",
    "Codes",
    "Kernels",
    "Support",
    "get_kernels",
    "kernels_for",
    "select_above",
    "select_batchtopk",
    "select_positive",
    "select_topk",
]
