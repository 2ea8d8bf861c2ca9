"""The inner loops of `adam` on a CPU; what `loops` says of its loops holds for these."""

import numpy as np
from numba import njit

from sae.kernels.adam import BETA1, BETA2, PULL
from sae.kernels.loops import FAST


@njit(nogil=True, cache=True, fastmath=FAST)
def tangent_square(grad_UD, W_FD, rows_U, start, stop):
    """Σ over rows of ‖g − (g·w) w‖² = ‖g‖² − (g·w)², for rows w of unit norm."""
    total = 0.0
    for u in range(start, stop):
        g, w = grad_UD[u], W_FD[rows_U[u]]
        square = g.dtype.type(0)
        along = g.dtype.type(0)
        for d in range(len(g)):
            square += g[d] * g[d]
            along += g[d] * w[d]
        left = float(square) - float(along) * float(along)
        if not left < 0:  # as NaN is not
            total += left
    return total


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _normalise(w):
    square = w.dtype.type(0)
    for d in range(len(w)):
        square += w[d] * w[d]
    if square > 0:
        inverse = w.dtype.type(1) / np.sqrt(square)
        for d in range(len(w)):
            w[d] *= inverse


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")  # no test for division by 0
def _catch_up(w, m, v, slept, step_size, root_correction, eps, unit):
    """What `slept` steps without a gradient would have done to one row (see `adam`)."""
    real = w.dtype.type
    moves = PULL * (1 - PULL**slept) / (1 - PULL)
    size, root, eps_r = real(step_size * moves), real(root_correction), real(eps)
    fade_m, fade_v = real(BETA1**slept), real(BETA2**slept)
    for d in range(len(w)):
        w[d] -= size * m[d] / (np.sqrt(v[d]) * root + eps_r)
        m[d] *= fade_m
        v[d] *= fade_v
    if unit:
        _normalise(w)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _adam_row(w, g, m, v, scale, step_size, root_correction, eps, unit):
    real = w.dtype.type
    b1, one_b1, b2, one_b2 = real(BETA1), real(1 - BETA1), real(BETA2), real(1 - BETA2)
    size, root, eps_r, factor = real(step_size), real(root_correction), real(eps), real(scale)
    along = real(0)
    if unit:
        for d in range(len(w)):
            along += g[d] * w[d]
    for d in range(len(w)):
        gd = (g[d] - along * w[d]) * factor
        md = b1 * m[d] + one_b1 * gd
        vd = b2 * v[d] + one_b2 * gd * gd
        m[d] = md
        v[d] = vd
        w[d] -= size * md / (np.sqrt(vd) * root + eps_r)
    if unit:
        _normalise(w)


@njit(nogil=True, cache=True)
def adam_rows(
    W_FD,
    grad_UD,
    m_FD,
    v_FD,
    rows_U,
    slept_U,
    scale,
    step_size,
    root_correction,
    eps,
    unit,
    _seed,
    start,
    stop,
):
    """`adam.adam_rows` on rows_U[start:stop], moments in the precision of W."""
    for u in range(start, stop):
        f = rows_U[u]
        w, m, v = W_FD[f], m_FD[f], v_FD[f]
        if slept_U[u] > 0:
            _catch_up(w, m, v, slept_U[u], step_size, root_correction, eps, unit)
        _adam_row(w, grad_UD[u], m, v, scale, step_size, root_correction, eps, unit)


@njit(nogil=True, cache=True)
def _mixed(x):
    """A hash of 32 bits (the finaliser of MurmurHash3, public domain)."""
    x ^= x >> np.uint32(16)
    x = np.uint32(x * np.uint32(0x85EBCA6B))
    x ^= x >> np.uint32(13)
    x = np.uint32(x * np.uint32(0xC2B2AE35))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit(nogil=True, cache=True)
def _load_bfloat16(half, bits):
    for d in range(len(half)):
        bits[d] = np.uint32(half[d]) << np.uint32(16)


@njit(nogil=True, cache=True)
def _store_bfloat16(m_bits, v_bits, m_half, v_half, key):
    """Rounds up with the probability of the share that is cut off: m by the lower half of one
    random word per element, v by its upper half."""
    for d in range(len(m_half)):
        noise = _mixed(np.uint32(key + np.uint32(d) * np.uint32(0x9E3779B9)))
        m_half[d] = np.uint16(np.uint32(m_bits[d] + (noise & np.uint32(0xFFFF))) >> np.uint32(16))
        v_half[d] = np.uint16(np.uint32(v_bits[d] + (noise >> np.uint32(16))) >> np.uint32(16))


@njit(nogil=True, cache=True)
def adam_rows_bfloat16(
    W_FD,
    grad_UD,
    m_FD,
    v_FD,
    rows_U,
    slept_U,
    scale,
    step_size,
    root_correction,
    eps,
    unit,
    seed,
    start,
    stop,
):
    """As `adam_rows`; the moments are the bits of bfloat16, rounded stochastically."""
    width = W_FD.shape[1]
    m_bits, v_bits = np.empty(width, np.uint32), np.empty(width, np.uint32)
    m, v = m_bits.view(np.float32), v_bits.view(np.float32)
    for u in range(start, stop):
        f = rows_U[u]
        w = W_FD[f]
        _load_bfloat16(m_FD[f], m_bits)
        _load_bfloat16(v_FD[f], v_bits)
        if slept_U[u] > 0:
            _catch_up(w, m, v, slept_U[u], step_size, root_correction, eps, unit)
        _adam_row(w, grad_UD[u], m, v, scale, step_size, root_correction, eps, unit)
        key = _mixed(np.uint32(_mixed(np.uint32(seed)) + np.uint32(f)))
        _store_bfloat16(m_bits, v_bits, m_FD[f], v_FD[f], key)
