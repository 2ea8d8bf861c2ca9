"""A coder's codes, written in other directions than its own."""

import copy

import torch
from torch import Tensor, nn

from sae.coders import Coder, Codes


class OtherDecoder:
    """Encodes as the coder does and decodes with other rows (F, D).

    Not the coder with its decoder changed: where the encoder is the decoder (matching pursuit), or
    goes through it (ISTA), that is another encoder too, and permuted rows would cost nothing.
    """

    def __init__(self, coder: Coder, rows_FD: Tensor) -> None:
        self._coder = coder
        # All weights but the decoder's are the coder's own: no copies of wide matrices.
        self._writer = copy.deepcopy(coder, {id(p): p for p in coder.parameters()})
        self._writer.W_dec_FD = nn.Parameter(rows_FD.detach(), requires_grad=False)

    @property
    def W_dec_FD(self) -> Tensor:
        return self._writer.W_dec_FD

    @property
    def b_dec_D(self) -> Tensor:
        return self._writer.b_dec_D

    def encode(self, x_BD: Tensor) -> Codes:
        return self._coder.encode(x_BD)

    def decode(self, codes: Codes, x_BD: Tensor | None = None) -> Tensor:
        return self._writer.decode(codes, x_BD)

    def __call__(self, x_BD: Tensor) -> Tensor:
        return self.decode(self.encode(x_BD), x_BD)


def shuffled(coder: Coder, seed: int) -> Tensor:
    """(F, D): the coder's decoder rows, permuted."""
    order = torch.randperm(coder.d_sae, generator=torch.Generator().manual_seed(seed))
    return coder.W_dec_FD.detach()[order.to(coder.W_dec_FD.device)]
