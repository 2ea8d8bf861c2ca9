"""Backend on torch's own sparse routines, in float32 and float64: work grows with N, not B * F.

A weighted sum of table rows per segment is an embedding bag; gathered dot products are a
sampled matrix product. No (N, D) tensor is built.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sae.kernels import chunks
from sae.kernels.codes import Support

SLACK = 8  # runners-up of a low-precision product that are scored again, at least
BIAS_COLUMNS = 8  # that a product gets for the bias: two, and a width that matrix units like

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
    low = dtype is not W_FD.dtype
    candidates = k
    x, W = x_BD, W_FD
    if low:
        candidates = min(k + slack(k), len(W_FD))
        x_BD, b_F = centred(x_BD, W_FD, b_F)
        x, W = _lowered(x_BD, W_FD, b_F, dtype)
    bias_F = None if low else b_F
    rows = chunks.score_rows(len(W), x.device)
    found = [_best(part, W, bias_F, candidates) for part in x.split(rows)]
    index_BC, scores_BC = map(torch.cat, zip(*found, strict=True))
    if not low:
        return index_BC, scores_BC
    support = Support.fixed(index_BC, len(W_FD))
    pre_BC = (dots or gathered_dots)(x_BD, W_FD, support).view_as(index_BC) + b_F[index_BC]
    best = pre_BC.topk(k, dim=1, sorted=False)
    return index_BC.gather(1, best.indices), best.values


def centred(x_BD: Tensor, W_FD: Tensor, b_F: Tensor) -> tuple[Tensor, Tensor]:
    """The same x · W + b as (x − m) · W + (b + m · W), m the rows' mean, where m is large.

    Coders that take their input as it is (transcoders) would lose to the rounding of m · W, in a
    product of low precision, what tells latents apart.
    """
    mean_D = x_BD.mean(dim=0)
    spread = x_BD.square().sum() / len(x_BD) - mean_D.square().sum()
    if mean_D.square().sum() <= spread:
        return x_BD, b_F
    return x_BD - mean_D, b_F + W_FD @ mean_D


def slack(k: int) -> int:
    """How many runners-up of a low-precision product are scored again.

    Rounding makes ties. Of normal scores about k · t² / 128 share one step of bfloat16 at the
    k-th, which lies t standard deviations out, and in any of them the k best may be hidden: at
    k = 512 of 131,072 latents (t = 2.7) two dozen.
    """
    return max(SLACK, k // 16)


def _best(x_BD: Tensor, W_FD: Tensor, b_F: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """(latents, scores) of the k largest of each row, of which dense scores exist in here alone:
    those of one chunk are gone before the next one's are made."""
    scores_BF = x_BD @ W_FD.T if b_F is None else torch.addmm(b_F, x_BD, W_FD.T)
    best = scores_BF.topk(k, dim=1, sorted=False)
    return best.indices, best.values


def _lowered(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x and W in `dtype`, widened so that their product has the bias in it, with twice its digits.

    W gets columns with the bias and with what the rounding took of it, x gets ones. Rounded once,
    a bias would move scores by as much as their own rounding does.
    """
    columns = W_FD.shape[1]
    x = x_BD.new_empty(len(x_BD), columns + BIAS_COLUMNS, dtype=dtype)
    W = W_FD.new_empty(len(W_FD), columns + BIAS_COLUMNS, dtype=dtype)
    x[:, :columns], W[:, :columns] = x_BD, W_FD
    x[:, columns:], W[:, columns:] = 1, 0
    W[:, columns] = b_F
    W[:, columns + 1] = b_F - W[:, columns].to(b_F.dtype)
    return x, W


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
