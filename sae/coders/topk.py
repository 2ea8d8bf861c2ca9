"""TopK: exactly k latents per token. Gao et al. 2024, "Scaling and evaluating sparse
autoencoders", after Makhzani & Frey 2013, "k-Sparse Autoencoders".
"""

import torch
from torch import Tensor

from sae.coders.contract import Coder, Forward, check_k
from sae.kernels import Kernels, Support, select_topk


class TopK(Coder):
    """codes = ReLU(the k largest pre-activations, all others 0)."""

    architecture = "topk"
    hyperparameters = ("k",)
    uses_auxk = True

    def __init__(self, d_in: int, d_sae: int, k: int = 32) -> None:
        check_k(k, d_sae)
        super().__init__(d_in, d_sae)
        self.k = k

    def touched(self, rows: int) -> int:
        return min(self.d_sae, rows * self.k)

    def select(self, centred_BD: Tensor) -> Support:
        return select_topk(centred_BD, self.W_enc_FD, self.b_enc_F, self.k)

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        centred_BD = x_BD - self.b_dec_D.detach()
        support = select_topk(centred_BD, self.W_enc_FD, self.b_enc_F, self.k, candidates, kernels)
        return self._sparse_forward(x_BD, support, kernels)
