"""Which latents fire, how often: density, alive(N), the shares that fire nearly always."""

import math
from typing import Any

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from sae.metrics.registry import metric
from sae.metrics.sums import Sums

TABLE_ENTRIES = 1 << 25  # documents are folded together so that the (U, F) table stays in memory
LEAST_GROUPS = 64  # into which they are folded, however wide the table


class Firings:
    """Counts the firings of F latents over the tokens of a pass.

    `add` takes the codes of B rows, of which `scored_B` count. It returns the per-token terms
    `l0` and `l1` of the scored rows.
    """

    def __init__(self, width: int, units: int, norms_F: Tensor) -> None:
        self.width, self.norms_F = width, norms_F
        self.units = min(units, max(LEAST_GROUPS, TABLE_ENTRIES // width))
        self.folded = self.units < units
        self.tokens = 0
        self.fires_UF = torch.zeros(self.units * width, dtype=torch.float32)  # exact below 2**24
        self.tokens_U = torch.zeros(self.units, dtype=torch.float64)
        self.l0_counts = torch.zeros(0, dtype=torch.int64)

    def add(self, codes: Any, unit_B: Tensor, scored_B: Tensor) -> dict[str, Tensor]:
        acts_N, indices_N, offsets_B1 = codes.ragged()
        l0_B = offsets_B1.diff()
        row_N = torch.repeat_interleave(l0_B).cpu()
        weighted_N = (acts_N.abs() * self.norms_F[indices_N]).cpu().double()
        l1_B = torch.zeros(len(l0_B), dtype=torch.float64).index_add_(0, row_N, weighted_N)
        counted_N = scored_B[row_N]
        self._count(indices_N.cpu()[counted_N], row_N[counted_N], unit_B, scored_B)
        l0_B = l0_B.cpu()[scored_B]
        self._add_l0(l0_B)
        return {"l0": l0_B, "l1": l1_B[scored_B]}

    def _count(self, latent_N: Tensor, row_N: Tensor, unit_B: Tensor, scored_B: Tensor) -> None:
        unit_B = unit_B % self.units
        self.fires_UF.index_add_(
            0, unit_B[row_N] * self.width + latent_N, torch.ones(len(latent_N))
        )
        self.tokens_U += torch.bincount(unit_B[scored_B], minlength=self.units)
        self.tokens += int(scored_B.sum())

    def _add_l0(self, l0_B: Tensor) -> None:
        size = max(len(self.l0_counts), int(l0_B.max()) + 1 if len(l0_B) else 0)
        grown = torch.bincount(l0_B, minlength=size)
        grown[: len(self.l0_counts)] += self.l0_counts
        self.l0_counts = grown

    @property
    def counts_F(self) -> np.ndarray:
        """Scored tokens on which each latent fires."""
        return self.fires_UF.view(self.units, self.width).sum(0, dtype=torch.float64).numpy()

    @property
    def density_F(self) -> np.ndarray:
        """Share of the scored tokens on which each latent fires."""
        return self.counts_F / max(1, self.tokens)

    @property
    def alive_F(self) -> np.ndarray:
        return self.counts_F > 0

    def resampled(self, over: str) -> tuple[str, int]:
        """What the intervals of these metrics resample, and how many of these hold tokens.

        `over` says what the units are; where the table is too small for them, groups of them.
        """
        grouped = self.folded and not over.startswith("groups of ")
        return f"groups of {over}" if grouped else over, int((self.tokens_U > 0).sum())

    def table(self) -> dict[str, np.ndarray]:
        """Sums per unit for the sparsity metrics."""
        fires = self.fires_UF.view(self.units, self.width).numpy()
        return {"count": self.tokens_U.numpy(), "fires": fires}

    def alive_curve(self, points: int = 60) -> dict[str, list[float]]:
        """alive(n) expected of n tokens drawn at random from the N, for n on a log scale up to N.

        Rarefaction (Hurlbert 1971): a latent that fires on c of the N tokens is among n of them
        with the probability 1 − C(N − c, n) / C(N, n). The first n in the order of the text would
        be those of a few documents.
        """
        n = np.unique(np.geomspace(1, max(1, self.tokens), points).round().astype(np.int64))
        count, latents = np.unique(self.counts_F[self.alive_F], return_counts=True)
        alive = [latents @ _seen(count, int(drawn), self.tokens) / self.width for drawn in n]
        return {"tokens": n.tolist(), "alive": [float(share) for share in alive]}

    def density_histogram(self, bins_per_decade: int = 5) -> dict[str, Any]:
        """Latents by log10 density; `silent` ones have none."""
        density = self.density_F[self.density_F > 0]
        lowest = math.floor(math.log10(1 / max(1, self.tokens)))
        edges = np.linspace(lowest, 0, -lowest * bins_per_decade + 1)
        counts, _ = np.histogram(np.log10(density), bins=edges)
        return {
            "log10_density_edges": edges.tolist(),
            "latents": counts.tolist(),
            "silent": int(self.width - len(density)),
            "tokens": self.tokens,
        }

    def l0_histogram(self, bins: int = 40) -> dict[str, list[int]]:
        """Tokens by number of active latents, in bins of whole numbers."""
        counts = self.l0_counts.numpy()
        held = np.flatnonzero(counts)
        low, high = (int(held[0]), int(held[-1])) if len(held) else (0, 0)
        step = max(1, -(-(high - low + 1) // bins))
        edges = np.arange(low, high + step + 1, step)
        tokens, _ = np.histogram(np.arange(len(counts)), bins=edges, weights=counts)
        return {"l0_edges": edges.tolist(), "tokens": tokens.astype(int).tolist()}


def _seen(count: np.ndarray, drawn: int, tokens: int) -> np.ndarray:
    """The probability that `drawn` of the tokens hold one of `count`, for each count."""
    left = tokens - count  # those on which the latent is silent
    spare = np.maximum(left - drawn, 0)
    missed = gammaln(left + 1) - gammaln(spare + 1) - gammaln(tokens + 1)
    missed += gammaln(tokens - drawn + 1)
    return np.where(left < drawn, 1.0, -np.expm1(np.minimum(0.0, missed)))


def _density(s: Sums) -> np.ndarray:
    return s["fires"] / s["count"][:, None]


@metric("sparsity", "share of latents", "higher", recentred=True)
def alive(s: Sums) -> np.ndarray:
    """alive(N) = #{i : latent i fires at least once in N tokens} / F.

    Grows with N, so it means nothing without its N (`tokens`).
    """
    return (s["fires"] > 0).mean(axis=1)


@metric("sparsity", "share of latents", "lower")
def dense_1pct(s: Sums) -> np.ndarray:
    """#{i : density_i > 0.01} / F, density = share of tokens on which the latent fires."""
    return (_density(s) > 0.01).mean(axis=1)


@metric("sparsity", "share of latents", "lower")
def dense_10pct(s: Sums) -> np.ndarray:
    """#{i : density_i > 0.1} / F, density = share of tokens on which the latent fires."""
    return (_density(s) > 0.1).mean(axis=1)
