"""Pre-activations where L0 is not fixed, in the form that is the cheaper one at their density.

A fresh coder of this kind fires half of its latents, a trained one fewer than one in a hundred:
dense products are the faster ones at first, sparse ones later. An architecture writes its
formula once, elementwise over `pre`, and it holds for both forms. The dense form keeps several
(B, F) tensors for its backward pass; the sparse one never holds one.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from sae.coders.contract import Coder
from sae.kernels import Codes, Kernels, Support, select_above

DENSE_ABOVE = 1 / 3  # share of entries above which dense is the faster: benchmarks/crossover.py


class Entries(Protocol):
    """Pre-activations above a floor (and, in the dense form, all others too)."""

    @property
    def pre(self) -> Tensor:
        """Dense: (B, F). Sparse: (N,). With gradients to the encoder and to `b_dec`."""
        ...

    def of_latents(self, values_F: Tensor) -> Tensor:
        """One value per latent, in a shape that goes with `pre`."""
        ...

    def decode(self, acts: Tensor, W_dec_FD: Tensor) -> Tensor:
        """(B, D) without `b_dec`, of activations in the shape of `pre`."""
        ...

    def codes(self, acts: Tensor) -> Codes:
        """For counting: no gradient in the dense form."""
        ...


@dataclass(frozen=True)
class DenseEntries:
    pre: Tensor

    def of_latents(self, values_F: Tensor) -> Tensor:
        return values_F

    def decode(self, acts: Tensor, W_dec_FD: Tensor) -> Tensor:
        return acts @ W_dec_FD

    def codes(self, acts: Tensor) -> Codes:
        acts_BF = acts.detach()
        mask_BF = acts_BF > 0
        return Codes(acts_BF[mask_BF], Support.of_mask(mask_BF))


@dataclass(frozen=True)
class SparseEntries:
    pre: Tensor
    support: Support
    kernels: Kernels

    def of_latents(self, values_F: Tensor) -> Tensor:
        return self.kernels.of_latents(values_F, self.support)

    def decode(self, acts: Tensor, W_dec_FD: Tensor) -> Tensor:
        return self.kernels.decode(acts, W_dec_FD, self.support)

    def codes(self, acts: Tensor) -> Codes:
        return Codes(acts, self.support)


def entries_above(coder: Coder, x_BD: Tensor, floor_F: Tensor | float, kernels: Kernels) -> Entries:
    """The pre-activations of x (B, D) that exceed `floor_F`, (F,) or one number for all."""
    centre_D = coder.input_centre()
    centred_BD = (x_BD - centre_D).detach()
    support = select_above(centred_BD, coder.W_enc_FD, coder.b_enc_F, floor_F, DENSE_ABOVE)
    if support is None:
        # b_dec's gradient is −Σ_b ∂/∂pre_b · W_enc: through the bias it needs no (B, D) product.
        shift_D = centre_D - centre_D.detach()
        bias_F = coder.b_enc_F - coder.W_enc_FD.detach() @ shift_D
        return DenseEntries(F.linear(centred_BD, coder.W_enc_FD, bias_F))
    pre_N = kernels.encode_at(x_BD, centre_D, coder.W_enc_FD, coder.b_enc_F, support, support.pre_N)
    return SparseEntries(pre_N, support, kernels)
