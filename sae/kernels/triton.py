"""CUDA backend in Triton: the same sums as `sparse.py`, without its copies, and a fused Adam.

Every kernel reads each active row of a table once and accumulates in the table's precision.
Where the work of a program depends on the data (entries of a row or of a latent), it is a loop
over tiles of entries, so that many loads are in flight. Sums run in a fixed order: the same
input gives the same bits.
"""

import warnings
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.kernels import adam, sparse
from sae.kernels.adam import AdamStep, RowGradient
from sae.kernels.codes import Support

ENTRIES = 16  # of a row or latent that are loaded at once
COLUMNS = 128  # of D that a program works on at once
FLAT = 1024  # values that a program of the flat Adam updates


@triton.jit
def _gathered_dots(x, W, offsets, indices, out, D, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):
    """One program per row b: out[n] = x[b] · W[indices[n]]."""
    row = tl.program_id(0).to(tl.int64)
    start, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    for first in range(start, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        there = entry < end
        latent = tl.load(indices + entry, mask=there, other=0)
        total = tl.zeros((ENTRIES,), dtype=out.dtype.element_ty)
        for base in range(0, D, COLUMNS):
            d = base + tl.arange(0, COLUMNS)
            inside = d < D
            x_d = tl.load(x + row * D + d, mask=inside, other=0)
            tile = tl.load(
                W + latent[:, None] * D + d[None, :], mask=there[:, None] & inside[None, :], other=0
            )
            total += tl.sum(tile * x_d[None, :], axis=1)
        tl.store(out + entry, total, mask=there)


@triton.jit
def _weighted_sums(
    values, rows, table, offsets, out, D, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr
):
    """One program per segment s and block of columns: out[s] = Σ values[n] * table[rows[n]]."""
    segment = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = d < D
    start, end = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    total = tl.zeros((COLUMNS,), dtype=out.dtype.element_ty)
    for first in range(start, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        there = entry < end
        row = tl.load(rows + entry, mask=there, other=0)
        value = tl.load(values + entry, mask=there, other=0)
        tile = tl.load(
            table + row[:, None] * D + d[None, :], mask=there[:, None] & inside[None, :], other=0
        )
        total += tl.sum(tile * value[:, None], axis=0)
    tl.store(out + segment * D + d, total, mask=inside)


@triton.jit
def _adam_unit_rows(W, grad, m, v, scale, size, root, eps, D, COLUMNS: tl.constexpr):
    """One program per unit row: project, Adam, renormalise; COLUMNS ≥ D."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, COLUMNS)
    inside = d < D
    at = row * D + d
    w = tl.load(W + at, mask=inside, other=0)
    g = tl.load(grad + at, mask=inside, other=0)
    g = (g - tl.sum(g * w) * w) * scale
    m_new = 0.9 * tl.load(m + at, mask=inside, other=0) + 0.1 * g
    v_new = 0.999 * tl.load(v + at, mask=inside, other=0) + 0.001 * g * g
    w = w - size * m_new / (tl.sqrt(v_new) * root + eps)
    square = tl.sum(w * w)
    w = tl.where(square > 0, w / tl.sqrt(square), w)  # pyright: ignore
    tl.store(m + at, m_new, mask=inside)
    tl.store(v + at, v_new, mask=inside)
    tl.store(W + at, w, mask=inside)


@triton.jit
def _adam_flat(W, grad, m, v, scale, size, root, eps, N, FLAT: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * FLAT + tl.arange(0, FLAT)
    inside = at < N
    g = tl.load(grad + at, mask=inside, other=0) * scale
    m_new = 0.9 * tl.load(m + at, mask=inside, other=0) + 0.1 * g
    v_new = 0.999 * tl.load(v + at, mask=inside, other=0) + 0.001 * g * g
    w = tl.load(W + at, mask=inside, other=0)
    tl.store(m + at, m_new, mask=inside)
    tl.store(v + at, v_new, mask=inside)
    tl.store(W + at, w - size * m_new / (tl.sqrt(v_new) * root + eps), mask=inside)


def row_topk(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.row_topk`: torch's own product and top-k, winners scored again in Triton."""
    return sparse.row_topk(x_BD, W_FD, b_F, k, dtype, dots=gathered_dots)


def gathered_dots(x_BD: Tensor, W_FD: Tensor, support: Support) -> Tensor:
    """(N,): x_b · W[i] for each entry (b, i) of the support."""
    out_N = x_BD.new_empty(len(support.indices_N))
    _gathered_dots[(support.rows,)](
        x_BD.contiguous(),
        W_FD.contiguous(),
        support.offsets_B1,
        support.indices_N,
        out_N,
        x_BD.shape[1],
        ENTRIES=ENTRIES,  # pyright: ignore[reportArgumentType]
        COLUMNS=COLUMNS,  # pyright: ignore[reportArgumentType]
    )
    return out_N


def rows_sum(acts_N: Tensor, W_FD: Tensor, support: Support) -> Tensor:
    """(B, D): for each row, the sum of its latents' W rows times their activations."""
    return _sums(acts_N, support.indices_N, W_FD, support.offsets_B1)


def latents_sum(values_N: Tensor, x_BD: Tensor, support: Support) -> Tensor:
    """(F, D): for each latent, the sum of its tokens' x rows times their values."""
    order, rows, offsets = support.latent_major
    return _sums(values_N[order], rows, x_BD, offsets)


def adam_rows(W: Tensor, gradient: RowGradient, m: Tensor, v: Tensor, step: AdamStep) -> None:
    """As `adam.adam_rows`; in one pass over memory where the gradient is dense."""
    if gradient.rows_U is not None or gradient.slept_U is not None or m.dtype is not W.dtype:
        adam.adam_rows(W, gradient, m, v, step)
        return
    grad, numbers = gradient.values, (step.scale, step.step_size, step.root_correction, step.eps)
    if step.unit:
        rows, width = W.shape
        columns = triton.next_power_of_2(width)
        _adam_unit_rows[(rows,)](W, grad, m, v, *numbers, width, COLUMNS=columns)  # pyright: ignore
    else:
        count = W.numel()
        _adam_flat[(triton.cdiv(count, FLAT),)](W, grad, m, v, *numbers, count, FLAT=FLAT)  # pyright: ignore


@cache
def can_launch(device: str) -> bool:
    """Whether Triton can build and run a kernel here; says once why not."""
    try:
        one = torch.ones(1, device=device)
        _adam_flat[(1,)](one, one, one.clone(), one.clone(), 1.0, 0.0, 1.0, 1.0, 1, FLAT=FLAT)  # pyright: ignore
    except Exception as error:  # Triton raises whatever its compiler or the C compiler raises
        warnings.warn(
            f"Triton cannot run on this machine ({type(error).__name__}: {error}); Loupe works "
            "with torch's own sparse routines, which are slower. A C compiler is what is most "
            "often missing.",
            stacklevel=2,
        )
        return False
    return True


def _sums(values_N: Tensor, rows_N: Tensor, table: Tensor, offsets: Tensor) -> Tensor:
    segments, width = len(offsets) - 1, table.shape[1]
    out = table.new_empty(segments, width)
    _weighted_sums[(segments, triton.cdiv(width, COLUMNS))](
        values_N.contiguous(),
        rows_N.contiguous(),
        table.contiguous(),
        offsets,
        out,
        width,
        ENTRIES=ENTRIES,  # pyright: ignore[reportArgumentType]
        COLUMNS=COLUMNS,  # pyright: ignore[reportArgumentType]
    )
    return out
