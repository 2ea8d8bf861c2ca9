"""Transcoders, with each activation and with or without the skip connection of `TwoSites`.

| architecture | trained with | saved as, for SAELens |
|---|---|---|
| `transcoder`, `skip_transcoder` | BatchTopK | `jumprelu_transcoder`, `jumprelu_skip_transcoder` |
| `relu_transcoder`, `relu_skip_transcoder` | ReLU and L1 | `transcoder`, `skip_transcoder` |

SAELens has no TopK transcoder; BatchTopK becomes JumpReLU with one threshold for all latents.
"""

import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.coders.batchtopk import BatchTopK
from sae.coders.contract import Coder, Forward
from sae.coders.entries import entries_above
from sae.coders.jumprelu import JumpReLU
from sae.coders.relu import check_weight
from sae.coders.two_sites import TwoSites
from sae.kernels import Kernels, Support, select_positive


class JumpReLUTranscoder(TwoSites, JumpReLU):
    """codes = pre · 1[pre > threshold], thresholds ≥ 0: what the trained ones become."""

    architecture = "jumprelu_transcoder"
    hyperparameters = ("d_out",)

    def __init__(self, d_in: int, d_sae: int, d_out: int | None = None) -> None:
        super().__init__(d_in, d_sae)
        self._widen(d_out)

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        raise UserError(
            f"`{self.architecture}` is what a trained transcoder is saved as; train `transcoder` "
            "or `skip_transcoder`."
        )


class JumpReLUSkipTranscoder(JumpReLUTranscoder):
    architecture = "jumprelu_skip_transcoder"
    skip = True


class Transcoder(TwoSites, BatchTopK):
    """codes = ReLU(the B*k largest pre-activations of a batch of B tokens)."""

    architecture = "transcoder"
    hyperparameters = ("d_out", "k")
    saved_kind: type[JumpReLUTranscoder] = JumpReLUTranscoder

    def __init__(self, d_in: int, d_sae: int, d_out: int | None = None, k: int = 32) -> None:
        super().__init__(d_in, d_sae, k)
        self._widen(d_out)

    def for_inference(self) -> JumpReLUTranscoder:
        with torch.device("meta"):
            out = self.saved_kind(self.d_in, self.d_sae, self.d_out)
        return self._lend(out)


class SkipTranscoder(Transcoder):
    architecture = "skip_transcoder"
    skip = True
    saved_kind = JumpReLUSkipTranscoder


class ReLUTranscoder(TwoSites, Coder):
    """codes = ReLU(pre); loss = (‖y − ŷ‖² + l1 · Σ codes) / D, with decoder rows of unit norm."""

    architecture = "relu_transcoder"
    hyperparameters = ("d_out", "l1")
    dense_tensors = 7

    def __init__(self, d_in: int, d_sae: int, d_out: int | None = None, l1: float = 5.0) -> None:
        check_weight("l1", l1)
        super().__init__(d_in, d_sae)
        self.l1 = l1
        self._widen(d_out)

    def select(self, centred_BD: Tensor) -> Support:
        return select_positive(centred_BD, self.W_enc_FD, self.b_enc_F)

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        entries = entries_above(self, x_BD, 0.0, kernels)
        acts = torch.relu(entries.pre)
        y_hat_BD = entries.decode(acts, self.W_dec_FD) + self.b_dec_D + self._skipped(x_BD)
        penalty = self.l1 * acts.sum() / (len(x_BD) * self.d_out)
        return Forward(y_hat_BD, entries.codes(acts), penalty)


class ReLUSkipTranscoder(ReLUTranscoder):
    architecture = "relu_skip_transcoder"
    skip = True
