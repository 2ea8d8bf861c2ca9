"""Switch: a router sends each token to one of E experts, each a TopK coder of F / E latents.

    p = softmax(W_router (x − b_router)),   e = argmax p
    codes = p_e · ReLU(the k largest pre-activations among expert e's latents)

Mudide et al. 2024, "Efficient Dictionary Learning with Switch Sparse Autoencoders". Tokens are
grouped by expert and each expert's product is taken of its own tokens alone: encoding costs
B · (F / E) · D instead of B · F · D multiplications, plus B · E · D of the router. The experts'
latents lie one expert after the other in one dictionary, so that all else (sparse decode, both
weight gradients, metrics, index) sees a coder like any other.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.coders.contract import Coder, Forward, SparseForward
from sae.coders.relu import check_weight
from sae.kernels import Codes, Kernels, Support, chunks, kernels_for


class Switch(Coder):
    """TopK within the expert that the router chose.

    `load_balance` weighs E · Σ_e (share of tokens sent to e) · (mean probability of e), which is
    1 when all experts are used alike (Fedus et al. 2021, "Switch Transformers", equation 4). The
    router learns from the reconstruction because p_e scales the codes.
    """

    architecture = "switch"
    hyperparameters = ("k", "experts", "load_balance")

    def __init__(
        self, d_in: int, d_sae: int, k: int = 32, experts: int = 8, load_balance: float = 0.1
    ) -> None:
        if experts < 1 or d_sae % experts:
            raise UserError(
                f"`experts` is {experts}; it must divide the dictionary's width, {d_sae}."
            )
        if not 1 <= k <= d_sae // experts:
            raise UserError(
                f"k is {k}; it must lie between 1 and an expert's width, {d_sae // experts}."
            )
        check_weight("load_balance", load_balance)
        super().__init__(d_in, d_sae)
        self.k, self.experts, self.load_balance = k, experts, load_balance
        self.W_router_ED = nn.Parameter(torch.zeros(experts, d_in))
        self.b_router_D = nn.Parameter(torch.zeros(d_in))

    def initialise(self, mean_D: Tensor, generator: torch.Generator) -> None:
        super().initialise(mean_D, generator)
        with torch.no_grad():
            # Logits of variance 1 for inputs of variance D.
            rows = torch.randn(self.experts, self.d_in, generator=generator)
            self.W_router_ED.copy_(rows / self.d_in**0.5)
            self.b_router_D.copy_(mean_D)

    def touched(self, rows: int) -> int:
        return min(self.d_sae, rows * self.k)

    def dense_values(self, rows: int) -> int:
        """Scores of one expert at a time, to which all rows may go."""
        width = self.d_sae // self.experts
        return min(rows, chunks.cpu_score_rows(width)) * width

    def route(self, x_BD: Tensor) -> Tensor:
        """Probabilities of the experts, (B, E)."""
        return torch.softmax(F.linear(x_BD - self.b_router_D, self.W_router_ED), dim=1)

    def select(self, centred_BD: Tensor) -> Support:
        expert_B = self.route(centred_BD + self.b_dec_D).argmax(dim=1)
        return self._select_in(centred_BD, expert_B, kernels_for(self.W_enc_FD), None)

    def infer(self, x_BD: Tensor) -> Codes:
        return self._routed(x_BD, kernels_for(self.W_enc_FD), None)[0]

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        codes, p_BE, expert_B = self._routed(x_BD, kernels, candidates)
        share_E = torch.bincount(expert_B, minlength=self.experts) / len(x_BD)
        balance = self.experts * (share_E * p_BE.mean(0)).sum()
        return SparseForward(self, codes, kernels, self.load_balance * balance)

    def scale_units(self, factor: float) -> None:
        """Inputs come `factor` times as large: the router's logits stay what they were."""
        with torch.no_grad():
            self.W_router_ED /= factor
            self.b_router_D *= factor

    def saved_tensors(self) -> dict[str, Tensor]:
        router = {
            "W_router": self.W_router_ED.detach().T.contiguous(),
            "b_router": self.b_router_D.detach().contiguous(),
        }
        return super().saved_tensors() | router

    def load_saved(self, tensors: Mapping[str, Tensor]) -> Self:
        super().load_saved(tensors)
        with torch.no_grad():
            self.W_router_ED.copy_(tensors["W_router"].T)
            self.b_router_D.copy_(tensors["b_router"])
        return self

    def _routed(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None
    ) -> tuple[Codes, Tensor, Tensor]:
        """(codes, probabilities (B, E), the chosen expert of each row)."""
        p_BE = self.route(x_BD)
        chosen_B, expert_B = p_BE.max(dim=1)
        support = self._select_in((x_BD - self.b_dec_D).detach(), expert_B, kernels, candidates)
        codes = self._codes_at(x_BD, support, kernels)
        return Codes(codes.acts_N * chosen_B[support.row_of_N], support), p_BE, expert_B

    @torch.no_grad()
    def _select_in(
        self,
        centred_BD: Tensor,
        expert_B: Tensor,
        kernels: Kernels,
        candidates: torch.dtype | None,
    ) -> Support:
        """The k best latents of each row's expert, from products of its own rows alone."""
        width = self.d_sae // self.experts
        order_B = expert_B.argsort(stable=True)
        counts = torch.bincount(expert_B, minlength=self.experts).tolist()
        indices_BK = order_B.new_empty(len(centred_BD), self.k)
        pre_BK = torch.empty_like(indices_BK, dtype=centred_BD.dtype)
        for expert, rows in enumerate(order_B.split(counts)):
            if len(rows):
                own = slice(expert * width, (expert + 1) * width)
                W_fD, b_f = self.W_enc_FD[own], self.b_enc_F[own]
                index_RK, pre_BK[rows] = kernels.row_topk(
                    centred_BD[rows], W_fD, b_f, self.k, candidates
                )
                indices_BK[rows] = index_RK + own.start
        return Support.fixed(indices_BK, self.d_sae, pre_BK)
