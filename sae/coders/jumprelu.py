"""JumpReLU: a latent is active where its pre-activation exceeds its own threshold.

Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU
Sparse Autoencoders". Here for inference: it is what BatchTopK becomes when saved.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from sae.base.errors import UserError
from sae.coders.contract import Coder, Forward
from sae.kernels import Kernels, Support, select_positive


class JumpReLU(Coder):
    """codes = pre · 1[pre > threshold], for thresholds ≥ 0."""

    architecture = "jumprelu"

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__(d_in, d_sae)
        self.threshold_F = nn.Parameter(torch.zeros(d_sae))

    def select(self, centred_BD: Tensor) -> Support:
        return select_positive(centred_BD, self.W_enc_FD, self.b_enc_F, self.threshold_F)

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        raise UserError(
            "JumpReLU coders cannot be trained yet; train `batchtopk`, which is saved as one."
        )

    def scale_units(self, factor: float) -> None:
        with torch.no_grad():
            self.threshold_F *= factor

    def saved_tensors(self) -> dict[str, Tensor]:
        return {**super().saved_tensors(), "threshold": self.threshold_F.detach().contiguous()}

    def load_saved(self, tensors: Mapping[str, Tensor]) -> Self:
        super().load_saved(tensors)
        with torch.no_grad():
            self.threshold_F.copy_(tensors["threshold"])
        return self
