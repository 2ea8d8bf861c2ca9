"""ReLU with an L1 penalty: Bricken et al. 2023, "Towards Monosemanticity"."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.coders.contract import Coder, Forward
from sae.kernels import Codes, Kernels, Support, select_positive

DENSE_ABOVE = 1 / 16  # share of active latents above which dense products are the faster ones


class ReLU(Coder):
    """codes = ReLU(pre); loss = (‖x − x̂‖² + l1 · Σ codes) / D, with decoder rows of unit norm.

    x is normalised to a variance of D, so `l1` means the same for every model and site; it is
    comparable to the λ of Anthropic's April 2024 update, whose x has a mean norm of √D.
    """

    architecture = "relu"
    hyperparameters = ("l1",)

    def __init__(self, d_in: int, d_sae: int, l1: float = 5.0) -> None:
        if l1 < 0:
            raise UserError(f"l1 is {l1}; it must not be negative.")
        super().__init__(d_in, d_sae)
        self.l1 = l1

    def select(self, centred_BD: Tensor) -> Support:
        return select_positive(centred_BD, self.W_enc_FD, self.b_enc_F)

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        pre_BF = F.linear(x_BD - self.b_dec_D, self.W_enc_FD, self.b_enc_F)
        support = Support.of_mask(pre_BF.detach() > 0)
        if len(support.indices_N) > DENSE_ABOVE * pre_BF.numel():
            acts_BF = torch.relu(pre_BF)
            acts_N = acts_BF[support.row_of_N, support.indices_N].detach()
            forward = Forward(acts_BF @ self.W_dec_FD + self.b_dec_D, Codes(acts_N, support))
            total = acts_BF.sum()
        else:
            forward = self._sparse_forward(x_BD, support, kernels)
            total = forward.codes.acts_N.sum()
        penalty = self.l1 * total / (len(x_BD) * self.d_in)
        return Forward(forward.x_hat_BD, forward.codes, penalty)
