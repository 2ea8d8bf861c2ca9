"""The interchange form of sparse codes: which latents are active in each row, and how much."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def offsets_of(counts_S: Tensor) -> Tensor:
    """(S + 1,) int64: where each of S consecutive segments of these lengths starts and ends."""
    offsets = torch.zeros(len(counts_S) + 1, dtype=torch.int64, device=counts_S.device)
    torch.cumsum(counts_S, 0, out=offsets[1:])
    return offsets


@dataclass(frozen=True)
class Support:
    """The active latents of B rows, row after row (compressed sparse rows without values).

    `indices_N` int64 latents in [0, width); `offsets_B1` int64, row b owns
    indices_N[offsets_B1[b] : offsets_B1[b + 1]]. `k` is set where every row has exactly k.
    `pre_N` are the entries' pre-activations, where the choice had to compute them in the
    weights' own precision: they hold for the x and the weights of that choice alone.
    `dense_gradient`: gradients of the weights are whole matrices, however few rows are touched.
    """

    indices_N: Tensor
    offsets_B1: Tensor
    width: int
    k: int | None = None
    pre_N: Tensor | None = None
    dense_gradient: bool = False

    @classmethod
    def fixed(cls, indices_BK: Tensor, width: int, pre_BK: Tensor | None = None) -> "Support":
        rows, k = indices_BK.shape
        offsets = torch.arange(0, rows * k + 1, k or 1, device=indices_BK.device)[: rows + 1]
        if k == 0:
            offsets = torch.zeros(rows + 1, dtype=torch.int64, device=indices_BK.device)
        pre_N = None if pre_BK is None else pre_BK.reshape(-1)
        return cls(indices_BK.reshape(-1), offsets, width, k, pre_N)

    @classmethod
    def of_counts(
        cls, indices_N: Tensor, counts_B: Tensor, width: int, pre_N: Tensor | None = None
    ) -> "Support":
        """Of the latents of all rows, row after row, and how many each row has."""
        return cls(indices_N, offsets_of(counts_B), width, pre_N=pre_N)

    @classmethod
    def of_mask(cls, mask_BF: Tensor) -> "Support":
        return cls.of_counts(mask_BF.nonzero()[:, 1], mask_BF.sum(dim=1), mask_BF.shape[1])

    @classmethod
    def concatenated(cls, parts: Sequence["Support"]) -> "Support":
        """The rows of one support after those of another; at least one, of one width."""
        if len(parts) == 1:
            return parts[0]
        counts_B = torch.cat([part.offsets_B1.diff() for part in parts])
        known = [part.pre_N for part in parts if part.pre_N is not None]
        pre_N = torch.cat(known) if len(known) == len(parts) else None
        indices_N = torch.cat([part.indices_N for part in parts])
        return cls.of_counts(indices_N, counts_B, parts[0].width, pre_N)

    @property
    def rows(self) -> int:
        return len(self.offsets_B1) - 1

    @cached_property
    def row_of_N(self) -> Tensor:
        """Row of each entry."""
        if self.k:
            return torch.arange(self.rows * self.k, device=self.indices_N.device) // self.k
        counts = self.offsets_B1.diff()
        return torch.repeat_interleave(counts)

    @property
    def touches_few(self) -> bool:
        """Fewer entries than latents: a gradient of the weights is then mostly rows of zeros."""
        return len(self.indices_N) < self.width and not self.dense_gradient

    @cached_property
    def touched(self) -> tuple[Tensor, "Support"]:
        """(latents_U that have an entry, ascending; this support over these U latents alone)."""
        present_F = torch.zeros(self.width, dtype=torch.bool, device=self.indices_N.device)
        present_F[self.indices_N] = True
        latents_U = present_F.nonzero()[:, 0]
        number_F = present_F.cumsum(0) - 1
        own = Support(number_F[self.indices_N], self.offsets_B1, len(latents_U), self.k)
        return latents_U, own

    @cached_property
    def latent_major(self) -> tuple[Tensor, Tensor, Tensor]:
        """(order_N, row_of_N in that order, offsets_F1): the same entries sorted by latent.

        Computed once and shared by both weight gradients.
        """
        order = self.indices_N.argsort(stable=True)
        offsets = offsets_of(torch.bincount(self.indices_N, minlength=self.width))
        return order, self.row_of_N[order], offsets


@dataclass(frozen=True)
class Codes:
    """Activations `acts_N` of the latents that a `Support` names. Conversions keep row order."""

    acts_N: Tensor
    support: Support

    @classmethod
    def fixed(cls, acts_BK: Tensor, indices_BK: Tensor, width: int) -> "Codes":
        return cls(acts_BK.reshape(-1), Support.fixed(indices_BK, width))

    @property
    def rows(self) -> int:
        return self.support.rows

    @property
    def width(self) -> int:
        return self.support.width

    @property
    def acts_BK(self) -> Tensor:
        """(B, K); where rows differ in length, K is the longest and the rest is 0."""
        return self._padded(self.acts_N)

    @property
    def indices_BK(self) -> Tensor:
        """(B, K) int64; padded entries name latent 0 with an activation of 0."""
        return self._padded(self.support.indices_N)

    def ragged(self) -> tuple[Tensor, Tensor, Tensor]:
        """(acts_N, indices_N, offsets_B1) with zero activations dropped."""
        keep = self.acts_N != 0
        rows = self.support.row_of_N[keep]
        offsets = offsets_of(torch.bincount(rows, minlength=self.rows))
        return self.acts_N[keep], self.support.indices_N[keep], offsets

    def dense(self) -> Tensor:
        """(B, F). For small batches and tests; nothing on a hot path builds it."""
        out = self.acts_N.new_zeros(self.rows, self.width)
        return out.index_put((self.support.row_of_N, self.support.indices_N), self.acts_N)

    def l0(self) -> Tensor:
        """(B,) number of latents with a non-zero activation."""
        counts = torch.zeros(self.rows, dtype=torch.int64, device=self.acts_N.device)
        return counts.index_add_(0, self.support.row_of_N, (self.acts_N != 0).long())

    def _padded(self, values_N: Tensor) -> Tensor:
        if self.support.k is not None:
            return values_N.view(self.rows, self.support.k)
        counts = self.support.offsets_B1.diff()
        widest = int(counts.max()) if self.rows else 0
        out = values_N.new_zeros(self.rows, widest)
        rows = self.support.row_of_N
        slot = torch.arange(len(values_N), device=rows.device) - self.support.offsets_B1[rows]
        out[rows, slot] = values_N
        return out
