"""The truth, in plain dense torch. Every backend is tested against these functions.

pre[b, i] = (x_b − b_dec) · W_enc[i] + b_enc[i]        for i in the support of row b
x̂_b       = Σ_i acts[b, i] · W_dec[i]                   (the caller adds b_dec)
"""

import torch
from torch import Tensor

from sae.kernels.codes import Codes, Support

BETA1, BETA2 = 0.9, 0.999  # of Adam


def row_topk(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """(latents, x·W + b), both (B, k): the k largest of each row, in any order.

    `dtype` allows other backends to look for candidates in low precision; here it is not used.
    """
    best = torch.addmm(b_F, x_BD, W_FD.T).topk(k, dim=1, sorted=False)
    return best.indices, best.values


def encode_at(
    x_BD: Tensor, b_dec_D: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor, support: Support
) -> Tensor:
    """Pre-activations (N,) of the support's entries."""
    pre_BF = (x_BD - b_dec_D) @ W_enc_FD.T + b_enc_F
    return pre_BF[support.row_of_N, support.indices_N]


def decode(acts_N: Tensor, W_dec_FD: Tensor, support: Support) -> Tensor:
    """Σ over active latents of activation times decoder row, (B, D), without `b_dec`."""
    return Codes(acts_N, support).dense() @ W_dec_FD


def adam_rows(
    W: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    scale: float,
    step_size: float,
    root_correction: float,
    eps: float,
    unit: bool,
) -> None:
    """Adam in place on W and its moments m, v (Kingma & Ba 2015); grad is multiplied by `scale`.

    `step_size` is rate / (1 − BETA1^t), `root_correction` is 1 / sqrt(1 − BETA2^t). Where rows
    are `unit`, the gradient loses its component along the row first, since the renormalisation
    after the step would undo that part and only disturb the moments (Bricken et al. 2023,
    "Towards Monosemanticity", appendix).
    """
    with torch.no_grad():
        if unit:
            grad = grad - (grad * W).sum(dim=1, keepdim=True) * W
        grad = grad * scale
        m.lerp_(grad, 1 - BETA1)
        v.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        W.addcdiv_(m, v.sqrt() * root_correction + eps, value=-step_size)
        if unit:
            W.div_(W.norm(dim=1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny))


def tangent_square(grad_FD: Tensor, W_FD: Tensor) -> float:
    """‖grad − its part along each row of W‖², for rows of unit norm."""
    along_F = (grad_FD * W_FD).sum(dim=1)
    return float((grad_FD.square().sum(dim=1) - along_F.square()).clamp_min(0).sum())
