"""Gated: which latents fire, and how strongly, are decided apart.

Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders".
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from sae.coders.contract import Coder, Forward
from sae.coders.entries import entries_above
from sae.coders.relu import check_share, check_weight, warmed_up
from sae.kernels import Codes, Kernels, Support, select_positive


class Gated(Coder):
    """codes = 1[gate > 0] · ReLU(magnitude), with weights tied but for one factor per latent:

        gate      = (x − b_dec) W_encᵀ + b_gate                        (paper, eq. 3 to 5)
        magnitude = e^r_mag · (x − b_dec) W_encᵀ + b_mag               (eq. 6, 7)
        loss      = ‖x − x̂‖² + l1 · Σ ReLU(gate) + ‖x − x̂(ReLU(gate))‖²,  all / D   (eq. 8)

    The last term's decoder is frozen: it trains the gate alone, and the penalty, which bears on
    the gate alone, does not shrink the magnitudes. `b_enc_F` is the gate's bias.
    """

    architecture = "gated"
    hyperparameters = ("l1",)
    dense_tensors = 11

    def __init__(self, d_in: int, d_sae: int, l1: float = 5.0, l1_warmup: float = 0.05) -> None:
        check_weight("l1", l1)
        check_share("l1_warmup", l1_warmup)
        super().__init__(d_in, d_sae)
        self.l1, self.l1_warmup = l1, l1_warmup
        self.b_mag_F = nn.Parameter(torch.zeros(d_sae))
        self.r_mag_F = nn.Parameter(torch.zeros(d_sae))

    def select(self, centred_BD: Tensor) -> Support:
        return select_positive(centred_BD, self.W_enc_FD, self.b_enc_F)

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        entries = entries_above(self, x_BD, 0.0, kernels)
        gate = torch.relu(entries.pre)
        factor_F, offset_F = self._magnitude_of_gate()
        magnitude = entries.of_latents(factor_F) * entries.pre + entries.of_latents(offset_F)
        acts = torch.relu(magnitude) * (gate > 0)
        x_hat_BD = entries.decode(acts, self.W_dec_FD) + self.b_dec_D
        by_gate_BD = entries.decode(gate, self.W_dec_FD.detach()) + self.b_dec_D.detach()
        auxiliary = (x_BD - by_gate_BD).square().sum()
        weight = self.l1 * warmed_up(self.progress, self.l1_warmup)
        penalty = (weight * gate.sum() + auxiliary) / x_BD.numel()
        return Forward(x_hat_BD, entries.codes(acts), penalty)

    def _codes_at(self, x_BD: Tensor, support: Support, kernels: Kernels) -> Codes:
        gate_N = kernels.encode_at(x_BD, self.b_dec_D, self.W_enc_FD, self.b_enc_F, support)
        factor_F, offset_F = self._magnitude_of_gate()
        magnitude_N = factor_F[support.indices_N] * gate_N + offset_F[support.indices_N]
        return Codes(torch.relu(magnitude_N) * (gate_N > 0), support)

    def _magnitude_of_gate(self) -> tuple[Tensor, Tensor]:
        """(factor, offset), (F,) each: magnitude = factor · gate + offset, as weights are tied."""
        factor_F = self.r_mag_F.exp()
        return factor_F, self.b_mag_F - factor_F * self.b_enc_F

    def scale_units(self, factor: float) -> None:
        with torch.no_grad():
            self.b_mag_F *= factor

    def saved_tensors(self) -> dict[str, Tensor]:
        tensors = super().saved_tensors()
        tensors["b_gate"] = tensors.pop("b_enc")
        tensors["b_mag"] = self.b_mag_F.detach().contiguous()
        tensors["r_mag"] = self.r_mag_F.detach().contiguous()
        return tensors

    def load_saved(self, tensors: Mapping[str, Tensor]) -> Self:
        super().load_saved({**tensors, "b_enc": tensors["b_gate"]})
        with torch.no_grad():
            self.b_mag_F.copy_(tensors["b_mag"])
            self.r_mag_F.copy_(tensors["r_mag"])
        return self
