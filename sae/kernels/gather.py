"""Backend of plain gathers and scatters, in chunks: for half precision, and for Apple's MPS.

It asks of a device no more than indexing, and adds up in float32 what is of half precision. No
(N, D) tensor exists for more than a chunk of the entries. Where `index_add_` is not sequential
(everywhere but on a CPU), equal inputs give equal sums up to rounding, not to the bit.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sae.kernels import chunks, sparse
from sae.kernels.codes import Support


def row_topk(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.row_topk`: torch's own product and top-k, winners scored again here."""
    return sparse.row_topk(x_BD, W_FD, b_F, k, dtype, dots=gathered_dots)


def gathered_dots(x_BD: Tensor, W_FD: Tensor, support: Support) -> Tensor:
    """(N,): x_b · W[i] for each entry (b, i) of the support."""
    precise = _sum_dtype(W_FD)
    out_N = x_BD.new_empty(len(support.indices_N))
    for part in _chunks(len(out_N), W_FD.shape[1]):
        rows_ND = x_BD[support.row_of_N[part]].to(precise) * W_FD[support.indices_N[part]]
        out_N[part] = rows_ND.sum(dim=1).to(out_N.dtype)
    return out_N


def rows_sum(acts_N: Tensor, W_FD: Tensor, support: Support) -> Tensor:
    """(B, D): for each row, the sum of its latents' W rows times their activations."""
    return _weighted(acts_N, support.indices_N, W_FD, support.row_of_N, support.rows)


def latents_sum(values_N: Tensor, x_BD: Tensor, support: Support) -> Tensor:
    """(F, D): for each latent, the sum of its tokens' x rows times their values."""
    return _weighted(values_N, support.row_of_N, x_BD, support.indices_N, support.width)


def _weighted(
    values_N: Tensor, rows_N: Tensor, table: Tensor, segment_N: Tensor, segments: int
) -> Tensor:
    """(segments, D): out[segment[n]] += values[n] * table[rows[n]]."""
    precise = _sum_dtype(table)
    out = table.new_zeros(segments, table.shape[1], dtype=precise)
    for part in _chunks(len(values_N), table.shape[1]):
        rows_ND = table[rows_N[part]].to(precise) * values_N[part, None].to(precise)
        out.index_add_(0, segment_N[part], rows_ND)
    return out.to(table.dtype)


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype is torch.float64 else torch.float32


def _chunks(entries: int, width: int) -> Iterator[slice]:
    size = max(1, chunks.GATHERED // max(1, width))
    return (slice(first, first + size) for first in range(0, entries, size))
