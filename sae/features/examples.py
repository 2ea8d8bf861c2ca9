"""Contexts in which a feature fires: the strongest, a sample of every strength, near-misses.

Activations are positive float16, whose bit patterns sort as the numbers do; so ranks and exact
quantiles come from a radix sort or a count of 16-bit integers, also for a feature with millions
of firings.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sae.base.errors import UserError, nearest
from sae.features.windows import FOLD_CONTEXT, Example, fold

if TYPE_CHECKING:
    from sae.features.index import FeatureIndex

KINDS = ("top", "quantiles", "bin", "random", "near-miss")
MOST_CANDIDATES = 50_000
"""Duplicates are looked past up to this many candidates."""
NEAR_MISS_SHARE = 0.05
"""A token counts as one of the feature's own if it takes this share of its firings."""


def examples(
    index: "FeatureIndex",
    feature: int,
    kind: str = "top",
    n: int | None = None,
    *,
    context: int | None = 10,
    low: float | None = None,
    high: float | None = None,
    quantiles: int = 10,
    seed: int = 0,
) -> list[Example]:
    """Contexts of a feature, duplicates folded (same tokens 10 either side).

    Args:
        kind: "top" (strongest first), "quantiles" (a sample from each of `quantiles` intervals
            that hold equally many nonzero activations, highest interval first), "bin" (a sample
            with `low` <= activation < `high`; the largest activation belongs to the last bin),
            "random" (a sample of all firings), "near-miss" (its usual tokens, but it is silent).
        n: how many at most; default 20, for "quantiles" 5 per interval.
        context: tokens either side in the window; None for the whole packed row.
        seed: of the samples.

    Raises:
        UserError: unknown kind or feature, or a "bin" without its bounds.
    """
    index.check(feature)
    if kind not in KINDS:
        raise UserError(
            f"There are no `{kind}` examples; give one of {', '.join(KINDS)}.{nearest(kind, KINDS)}"
        )
    n = (5 * quantiles if kind == "quantiles" else 20) if n is None else n
    rows, acts = index.slices(feature)
    bits = acts.view(np.uint16)
    rng = np.random.default_rng((seed, feature))
    pick = _Picker(index, feature, rows, bits, context)
    if kind == "near-miss":
        return pick.silent(near_miss_rows(index, feature, rng), n)
    if kind == "top":
        return pick.folded(lambda limit: strongest(bits, limit), n)
    if kind == "quantiles":
        return pick.intervals(n, quantiles, rng)
    chosen = np.arange(len(bits)) if kind == "random" else _in_bin(acts, low, high)
    sample = rng.permutation(chosen)
    found = pick.folded(lambda limit: sample[:limit], n)
    return sorted(found, key=lambda example: -example.activation)


def strongest(bits_N: np.ndarray, n: int) -> np.ndarray:
    """Offsets of the `n` largest of float16 bit patterns, largest first, ties in row order."""
    if n >= len(bits_N):
        return np.argsort(~bits_N, kind="stable")[:n]
    threshold = np.partition(bits_N, len(bits_N) - n)[len(bits_N) - n]
    above = np.flatnonzero(bits_N > threshold)
    above = above[np.argsort(~bits_N[above], kind="stable")]
    ties = np.flatnonzero(bits_N == threshold)[: n - len(above)]
    return np.concatenate([above, ties])


def near_miss_rows(index: "FeatureIndex", feature: int, rng: np.random.Generator) -> np.ndarray:
    """Rows, in random order, whose token is one of the feature's usual ones while it is silent."""
    own = index.table.loc[feature, ["top_token_ids", "top_token_counts"]]
    ids, counts = np.asarray(own.iloc[0], np.int64), np.asarray(own.iloc[1], np.int64)
    if not len(ids):
        return np.empty(0, np.int64)
    fired = index.indptr[feature + 1] - index.indptr[feature]
    usual = np.zeros(len(index.vocabulary), bool)
    usual[ids[counts >= NEAR_MISS_SHARE * fired]] = True
    usual[ids[0]] = True
    candidate_ST = usual[index.tokens_ST]
    candidate_ST[:, 0] = False
    candidates = candidate_ST.reshape(-1)
    candidates[index.slices(feature)[0]] = False
    return rng.permutation(np.flatnonzero(candidates))


def _in_bin(acts: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    if low is None or high is None:
        raise UserError("Examples of a bin need its bounds; give `low` and `high`.")
    inside = (acts >= np.float32(low)) & (acts < np.float32(high))
    if len(acts) and high >= acts.max():
        inside |= acts == acts.max()
    return np.flatnonzero(inside)


class _Picker:
    """Turns offsets into a feature's firings into folded `Example`s."""

    def __init__(
        self,
        index: "FeatureIndex",
        feature: int,
        rows: np.ndarray,
        bits: np.ndarray,
        context: int | None,
    ):
        self.index, self.feature, self.context = index, feature, context
        self.rows, self.bits = rows, bits
        self.ranks = np.cumsum(np.bincount(bits, minlength=1))
        self.reach = FOLD_CONTEXT if context is None else min(context, FOLD_CONTEXT)

    def folded(self, candidates: Callable[[int], np.ndarray], n: int) -> list[Example]:
        """`n` examples with distinct windows of the first candidates, looking as far as needed."""
        limit = 2 * n
        while True:
            offsets = candidates(limit)
            keep, copies = fold(self.index.tokens_ST, self.rows[offsets], self.reach)
            if len(keep) >= n or len(offsets) < limit or limit >= MOST_CANDIDATES:
                found = offsets[keep[:n]]
                acts = self.bits[found].view(np.float16).astype(np.float32)
                shares = self.ranks[self.bits[found]] / self.ranks[-1]
                return self._examples(self.rows[found], acts, shares, copies[:n])
            limit *= 4

    def silent(self, rows: np.ndarray, n: int) -> list[Example]:
        candidates = rows[: max(20 * n, 1000)]
        keep, copies = fold(self.index.tokens_ST, candidates, self.reach)
        found = candidates[keep[:n]]
        return self._examples(found, np.zeros(len(found)), np.zeros(len(found)), copies[:n])

    def intervals(self, n: int, quantiles: int, rng: np.random.Generator) -> list[Example]:
        order = np.argsort(self.bits, kind="stable")
        found: list[Example] = []
        for number, part in reversed(list(enumerate(np.array_split(order, quantiles)))):
            if not len(part):
                continue
            ends = self.bits[part[[0, -1]]].view(np.float16)
            sample = rng.permutation(part)
            share = max(1, n // quantiles)
            interval = (number, float(ends[0]), float(ends[1]))
            picked = self.folded(lambda limit, sample=sample: sample[:limit], share)
            picked.sort(key=lambda example: -example.activation)
            found += [Example(**{**vars(one), "interval": interval}) for one in picked]
        return found

    def _examples(
        self, rows: np.ndarray, acts: np.ndarray, shares: np.ndarray, copies: np.ndarray
    ) -> list[Example]:
        if not len(rows):
            return []
        windows = self.index.windows(rows, self.feature, self.context)
        documents = [self.index.document(number) for number in self.index.documents_of(rows)]
        columns = (column.tolist() for column in (rows, acts, shares))
        parts = zip(windows, *columns, documents, copies.tolist(), strict=True)
        return [Example(*part) for part in parts]
