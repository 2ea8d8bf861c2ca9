"""The truth, in plain dense torch. Every backend is tested against these functions.

pre[b, i] = (x_b − b_dec) · W_enc[i] + b_enc[i]        for i in the support of row b
x̂_b       = Σ_i acts[b, i] · W_dec[i]                   (the caller adds b_dec)
"""

import torch
from torch import Tensor

from sae.kernels.codes import Codes, Support


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
