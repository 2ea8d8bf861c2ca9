"""Adam in Triton: one pass over memory for each weight, in every form that `adam` knows.

A matrix is updated row by row, whether its rows are all of them or those that a batch touched,
whether they slept, stay on the unit sphere or are free, and whether their moments are kept in
float32 or in bfloat16. A vector has no rows and is updated in blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.kernels import adam
from sae.kernels.adam import AdamStep, RowGradient
from sae.kernels.triton_launch import launch, warps_for

FLAT = 1024  # values of a vector that a program updates
B1, B2 = tl.constexpr(adam.BETA1), tl.constexpr(adam.BETA2)


@triton.jit
def _unit(w):
    square = tl.sum(w * w)
    return tl.where(square > 0, w / tl.sqrt(square), w)


@triton.jit
def _widened(half):
    """float32 of the bits of bfloat16, an int16."""
    return (half.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _rounded(x, noise):
    """The bits of bfloat16, rounded up with the probability of the share that is cut off."""
    bits = x.to(tl.uint32, bitcast=True) + (noise.to(tl.uint32, bitcast=True) & 0xFFFF)
    return (bits >> 16).to(tl.uint16).to(tl.int16, bitcast=True)


@triton.jit(do_not_specialize=["seed"])
def _adam_rows(
    W,
    grad,
    m,
    v,
    rows,
    moves,
    fades_m,
    fades_v,
    scale,
    size,
    root,
    eps,
    seed,
    D,
    SOME: tl.constexpr,
    SLEPT: tl.constexpr,
    UNIT: tl.constexpr,
    HALF: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program per row: catch up, project, Adam, renormalise; COLUMNS ≥ D.

    SOME: the gradient holds the rows `rows` alone; SLEPT: by `moves` and the fades its rows
    catch up first; HALF: moments are the bits of bfloat16, rounded stochastically.
    """
    own = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + own) if SOME else own
    d = tl.arange(0, COLUMNS)
    inside = d < D
    at = row * D + d
    w = tl.load(W + at, mask=inside, other=0)
    g = tl.load(grad + own * D + d, mask=inside, other=0)
    m_own = tl.load(m + at, mask=inside, other=0)
    v_own = tl.load(v + at, mask=inside, other=0)
    if HALF:
        m_own, v_own = _widened(m_own), _widened(v_own)
    if SLEPT:
        w -= size * tl.load(moves + own) * m_own / (tl.sqrt(v_own) * root + eps)
        m_own *= tl.load(fades_m + own)
        v_own *= tl.load(fades_v + own)
        if UNIT:
            w = _unit(w)
    if UNIT:
        g -= tl.sum(g * w) * w
    g *= scale
    m_own = B1 * m_own + (1 - B1) * g
    v_own = B2 * v_own + (1 - B2) * g * g
    w -= size * m_own / (tl.sqrt(v_own) * root + eps)
    if UNIT:
        w = _unit(w)
    tl.store(W + at, w, mask=inside)
    if HALF:
        zero = d * 0
        noise_m, noise_v, _, _ = tl.philox(seed, d, row.to(tl.int32) + zero, zero, zero)
        tl.store(m + at, _rounded(m_own, noise_m), mask=inside)
        tl.store(v + at, _rounded(v_own, noise_v), mask=inside)
    else:
        tl.store(m + at, m_own, mask=inside)
        tl.store(v + at, v_own, mask=inside)


@triton.jit
def _adam_flat(W, grad, m, v, scale, size, root, eps, N, FLAT: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * FLAT + tl.arange(0, FLAT)
    inside = at < N
    g = tl.load(grad + at, mask=inside, other=0) * scale
    m_own = B1 * tl.load(m + at, mask=inside, other=0) + (1 - B1) * g
    v_own = B2 * tl.load(v + at, mask=inside, other=0) + (1 - B2) * g * g
    w = tl.load(W + at, mask=inside, other=0)
    tl.store(m + at, m_own, mask=inside)
    tl.store(v + at, v_own, mask=inside)
    tl.store(W + at, w - size * m_own / (tl.sqrt(v_own) * root + eps), mask=inside)


@triton.jit
def _tangent_squares(grad, W, rows, out, D, SOME: tl.constexpr, COLUMNS: tl.constexpr):
    """One program per row: out = ‖g‖² − (g·w)², for a row w of unit norm."""
    own = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + own) if SOME else own
    d = tl.arange(0, COLUMNS)
    inside = d < D
    g = tl.load(grad + own * D + d, mask=inside, other=0)
    along = tl.sum(g * tl.load(W + row * D + d, mask=inside, other=0))
    left = tl.sum(g * g) - along * along
    tl.store(out + own, tl.where(left < 0, 0.0, left))  # unlike a maximum, this keeps NaN


def adam_rows(W: Tensor, gradient: RowGradient, m: Tensor, v: Tensor, step: AdamStep) -> None:
    """As `adam.adam_rows`, in one pass over memory."""
    numbers = (step.scale, step.step_size, step.root_correction, step.eps)
    if W.ndim == 1:
        grid, count = (triton.cdiv(W.numel(), FLAT),), W.numel()
        launch(_adam_flat, grid, W, gradient.values, m, v, *numbers, count, FLAT=FLAT)
        return
    half = m.dtype is torch.bfloat16
    moments = (t.view(torch.int16) if half else t for t in (m, v))
    values, rows, slept = gradient.values, gradient.rows_U, gradient.slept_U
    columns = triton.next_power_of_2(W.shape[1])
    # A kernel that is told not to look at a tensor still wants one: W stands in.
    sleep = (W, W, W) if slept is None else adam.sleep_factors(slept, W.dtype)
    launch(
        _adam_rows,
        (len(values),),
        W,
        values,
        *moments,
        W if rows is None else rows,
        *sleep,
        *numbers,
        step.seed,
        W.shape[1],
        SOME=rows is not None,
        SLEPT=slept is not None,
        UNIT=step.unit,
        HALF=half,
        COLUMNS=columns,
        warps=warps_for(columns),
    )


def tangent_square(gradient: RowGradient, W_FD: Tensor) -> Tensor:
    """As `adam.tangent_square`."""
    values, rows, W = gradient.values, gradient.rows_U, W_FD.detach()
    squares_U = values.new_empty(len(values))
    columns = triton.next_power_of_2(W.shape[1])
    launch(
        _tangent_squares,
        (len(values),),
        values,
        W,
        W if rows is None else rows,
        squares_U,
        W.shape[1],
        SOME=rows is not None,
        COLUMNS=columns,
        warps=warps_for(columns),
    )
    return squares_U.sum()
