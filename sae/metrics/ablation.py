"""What is spliced in to ask what latents and errors do: latents taken out, noise of equal length.

An ablation leaves all else as it is, the coder's error too.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.coders import Codes
from sae.metrics.continuation import Replace


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


class RandomDirections:
    """x ↦ (B, D) unit vectors, of a direction per row that nothing decides but the seed.

    Every call draws new ones: the rows of all batches are independent. The order of the calls
    is part of the seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generator: torch.Generator | None = None

    def __call__(self, x_BD: Tensor) -> Tensor:
        if self._generator is None:
            self._generator = torch.Generator(x_BD.device).manual_seed(self._seed)
        noise_BD = torch.randn(x_BD.shape, generator=self._generator, device=x_BD.device)
        return F.normalize(noise_BD.to(x_BD), dim=1)


class EqualNorm:
    """x ↦ x − ‖Σ f_i d_i‖ · u with u a random unit vector per token: as much removed, at random."""

    def __init__(self, ablation: Ablation, seed: int = 0) -> None:
        self._ablation, self._directions = ablation, RandomDirections(seed)

    def __call__(self, x_BD: Tensor) -> Tensor:
        length_B1 = self._ablation.part(x_BD).norm(dim=1, keepdim=True)
        return x_BD - length_B1 * self._directions(x_BD)


class RandomError:
    """x ↦ x + ‖x − x̂‖ · u, u a random unit vector per token: as long an error as the coder's."""

    def __init__(self, coder: Replace, seed: int = 0) -> None:
        self._coder, self._directions = coder, RandomDirections(seed)

    def __call__(self, x_BD: Tensor) -> Tensor:
        length_B1 = (x_BD - self._coder(x_BD)).norm(dim=1, keepdim=True)
        return x_BD + length_B1 * self._directions(x_BD)
