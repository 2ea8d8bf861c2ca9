"""Backend on torch's own sparse routines, in float32 and float64: work grows with N, not B * F.

A weighted sum of table rows per segment is an embedding bag; gathered dot products are a
sampled matrix product. No (N, D) tensor is built.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sae.kernels.codes import Support

CHUNK_VALUES = 1 << 26  # values of the dense (rows, F) scores that exist at a time
SLACK = 8  # runners-up of a low-precision product that are scored again

with warnings.catch_warnings():
    # torch says once per process that CSR tensors are in beta; say it here, unheard.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0]), (1, 1))


def row_topk(
    x_BD: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    dtype: torch.dtype | None = None,
    dots: Callable[[Tensor, Tensor, Support], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference.row_topk`; candidates come from a product in `dtype`, `dots` scores them."""
    dtype = dtype or W_FD.dtype
    slack = 0 if dtype is W_FD.dtype else min(SLACK, len(W_FD) - k)
    W_low, b_low, x_low = W_FD.to(dtype), b_F.to(dtype), x_BD.to(dtype)
    rows = max(1, CHUNK_VALUES // len(W_FD))
    found = [
        torch.addmm(b_low, x, W_low.T).topk(k + slack, dim=1, sorted=False)
        for x in x_low.split(rows)
    ]
    index_BC = torch.cat([f.indices for f in found])
    if dtype is W_FD.dtype:
        return index_BC, torch.cat([f.values for f in found])
    support = Support.fixed(index_BC, len(W_FD))
    pre_BC = (dots or gathered_dots)(x_BD, W_FD, support).view_as(index_BC) + b_F[index_BC]
    best = pre_BC.topk(k, dim=1, sorted=False)
    return index_BC.gather(1, best.indices), best.values


def gathered_dots(x_BD: Tensor, W_FD: Tensor, support: Support) -> Tensor:
    """(N,): x_b · W[i] for each entry (b, i) of the support."""
    pattern = torch.sparse_csr_tensor(
        support.offsets_B1,
        support.indices_N,
        x_BD.new_zeros(len(support.indices_N)),
        (support.rows, support.width),
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(pattern, x_BD, W_FD.T, beta=0.0).values()


def rows_sum(acts_N: Tensor, W_FD: Tensor, support: Support) -> Tensor:
    """(B, D): for each row, the sum of its latents' W rows times their activations."""
    return _bag(support.indices_N, W_FD, support.offsets_B1, acts_N)


def latents_sum(values_N: Tensor, x_BD: Tensor, support: Support) -> Tensor:
    """(F, D): for each latent, the sum of its tokens' x rows times their values."""
    order, rows, offsets = support.latent_major
    return _bag(rows, x_BD, offsets, values_N[order])


def _bag(indices: Tensor, table: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(
        indices, table, offsets, per_sample_weights=weights, mode="sum", include_last_offset=True
    )
