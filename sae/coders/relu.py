"""ReLU with an L1 penalty: Bricken et al. 2023, "Towards Monosemanticity"."""

import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.coders.contract import Coder, Forward
from sae.coders.entries import entries_above
from sae.kernels import Codes, Kernels, Support, select_positive


class ReLU(Coder):
    """codes = ReLU(pre); loss = (‖x − x̂‖² + l1 · Σ codes) / D, with decoder rows of unit norm.

    x is normalised to a variance of D, so `l1` means the same for every model and site; it is
    comparable to the λ of Anthropic's April 2024 update, whose x has a mean norm of √D.
    `l1_warmup` is the share of the training over which the penalty rises from 0.
    """

    architecture = "relu"
    hyperparameters = ("l1",)
    dense_tensors = 7
    resamples = True

    def __init__(self, d_in: int, d_sae: int, l1: float = 5.0, l1_warmup: float = 0.0) -> None:
        check_weight("l1", l1)
        check_share("l1_warmup", l1_warmup)
        super().__init__(d_in, d_sae)
        self.l1, self.l1_warmup = l1, l1_warmup

    def select(self, centred_BD: Tensor) -> Support:
        return select_positive(centred_BD, self.W_enc_FD, self.b_enc_F)

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        entries = entries_above(self, x_BD, 0.0, kernels)
        acts = torch.relu(entries.pre)
        x_hat_BD = entries.decode(acts, self.W_dec_FD) + self.b_dec_D
        weight = self.l1 * warmed_up(self.progress, self.l1_warmup)
        penalty = weight * acts.sum() / (len(x_BD) * self.d_in)
        return Forward(x_hat_BD, entries.codes(acts), penalty)

    def row_penalty(self, codes: Codes) -> Tensor:
        total_B = codes.acts_BK.detach().sum(dim=1)  # in a fixed order, on CUDA too
        return self.l1 * warmed_up(self.progress, self.l1_warmup) * total_B


def warmed_up(progress: float, share: float) -> float:
    """The factor of a penalty that rises linearly over the first `share` of the training."""
    return min(1.0, progress / share) if share > 0 else 1.0


def check_weight(name: str, value: float) -> None:
    if value < 0:
        raise UserError(f"{name} is {value}; it must not be negative.")


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name} is {value}; it is a share of the training, between 0 and 1.")
