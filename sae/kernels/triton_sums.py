"""CUDA backend in Triton: the same sums as `sparse.py`, without its copies.

Every kernel reads each active row of a table once and accumulates in float32, or in float64
where the table is of it. Where the work of a program depends on the data (entries of a row or of
a latent), it is a loop over tiles of entries, so that many loads are in flight. No sum uses
atomics: each runs in a fixed order, so that the same input gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.kernels import sparse
from sae.kernels.codes import Support
from sae.kernels.triton_launch import accumulator, launch, warps_for

ENTRIES = 16  # of a row or latent that are loaded at once
COLUMNS = 128  # of D that a program works on at once
TILE = 4096  # values of the tile of a program that holds whole rows


@triton.jit
def _gathered_dots(
    x, W, offsets, indices, out, D, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr, SUM: tl.constexpr
):
    """One program per row b: out[n] = x[b] · W[indices[n]]."""
    row = tl.program_id(0).to(tl.int64)
    start, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    for first in range(start, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        there = entry < end
        latent = tl.load(indices + entry, mask=there, other=0)
        total = tl.zeros((ENTRIES,), dtype=SUM)
        for base in range(0, D, COLUMNS):
            d = base + tl.arange(0, COLUMNS)
            inside = d < D
            x_d = tl.load(x + row * D + d, mask=inside, other=0).to(SUM)
            tile = tl.load(
                W + latent[:, None] * D + d[None, :], mask=there[:, None] & inside[None, :], other=0
            )
            total += tl.sum(tile.to(SUM) * x_d[None, :], axis=1)
        tl.store(out + entry, total, mask=there)


@triton.jit
def _weighted_sums(
    values,
    rows,
    table,
    offsets,
    out,
    D,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
):
    """One program per segment s and block of columns: out[s] = Σ values[n] * table[rows[n]]."""
    segment = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = d < D
    start, end = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    total = tl.zeros((COLUMNS,), dtype=SUM)
    for first in range(start, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        there = entry < end
        row = tl.load(rows + entry, mask=there, other=0)
        value = tl.load(values + entry, mask=there, other=0).to(SUM)
        tile = tl.load(
            table + row[:, None] * D + d[None, :], mask=there[:, None] & inside[None, :], other=0
        )
        total += tl.sum(tile.to(SUM) * value[:, None], axis=0)
    tl.store(out + segment * D + d, total, mask=inside)


@triton.jit
def _decode_residual(
    acts,
    W,
    b,
    y,
    offsets,
    indices,
    residual,
    dots,
    squares,
    D,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
):
    """One program per row, COLUMNS ≥ D: residual = y − b − Σ acts · W[indices], its square, and
    its dots with the rows of W, which the sum has just left in the cache.

    The residual never leaves the registers between the two loops over the entries.
    """
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, COLUMNS)
    inside = d < D
    left = tl.load(y + row * D + d, mask=inside, other=0).to(SUM)
    left -= tl.load(b + d, mask=inside, other=0).to(SUM)
    start, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    for first in range(start, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        there = entry < end
        latent = tl.load(indices + entry, mask=there, other=0)
        act = tl.load(acts + entry, mask=there, other=0).to(SUM)
        tile = tl.load(
            W + latent[:, None] * D + d[None, :], mask=there[:, None] & inside[None, :], other=0
        )
        left -= tl.sum(tile.to(SUM) * act[:, None], axis=0)
    tl.store(residual + row * D + d, left, mask=inside)
    tl.store(squares + row, tl.sum(left * left))
    for first in range(start, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        there = entry < end
        latent = tl.load(indices + entry, mask=there, other=0)
        tile = tl.load(
            W + latent[:, None] * D + d[None, :], mask=there[:, None] & inside[None, :], other=0
        )
        tl.store(dots + entry, tl.sum(tile.to(SUM) * left[None, :], axis=1), mask=there)


def row_topk(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.row_topk`: torch's own product and top-k, winners scored again in Triton."""
    return sparse.row_topk(x_BD, W_FD, b_F, k, dtype, dots=gathered_dots)


def gathered_dots(x_BD: Tensor, W_FD: Tensor, support: Support) -> Tensor:
    """(N,): x_b · W[i] for each entry (b, i) of the support."""
    out_N = x_BD.new_empty(len(support.indices_N))
    launch(
        _gathered_dots,
        (support.rows,),
        x_BD.contiguous(),
        W_FD.contiguous(),
        support.offsets_B1,
        support.indices_N,
        out_N,
        x_BD.shape[1],
        ENTRIES=ENTRIES,
        COLUMNS=COLUMNS,
        SUM=accumulator(W_FD),
    )
    return out_N


def rows_sum(acts_N: Tensor, W_FD: Tensor, support: Support) -> Tensor:
    """(B, D): for each row, the sum of its latents' W rows times their activations."""
    return _sums(acts_N, support.indices_N, W_FD, support.offsets_B1)


def latents_sum(values_N: Tensor, x_BD: Tensor, support: Support) -> Tensor:
    """(F, D): for each latent, the sum of its tokens' x rows times their values."""
    order, rows, offsets = support.latent_major
    return _sums(values_N[order], rows, x_BD, offsets)


def decode_residual(
    acts_N: Tensor, W_FD: Tensor, b_D: Tensor, y_BD: Tensor, support: Support
) -> tuple[Tensor, Tensor, Tensor]:
    """As `Kernels.decode_residual`, in one pass over the rows."""
    y_BD = y_BD.contiguous()
    residual_BD, dots_N = torch.empty_like(y_BD), torch.empty_like(acts_N)
    total = torch.float64 if W_FD.dtype is torch.float64 else torch.float32
    squares_B = y_BD.new_empty(len(y_BD), dtype=total)
    columns = triton.next_power_of_2(y_BD.shape[1])
    launch(
        _decode_residual,
        (support.rows,),
        acts_N.contiguous(),
        W_FD.contiguous(),
        b_D.contiguous(),
        y_BD,
        support.offsets_B1,
        support.indices_N,
        residual_BD,
        dots_N,
        squares_B,
        y_BD.shape[1],
        ENTRIES=max(1, min(ENTRIES, TILE // columns)),
        COLUMNS=columns,
        SUM=accumulator(W_FD),
        warps=warps_for(columns),
    )
    return residual_BD, dots_N, squares_B.sum().to(y_BD.dtype)


def _sums(values_N: Tensor, rows_N: Tensor, table: Tensor, offsets: Tensor) -> Tensor:
    segments, width = len(offsets) - 1, table.shape[1]
    columns = min(COLUMNS, triton.next_power_of_2(width))
    out = table.new_empty(segments, width)
    launch(
        _weighted_sums,
        (segments, triton.cdiv(width, columns)),
        values_N.contiguous(),
        rows_N.contiguous(),
        table.contiguous(),
        offsets,
        out,
        width,
        ENTRIES=ENTRIES,
        COLUMNS=columns,
        SUM=accumulator(table),
    )
    return out
