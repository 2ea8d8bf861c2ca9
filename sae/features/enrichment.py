"""Which tokens a feature fires on, and which features fire with it."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from sae.features.vocabulary import Vocabulary

SAMPLED_ROWS = 20_000
"""Co-activation of a feature that fires more often is estimated from that many of its rows."""


def enrichment(
    tokens_N: np.ndarray,
    acts_N: np.ndarray,
    token_counts_V: np.ndarray,
    vocabulary: Vocabulary,
    n: int | None = None,
) -> pd.DataFrame:
    """Table of the tokens under a feature's N firings; columns as `FeatureIndex.enrichment`."""
    size = len(token_counts_V)
    counts_V = np.bincount(tokens_N, minlength=size)
    mass_V = np.bincount(tokens_N, weights=acts_N.astype(np.float64), minlength=size)
    found = np.flatnonzero(counts_V)
    found = found[np.lexsort((found, -mass_V[found]))][:n]
    p_fires = counts_V[found] / np.maximum(token_counts_V[found], 1)
    density = len(tokens_N) / max(int(token_counts_V.sum()), 1)
    return pd.DataFrame(
        {
            "token_id": found,
            "token": [vocabulary.name(token) for token in found],
            "count": counts_V[found],
            "corpus_count": token_counts_V[found],
            "p_fires": p_fires,
            "mass_share": mass_V[found] / max(mass_V.sum(), 1e-30),
            "lift": p_fires / max(density, 1e-30),
        }
    )


def firings_at(rows_M: np.ndarray, row_indptr: np.ndarray, row_features: np.ndarray) -> np.ndarray:
    """The features that fire at the rows, one after the other."""
    rows_M = np.asarray(rows_M, np.int64)
    starts = row_indptr[rows_M]
    lengths = row_indptr[rows_M + 1] - starts
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return row_features[np.repeat(starts, lengths) + offsets]


def coactivation(
    rows_N: np.ndarray,
    feature: int,
    counts_F: np.ndarray,
    counts_at: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Features that fire in the same rows, by Jaccard index |A and B| / |A or B|, largest first.

    Of a feature with more than `SAMPLED_ROWS` firings, evenly spaced rows are looked at and the
    intersection is scaled up; below that it is exact.

    Args:
        rows_N: where `feature` fires.
        counts_F: how often each feature fires.
        counts_at: how many of given rows fire each feature.
    """
    total = len(rows_N)
    if total == 0:
        return np.empty(0, np.int64), np.empty(0)
    looked_at = rows_N
    if total > SAMPLED_ROWS:
        looked_at = rows_N[np.linspace(0, total - 1, SAMPLED_ROWS).astype(np.int64)]
    together = np.minimum(counts_at(looked_at) * (total / len(looked_at)), counts_F)
    together[feature] = 0
    jaccard = together / np.maximum(total + counts_F - together, 1)
    found = np.flatnonzero(jaccard)
    order = found[np.argsort(-jaccard[found], kind="stable")]
    return order, jaccard[order]
