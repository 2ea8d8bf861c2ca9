"""At which held-out firings each feature is taken out: a sample that is fair to each of them."""

from dataclasses import dataclass

import numpy as np

from sae.features.index import FeatureIndex

MOST = 16
"""Firings of one feature."""
PER_TOKEN = 2
"""Firings that are wanted for each token that is run through the model unchanged."""
EVEN = 0.5
"""Share of the sequences that are spread evenly; the others are those in which most of the features
fire that do not fire in these."""
BLOCK = 64
"""Sequences whose firings are looked at together."""


@dataclass(frozen=True)
class Firings:
    """N firings, by row: `rows_N` of the index, ascending, and the feature that fires."""

    rows_N: np.ndarray
    features_N: np.ndarray


def draw_firings(
    index: FeatureIndex, tokens: int, special: frozenset[int], seed: int = 0
) -> Firings:
    """At most `tokens` firings, in held-out sequences of about half as many tokens in all.

    Of each feature random ones among all that it has in those sequences, of none more than `MOST`,
    and of all as many as the budget allows. Firings on special tokens or before them, and at the
    end of a row, are left out: no prediction that is scored is made there.
    """
    usable_ST = _usable(index, special)
    wanted = max(1, tokens // PER_TOKEN // (index.context - 1))
    chosen = _sequences(index, usable_ST, wanted)
    found = [_firings(index, usable_ST, s, s + 1) for s in chosen]
    if not found:
        return Firings(np.empty(0, np.int64), np.empty(0, np.int64))
    rows_M, features_M = (np.concatenate(part) for part in zip(*found, strict=True))
    kept = _fair(features_M, index.width, tokens, np.random.default_rng(seed))
    return Firings(rows_M[kept], features_M[kept].astype(np.int64))


def _usable(index: FeatureIndex, special: frozenset[int]) -> np.ndarray:
    """(S, T) bool: held-out tokens that predict one, neither of the two special."""
    first, last = index.meta["splits"]["heldout"]
    usable_ST = np.zeros(index.tokens_ST.shape, bool)
    ordinary_ST = ~np.isin(index.tokens_ST[first:last], sorted(special))
    usable_ST[first:last, 1:-1] = ordinary_ST[:, 1:-1] & ordinary_ST[:, 2:]
    return usable_ST


def _firings(
    index: FeatureIndex, usable_ST: np.ndarray, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and features of the usable firings in a range of sequences, in row order."""
    rows, features = index.firings_between(start * index.context, stop * index.context)
    usable = usable_ST.reshape(-1)[rows]
    return rows[usable], features[usable]


def _sequences(index: FeatureIndex, usable_ST: np.ndarray, wanted: int) -> np.ndarray:
    """So many held-out sequences, ascending; all, where there are no more."""
    held = np.arange(*index.meta["splits"]["heldout"])
    if len(held) <= wanted:
        return held
    even = max(1, round(EVEN * wanted))
    chosen = held[np.linspace(0, len(held) - 1, even).round().astype(int)]
    seen_F = np.zeros(index.width, bool)
    for s in chosen:
        seen_F[_firings(index, usable_ST, s, s + 1)[1]] = True
    others = np.setdiff1d(held, chosen)
    gain = _new_features(index, usable_ST, seen_F)[others]
    best = others[np.argsort(-gain, kind="stable")[: wanted - len(chosen)]]
    return np.sort(np.concatenate([chosen, best]))


def _new_features(index: FeatureIndex, usable_ST: np.ndarray, seen_F: np.ndarray) -> np.ndarray:
    """(S,): how many features that were not seen yet fire in each held-out sequence."""
    gain_S = np.zeros(index.sequences, np.int64)
    first, last = index.meta["splits"]["heldout"]
    for start in range(first, last, BLOCK):
        rows, features = _firings(index, usable_ST, start, min(start + BLOCK, last))
        new = ~seen_F[features]
        pairs = np.unique(rows[new] // index.context * index.width + features[new])
        gain_S += np.bincount(pairs // index.width, minlength=index.sequences)
    return gain_S


def _fair(features_M: np.ndarray, width: int, budget: int, rng: np.random.Generator) -> np.ndarray:
    """Offsets (ascending) of at most `budget` firings, as evenly over the features as can be."""
    mixed = rng.permutation(len(features_M))
    order = mixed[np.argsort(features_M[mixed], kind="stable")]  # by feature, at random within
    counts_F = np.bincount(features_M, minlength=width)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts_F) - counts_F, counts_F)
    each = next((n for n in range(MOST, 1, -1) if np.minimum(counts_F, n).sum() <= budget), 1)
    kept = order[rank < each]
    if len(kept) > budget:  # more features than tokens
        kept = rng.choice(kept, budget, replace=False)
    return np.sort(kept)
