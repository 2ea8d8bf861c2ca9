"""ReLU with free decoder norms: Anthropic, "Update on how we train SAEs", April 2024."""

import torch
from torch import Tensor

from sae.coders.contract import Coder, Forward
from sae.coders.entries import entries_above
from sae.coders.relu import ReLU, check_share, check_weight, warmed_up
from sae.kernels import Kernels, Support, select_positive

DECODER_NORM = 0.1  # of every decoder row at the start


class ReLUUnconstrained(Coder):
    """codes = ReLU(pre); loss = (‖x − x̂‖² + l1 · Σ_i codes_i ‖W_dec[i]‖) / D.

    A latent cannot escape the penalty by growing its decoder, so decoder norms are left free:
    no projection, no renormalisation. The penalty rises from 0 over the first `l1_warmup` of
    the training. It is saved as a `relu` coder whose decoder norms are folded into the encoder,
    which changes neither reconstructions nor penalty.
    """

    architecture = "relu_unconstrained"
    hyperparameters = ("l1",)
    dense_tensors = 7
    unit_decoder = False

    def __init__(self, d_in: int, d_sae: int, l1: float = 5.0, l1_warmup: float = 0.05) -> None:
        check_weight("l1", l1)
        check_share("l1_warmup", l1_warmup)
        super().__init__(d_in, d_sae)
        self.l1, self.l1_warmup = l1, l1_warmup

    def initialise(self, mean_D: Tensor, generator: torch.Generator) -> None:
        """Random directions of norm 0.1, the encoder as their transpose, b_dec the mean."""
        super().initialise(mean_D, generator)
        with torch.no_grad():
            self.W_dec_FD *= DECODER_NORM
            self.W_enc_FD *= DECODER_NORM

    def gradient_values(self, rows: int) -> int:
        """The decoder's twice: that of its norms beside that of the reconstruction."""
        return super().gradient_values(rows) + self.d_sae * self.d_out

    def select(self, centred_BD: Tensor) -> Support:
        return select_positive(centred_BD, self.W_enc_FD, self.b_enc_F)

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        entries = entries_above(self, x_BD, 0.0, kernels)
        acts = torch.relu(entries.pre)
        x_hat_BD = entries.decode(acts, self.W_dec_FD) + self.b_dec_D
        norms = entries.of_latents(torch.linalg.vector_norm(self.W_dec_FD, dim=1))
        weight = self.l1 * warmed_up(self.progress, self.l1_warmup)
        penalty = weight * (acts * norms).sum() / (len(x_BD) * self.d_in)
        return Forward(x_hat_BD, entries.codes(acts), penalty)

    def for_inference(self) -> ReLU:
        """The same function with decoder rows of unit norm (a row of norm 0 never mattered)."""
        out = ReLU(self.d_in, self.d_sae, l1=self.l1).to(self.W_enc_FD)
        tensors = self.saved_tensors()
        norms_F = tensors["W_dec"].norm(dim=1)
        tensors["W_enc"] = tensors["W_enc"] * norms_F
        tensors["b_enc"] = tensors["b_enc"] * norms_F
        tiny = torch.finfo(norms_F.dtype).tiny
        tensors["W_dec"] = tensors["W_dec"] / norms_F.clamp_min(tiny)[:, None]
        out.load_saved(tensors)
        out.metadata = dict(self.metadata)
        return out
