"""Adam on the rows of a weight: the truth in plain torch, and what every backend's is told.

A gradient may hold the rows of the touched latents alone. A row that slept through n steps is
then brought to where dense Adam would have taken it with n gradients of zero: its moments fade by
β^n, and it moves by Σ_{j=1..n} (β1/√β2)^j · m / √v. (The sum takes bias correction, learning rate
and ε as they are now.) So only two things differ from dense Adam: a row is stale until it is
touched again, or woken (every eighth step: `training/optimizer.py`), and the rate may have changed
meanwhile.

Moments may be kept in bfloat16. They are rounded stochastically, since v moves by a thousandth
of itself, which rounding to nearest would lose.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BETA1, BETA2 = 0.9, 0.999
PULL = BETA1 / math.sqrt(BETA2)  # of one more step without gradient, relative to the last one


@dataclass(frozen=True)
class AdamStep:
    """The numbers of one update.

    `scale` multiplies the gradient (clipping); `step_size` is rate / (1 − β1^t);
    `root_correction` is 1 / sqrt(1 − β2^t); `seed` is that of stochastic rounding.
    `unit` rows stay on the unit sphere: the gradient loses its part along the row first, since
    the renormalisation after the step would undo it and only the moments would be disturbed
    (Bricken et al. 2023, "Towards Monosemanticity", appendix).
    """

    scale: float
    step_size: float
    root_correction: float
    eps: float
    unit: bool
    seed: int = 0


@dataclass(frozen=True)
class RowGradient:
    """The gradient of a weight: all of it, or the rows `rows_U` (int64, ascending) of it.

    `slept_U` (int32) counts, for each of these rows, the steps since it was last updated that
    left it out; None: there were none.
    """

    values: Tensor
    rows_U: Tensor | None = None
    slept_U: Tensor | None = None


def adam_rows(W: Tensor, gradient: RowGradient, m: Tensor, v: Tensor, step: AdamStep) -> None:
    """Adam in place on W and its moments m, v (Kingma & Ba 2015)."""
    with torch.no_grad():
        rows = slice(None) if gradient.rows_U is None else gradient.rows_U
        w, m_own, v_own = W[rows], m[rows].to(W.dtype), v[rows].to(W.dtype)
        if gradient.slept_U is not None:
            w, m_own, v_own = _caught_up(w, m_own, v_own, gradient.slept_U, step)
        grad = gradient.values
        if step.unit:
            if gradient.slept_U is not None:
                w = _unit(w)
            grad = grad - (grad * w).sum(dim=1, keepdim=True) * w
        grad = grad * step.scale
        m_own = m_own.lerp(grad, 1 - BETA1)
        v_own = (v_own * BETA2).addcmul(grad, grad, value=1 - BETA2)
        w = w.addcdiv(m_own, v_own.sqrt() * step.root_correction + step.eps, value=-step.step_size)
        if step.unit:
            w = _unit(w)
        W[rows] = w
        m[rows] = _stored(m_own, m.dtype, 2 * step.seed)
        v[rows] = _stored(v_own, v.dtype, 2 * step.seed + 1)


def tangent_square(gradient: RowGradient, W_FD: Tensor) -> Tensor:
    """‖gradient − its part along each row of W‖², for rows of unit norm; not waited for."""
    W = W_FD.detach() if gradient.rows_U is None else W_FD.detach()[gradient.rows_U]
    along = (gradient.values * W).sum(dim=1)
    return (gradient.values.square().sum(dim=1) - along.square()).clamp_min(0).sum()


def sleep_factors(slept_U: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows that slept so many steps, (U,) each: Σ_{j=1..n} (β1/√β2)^j, β1^n and β2^n."""
    slept = slept_U.to(dtype)
    return PULL * (1 - PULL**slept) / (1 - PULL), BETA1**slept, BETA2**slept


def _caught_up(
    w: Tensor, m: Tensor, v: Tensor, slept_U: Tensor, step: AdamStep
) -> tuple[Tensor, Tensor, Tensor]:
    moves, fade_m, fade_v = (t[:, None] for t in sleep_factors(slept_U, w.dtype))
    towards = m / (v.sqrt() * step.root_correction + step.eps)
    return w - step.step_size * moves * towards, m * fade_m, v * fade_v


def _unit(w: Tensor) -> Tensor:
    return w / w.norm(dim=1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)


def _stored(values: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """`values` in the dtype of the moments: bfloat16 after stochastic rounding, or as they are."""
    if dtype is not torch.bfloat16:
        return values
    generator = torch.Generator(values.device).manual_seed(seed)
    noise = torch.randint(
        1 << 16, values.shape, dtype=torch.int32, generator=generator, device=values.device
    )
    upper_half = (values.float().view(torch.int32) + noise) >> 16
    return upper_half.to(torch.int16).view(torch.bfloat16)
