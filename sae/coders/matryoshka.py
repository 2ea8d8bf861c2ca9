"""Matryoshka: nested dictionaries, each of which must reconstruct on its own.

Bussmann, Nabeshima, Karvonen & Nanda 2025, "Learning Multi-Level Features with Matryoshka
Sparse Autoencoders". Codes, threshold and saved form are those of BatchTopK.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.coders.batchtopk import BatchTopK
from sae.coders.contract import Forward
from sae.kernels import Kernels, Support

PREFIXES = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)  # the paper's 2,048 ... 65,536 of 65,536


class Matryoshka(BatchTopK):
    """BatchTopK over all F latents; loss = Σ_m ‖x − x̂_m‖² / D, where x̂_m is decoded from those
    active latents that are among the first `prefixes[m]` · F.

    Early latents must do without the later ones, so they keep the general features that a
    plain dictionary would split up. `prefixes` are shares of the dictionary, the last one 1.
    """

    architecture = "matryoshka"
    hyperparameters = ("k",)

    def __init__(
        self, d_in: int, d_sae: int, k: int = 32, prefixes: Sequence[float] = PREFIXES
    ) -> None:
        super().__init__(d_in, d_sae, k)
        self.prefixes = tuple(float(share) for share in prefixes)
        self.ends = tuple(round(share * d_sae) for share in self.prefixes)
        if not self.ends or self.ends[-1] != d_sae:
            raise UserError(f"prefixes are {self.prefixes}; the last one must be 1.")
        if any(b <= a for a, b in zip((0, *self.ends), self.ends, strict=False)):
            raise UserError(
                f"prefixes are {self.prefixes}; of {d_sae} latents they must be rising shares, "
                "each of at least one latent more than the one before."
            )

    def gradient_values(self, rows: int) -> int:
        """The decoder's is whole, since `_groups` splits it: in parts, and joined from them."""
        return self.touched(rows) * self.d_in + 2 * self.d_sae * self.d_out

    def _sparse_forward(self, x_BD: Tensor, support: Support, kernels: Kernels) -> Forward:
        """One encoding, one decoding of each entry: x̂_m is x̂_(m−1) and the group's own sum."""
        codes = self._codes_at(x_BD, support, kernels)
        x_hat_BD = self.b_dec_D.expand_as(x_BD)
        nested = x_BD.new_zeros(())
        for start, W_dec_GD, chosen_N, within in self._groups(support):
            acts_N = codes.acts_N.index_select(0, chosen_N)
            x_hat_BD = x_hat_BD + kernels.decode(acts_N, W_dec_GD, within)
            if start + len(W_dec_GD) < self.d_sae:
                nested = nested + (x_BD - x_hat_BD).square().sum()
        return Forward(x_hat_BD, codes, nested / x_BD.numel())

    def _groups(self, support: Support) -> Iterator[tuple[int, Tensor, Tensor, Support]]:
        """Of each group of latents between two prefixes: its start, decoder rows, the places of
        its entries, and the support within the group.

        `split` joins the groups' gradients once; slices would each fill an (F, D) with zeros.
        """
        starts = (0, *self.ends[:-1])
        sizes = [end - start for start, end in zip(starts, self.ends, strict=True)]
        for start, W_dec_GD in zip(starts, self.W_dec_FD.split(sizes), strict=True):
            latents_N = support.indices_N - start
            chosen_N = ((latents_N >= 0) & (latents_N < len(W_dec_GD))).nonzero()[:, 0]
            counts = torch.bincount(support.row_of_N[chosen_N], minlength=support.rows)
            within = Support.of_counts(latents_N[chosen_N], counts, len(W_dec_GD))
            within = replace(within, dense_gradient=True)
            yield start, W_dec_GD, chosen_N, within
