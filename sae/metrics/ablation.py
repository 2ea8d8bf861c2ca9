"""Taking latents out of an activation, and leaving all else as it is, the coder's error too."""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.coders import Codes


class Dictionary(Protocol):
    """What latents are taken out of: a coder, or a control with the same parts."""

    @property
    def W_dec_FD(self) -> Tensor: ...
    @property
    def b_dec_D(self) -> Tensor: ...
    def encode(self, x_BD: Tensor, /) -> Codes: ...
    def decode(self, codes: Codes, /) -> Tensor: ...


class Ablation:
    """x ↦ x − Σ_{i ∈ latents} f_i(x) d_i, to be spliced in where the coder reads.

    This is x̂ without these latents plus the coder's own error e = x − x̂: with no latents it is x,
    so that what changes is due to the latents alone. Raises `UserError` for latents that the coder
    does not have.
    """

    def __init__(self, coder: Dictionary, latents: npt.ArrayLike) -> None:
        chosen = torch.as_tensor(np.asarray(latents, np.int64))
        width = len(coder.W_dec_FD)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < width:
            raise UserError(
                f"Latents {int(chosen.min())} to {int(chosen.max())} were to be ablated; this "
                f"coder has 0 to {width - 1}."
            )
        self.coder = coder
        self.chosen_F = torch.zeros(width, dtype=torch.bool, device=coder.W_dec_FD.device)
        self.chosen_F[chosen] = True

    def __call__(self, x_BD: Tensor) -> Tensor:
        return x_BD - self.part(x_BD)

    @torch.no_grad()
    def part(self, x_BD: Tensor) -> Tensor:
        """(B, D): Σ_{i ∈ latents} f_i(x) d_i."""
        codes = self.coder.encode(x_BD)
        kept_N = codes.acts_N * self.chosen_F[codes.support.indices_N]
        return self.coder.decode(Codes(kept_N, codes.support)) - self.coder.b_dec_D


class EqualNorm:
    """x ↦ x − ‖Σ f_i d_i‖ · u with u a random unit vector per token: as much removed, at random."""

    def __init__(self, ablation: Ablation, seed: int = 0) -> None:
        self.ablation, self.seed = ablation, seed

    def __call__(self, x_BD: Tensor) -> Tensor:
        part_BD = self.ablation.part(x_BD)
        random_BD = torch.randn(x_BD.shape, generator=torch.Generator().manual_seed(self.seed))
        direction_BD = torch.nn.functional.normalize(random_BD.to(x_BD), dim=1)
        return x_BD - part_BD.norm(dim=1, keepdim=True) * direction_BD
