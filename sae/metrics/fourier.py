"""Fourier power of functions of (a, b) modulo p: how much of a latent is one frequency.

A function on the grid of all pairs is a sum of waves e^{2πi(ka + lb)/p}. Of frequency k,
1 ≤ k ≤ (p − 1)/2, are the waves at ±(k, k), ±(k, 0) and ±(0, k): sines and cosines of a + b, of a
and of b. Waves of a − b are not: a model that adds has no use for them. Nanda et al. 2023,
"Progress measures for grokking via mechanistic interpretability".

A rectified wave has harmonics, and mixed ones where a and b stood in it both: with `harmonics` H,
frequency k has all waves (ik, jk) with |i|, |j| ≤ H. Of a half-wave, max(0, cos), the fundamental
alone has 1/8 / (1/4 − 1/π²) = 0.84 of the power.
"""

import math

import numpy as np
import numpy.typing as npt

from sae.base.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
COLUMNS = 64  # functions transformed at a time: their grids of complex numbers fit in the cache


def frequencies(p: int) -> Ints:
    """1 … (p − 1)/2: those that differ, for odd p."""
    return np.arange(1, (p - 1) // 2 + 1)


def frequency_shares(values_GF: npt.NDArray[np.floating], p: int, harmonics: int = 0) -> Floats:
    """(n, F): the share of each function's power, its mean removed, on each frequency.

    `values_GF` (p², F), row a·p + b. With `harmonics` H ≥ 1, multiples up to H count to their
    fundamental, and shares of different frequencies overlap. A constant has shares of 0.
    """
    if len(values_GF) != p * p:
        raise UserError(f"`values_GF` has {len(values_GF)} rows; the grid of p = {p} has {p * p}.")
    at = [_waves(int(k), p, harmonics) for k in frequencies(p)]
    shares = np.zeros((len(at), values_GF.shape[1]))
    for start in range(0, values_GF.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        power_GC = grid_power(values_GF[:, part], p)
        total_C = power_GC.sum(0)
        own_nC = np.stack([power_GC[waves].sum(0) for waves in at])
        shares[:, part] = own_nC / np.where(total_C > 0, total_C, 1.0)
    return shares


def grid_power(values_GF: npt.NDArray[np.floating], p: int) -> Floats:
    """(p², F) power of each wave (k, l), row k·p + l; that of the mean is set to 0.

    What remains is the variance over the grid: power below the rounding of float32 is 0.
    """
    grid = np.asarray(values_GF, np.float64).reshape(p, p, -1)
    square = np.square(grid).mean((0, 1))
    power = np.abs(np.fft.fft2(grid - grid.mean((0, 1)), axes=(0, 1)) / p**2) ** 2
    power[0, 0] = 0.0
    power[..., power.sum((0, 1)) <= 1e-12 * square] = 0.0
    return power.reshape(p * p, -1)


def phases(values_GF: npt.NDArray[np.floating], p: int, frequency_F: Ints) -> Floats:
    """(F,) φ in [0, 2π) of the part cos(2πk(a + b)/p − φ) of each function, at its frequency k."""
    sums = np.add.outer(np.arange(p), np.arange(p)).ravel()
    angle_GF = 2 * math.pi * np.outer(sums, frequency_F) / p
    cosine_F = (values_GF * np.cos(angle_GF)).sum(0)
    sine_F = (values_GF * np.sin(angle_GF)).sum(0)
    return np.arctan2(sine_F, cosine_F) % (2 * math.pi)


def largest_gap(phases_N: Floats) -> float:
    """The largest arc (radians) between neighbouring phases on the circle; 2π for none or one."""
    if len(phases_N) < 2:
        return 2 * math.pi
    ordered = np.sort(phases_N)
    return float(np.diff(ordered, append=ordered[0] + 2 * math.pi).max())


def logit_shares(logits_Gp: npt.NDArray[np.floating], p: int) -> Floats:
    """(n,): the share of the logits' variance on cos 2πk(a + b − c)/p, for each frequency k.

    The variance is over pairs and answers c, of logits less what all answers of a pair, or all
    pairs of an answer, have in common (the softmax ignores the former; the latter is a bias).
    """
    logits = np.asarray(logits_Gp, np.float64)
    logits = logits - logits.mean(1, keepdims=True)
    logits = logits - logits.mean(0, keepdims=True)
    by_answer = _by_offset(logits, p)
    waves = np.fft.fft(by_answer)[1 : (p - 1) // 2 + 1] / p
    return 2 * np.abs(waves) ** 2 / max(float(np.square(logits).mean()), 1e-300)


def key_frequencies(logits_Gp: npt.NDArray[np.floating], p: int, least: float = 0.02) -> Ints:
    """Frequencies that carry at least `least` of the logits' variance, most of it first."""
    shares = logit_shares(logits_Gp, p)
    chosen = np.flatnonzero(shares >= least)
    return frequencies(p)[chosen[np.argsort(-shares[chosen])]]


def component(logits_Gp: npt.NDArray[np.floating], p: int, chosen: Ints) -> Floats:
    """(p², p): the part of each answer's logits on cos and sin of k(a + b), of the chosen k."""
    logits = np.asarray(logits_Gp, np.float64)
    sums = np.add.outer(np.arange(p), np.arange(p)).ravel()
    angle_Gn = 2 * math.pi * np.outer(sums, chosen) / p
    waves_Gm = np.concatenate([np.cos(angle_Gn), np.sin(angle_Gn)], axis=1) * (math.sqrt(2) / p)
    return waves_Gm @ (waves_Gm.T @ logits)


def progress_losses(logits_Gp: npt.NDArray[np.floating], p: int, chosen: Ints) -> dict[str, float]:
    """Nats over all pairs: the loss itself, `restricted` to the chosen frequencies (with the mean
    logits kept), and with them `excluded`.
    """
    logits = np.asarray(logits_Gp, np.float64)
    on_key = component(logits, p, chosen)
    return {
        "loss": grid_loss(logits, p),
        "restricted": grid_loss(logits.mean(0) + on_key, p),
        "excluded": grid_loss(logits - on_key, p),
    }


def grid_loss(logits_Gp: npt.NDArray[np.floating], p: int) -> float:
    """Mean cross-entropy (nats) of (a + b) mod p over all pairs."""
    logits = np.asarray(logits_Gp, np.float64)
    answer = np.add.outer(np.arange(p), np.arange(p)).ravel() % p
    top = logits.max(1, keepdims=True)
    normaliser = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
    return float((normaliser - logits[np.arange(p * p), answer]).mean())


def _by_offset(logits_Gp: Floats, p: int) -> Floats:
    """(p,): the mean logit of the answer a + b + d, for each d."""
    answer = np.add.outer(np.arange(p), np.arange(p)).ravel() % p
    columns = (answer[:, None] + np.arange(p)) % p
    return np.take_along_axis(logits_Gp, columns, axis=1).mean(0)


def _waves(k: int, p: int, harmonics: int) -> Ints:
    """Rows of `grid_power` that are of frequency k."""
    if harmonics:
        reach = np.arange(-harmonics, harmonics + 1)
        pairs = np.array([(i, j) for i in reach for j in reach if i or j])
    else:
        pairs = np.array([(1, 1), (1, 0), (0, 1), (-1, -1), (-1, 0), (0, -1)])
    left, right = (pairs * k % p).T
    return np.unique(left * p + right)
