"""What transcoders add to a coder: they read one site and predict another.

    codes = σ(W_enc x + b_enc),    ŷ = Σ_i codes_i · W_dec[i] + b_dec  ( + W_skip x )

Dunefsky, Chlenski & Nanda 2024, "Transcoders Find Interpretable LLM Feature Circuits"; with the
linear skip connection: Paulo, Shabalin & Belrose 2025, "Transcoders Beat Sparse Autoencoders for
Interpretability". Layout and semantics of the saved tensors are SAELens's.
"""

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.coders.contract import Coder, Forward
from sae.kernels import Codes, Kernels, Support


class TwoSites(Coder):
    """Mixed in before an activation (BatchTopK, JumpReLU …), which it leaves as it is.

    `W_dec_FD` is (F, d_out) and `b_dec_D` (d_out): the latter belongs to the target, so nothing
    is subtracted from the input. `skip` adds W_skip (d_out, d_in).
    """

    centres_input = False
    skip: ClassVar[bool] = False

    def _widen(self, d_out: int | None) -> None:
        """Gives the decoder the target's width; the last line of every constructor."""
        self.d_out = d_out or self.d_in
        if self.d_out < 1:
            raise UserError(f"A coder needs positive widths; got d_out={self.d_out}.")
        self.W_dec_FD = nn.Parameter(torch.zeros(self.d_sae, self.d_out))
        self.b_dec_D = nn.Parameter(torch.zeros(self.d_out))
        if self.skip:
            self.W_skip_OD = nn.Parameter(torch.zeros(self.d_out, self.d_in))
        self.register_buffer("_nothing_D", torch.zeros(self.d_in), persistent=False)

    def gradient_values(self, rows: int) -> int:
        return super().gradient_values(rows) + (self.W_skip_OD.numel() if self.skip else 0)

    def input_centre(self) -> Tensor:
        return self.get_buffer("_nothing_D")

    def decode(self, codes: Codes, x_BD: Tensor | None = None) -> Tensor:
        """Prediction (B, d_out). With a skip connection it depends on the input (B, d_in) too."""
        return super().decode(codes) + self._skipped(x_BD)

    def without_codes(self, x_BD: Tensor | None = None) -> Tensor:
        return super().without_codes() + self._skipped(x_BD)

    def initialise(
        self, mean_D: Tensor, generator: torch.Generator, target_mean_D: Tensor | None = None
    ) -> None:
        """Unit encoder and decoder rows, independent of each other: the sites are not the same
        space. b_enc takes the input's mean away, b_dec is the target's; the skip starts at 0.
        """
        with torch.no_grad():
            for weight in (self.W_enc_FD, self.W_dec_FD):
                rows = torch.randn(weight.shape, generator=generator)
                weight.copy_(F.normalize(rows, dim=1))
            self.b_enc_F.copy_(-(self.W_enc_FD @ mean_D.to(self.W_enc_FD)))
            self.b_dec_D.zero_()
            if target_mean_D is not None:
                self.b_dec_D.copy_(target_mean_D)
            if self.skip:
                self.W_skip_OD.zero_()

    def folded(
        self, scale: float, target_scale: float | None = None, *, borrow: bool = False
    ) -> Coder:
        """For raw x and y, given that this one learned `target_scale * y` from `scale * x`.

        Exact: with r = scale / target_scale, W_enc and W_skip times r, all else as in one space
        divided by `target_scale`. Decoder rows stay of unit norm.
        """
        target_scale = target_scale or scale
        out = super().folded(target_scale, borrow=borrow)
        with torch.no_grad():
            out.W_enc_FD = nn.Parameter(out.W_enc_FD * (scale / target_scale), False)
            if isinstance(out, TwoSites) and out.skip:
                out.W_skip_OD.mul_(scale / target_scale)
        return out

    def saved_tensors(self) -> dict[str, Tensor]:
        own = super().saved_tensors()
        return own | ({"W_skip": self.W_skip_OD.detach().contiguous()} if self.skip else {})

    def load_saved(self, tensors: Mapping[str, Tensor]) -> Self:
        super().load_saved(tensors)
        if self.skip:
            with torch.no_grad():
                self.W_skip_OD.copy_(tensors["W_skip"])
        return self

    def share_weights(self, other: Coder) -> Self:
        if isinstance(other, TwoSites):
            self._nothing_D = other.input_centre()
            if self.skip:
                self.W_skip_OD = nn.Parameter(other.W_skip_OD.detach())
        return super().share_weights(other)

    def _sparse_forward(self, x_BD: Tensor, support: Support, kernels: Kernels) -> Forward:
        forward = super()._sparse_forward(x_BD, support, kernels)
        if not self.skip:
            return forward
        return Forward(forward.x_hat_BD + self._skipped(x_BD), forward.codes, forward.penalty)

    def _skipped(self, x_BD: Tensor | None) -> Tensor | float:
        if not self.skip:
            return 0.0
        if x_BD is None:
            raise UserError(
                "A transcoder with a skip connection predicts from its input as well as from its "
                "codes; call `decode(codes, x_BD)`."
            )
        return x_BD.to(self.W_skip_OD.dtype) @ self.W_skip_OD.T
