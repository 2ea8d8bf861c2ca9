"""BatchTopK: k latents per token on average, shared out over the batch by size.

Bussmann, Leask & Nanda 2024, "BatchTopK Sparse Autoencoders". A single token has no batch, so
inference uses a threshold: the running mean of the smallest activation that was kept. It is
saved as a JumpReLU coder with that threshold for every latent.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from sae.coders.contract import Coder, Forward, check_k
from sae.coders.jumprelu import JumpReLU
from sae.kernels import Kernels, Support, chunks, select_batchtopk, select_positive

THRESHOLD_DECAY = 0.99  # of the running mean, per training step
J = TypeVar("J", bound=JumpReLU)


class BatchTopK(Coder):
    """codes = ReLU(the B*k largest pre-activations of a batch of B tokens)."""

    architecture = "batchtopk"
    hyperparameters = ("k",)
    uses_auxk = True
    threshold: Tensor
    seen: Tensor  # batches

    def __init__(self, d_in: int, d_sae: int, k: int = 32) -> None:
        check_k(k, d_sae)
        super().__init__(d_in, d_sae)
        self.k = k
        self.register_buffer("threshold", torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(0))

    def touched(self, rows: int) -> int:
        return min(self.d_sae, rows * self.k)

    def dense_values(self, rows: int) -> int:
        """Those rows that may hold more than 2k winners, at most half of all, are scored anew in
        full precision, with masks over their scores."""
        again = 2 * min(rows // 2, chunks.score_rows(self.d_sae)) * self.d_sae
        return max(super().dense_values(rows), again)

    def select(self, centred_BD: Tensor) -> Support:
        return select_positive(centred_BD, self.W_enc_FD, self.b_enc_F, self.threshold)

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        centred_BD = x_BD - self.input_centre().detach()
        support, smallest = select_batchtopk(
            centred_BD, self.W_enc_FD, self.b_enc_F, self.k, candidates, kernels
        )
        with torch.no_grad():
            self.seen += 1
            # Warmed up like an average of the last tenth, so that early batches are forgotten.
            weight = torch.clamp(10 / (self.seen + 9), min=1 - THRESHOLD_DECAY)
            self.threshold += weight * (smallest - self.threshold)
        return self._sparse_forward(x_BD, support, kernels)

    def for_inference(self) -> JumpReLU:
        with torch.device("meta"):
            out = JumpReLU(self.d_in, self.d_sae)
        return self._lend(out)

    def _lend(self, out: J) -> J:
        """Makes this coder's own weights those of a form that was made without any."""
        threshold = self.threshold.detach().clamp(min=0).to(self.b_enc_F.dtype)
        out.threshold_F = nn.Parameter(threshold.expand(self.d_sae).clone())
        return out.share_weights(self)
