"""Numbers per feature, from the CSC arrays: vectorised over blocks of features.

All are of the nonzero activations but density, which is count over indexed rows.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd

from sae.features.layout import BINS, TOP_TOKENS

BLOCK, WIDEST_BLOCK = 4_000_000, 4096
"""Firings and features looked at together, which bounds the memory."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
SINGLE_TOKEN_SHARE = 0.9
"""`single_token`: this share of the activation mass or more lies on one token."""
POSITION_ONLY_ENTROPY = 0.5
"""`position_only`: entropy of positions, as a share of the largest possible, under this."""
FEWEST_FOR_FLAGS = 10


def feature_blocks(indptr: np.ndarray, firings: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Ranges of features with about `firings` firings each (one feature can have more)."""
    start, width = 0, len(indptr) - 1
    while start < width:
        stop = int(np.searchsorted(indptr, indptr[start] + firings, side="right")) - 1
        stop = min(max(stop, start + 1), start + WIDEST_BLOCK, width)
        yield start, stop
        start = stop


def feature_statistics(
    indptr: np.ndarray, rows: np.ndarray, acts: np.ndarray, tokens_ST: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """(table, histogram edges (F, BINS + 1) f32, histogram counts (F, BINS) i64)."""
    blocks = [
        _block_statistics(indptr[start : stop + 1], rows, acts, tokens_ST)
        for start, stop in feature_blocks(indptr)
    ]
    table = pd.concat([block[0] for block in blocks], ignore_index=True)
    edges, counts = (np.concatenate([block[i] for block in blocks]) for i in (1, 2))
    table.insert(0, "id", np.arange(len(table)))
    return table, edges, counts


def _block_statistics(indptr: np.ndarray, rows, acts, tokens_ST: np.ndarray):
    begin, end = int(indptr[0]), int(indptr[-1])
    starts, counts = indptr[:-1] - begin, np.diff(indptr)
    rows_N, bits_N = np.asarray(rows[begin:end]), np.asarray(acts[begin:end]).view(np.uint16)
    values_N = bits_N.view(np.float16).astype(np.float64)
    feature_N = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    # float16 bits of positive numbers sort as the numbers do, after the feature in one key
    sorted_N = np.sort((feature_N << 16) | bits_N).astype(np.uint16).view(np.float16)
    total = np.bincount(feature_N, values_N, len(counts))
    squares = np.bincount(feature_N, values_N**2, len(counts))
    fired = counts > 0
    safe = np.maximum(counts, 1)
    mean = total / safe
    columns: dict[str, object] = {
        "density": counts / (tokens_ST.shape[0] * (tokens_ST.shape[1] - 1)),
        "count": counts,
        "mean": mean,
        "max": _at(sorted_N, starts + counts - 1, fired),
        "std": np.sqrt(np.maximum(squares / safe - mean**2, 0.0)),
    }
    for name, q in QUANTILES.items():
        # inverted CDF: the smallest activation with at least a share q at or under it
        rank = np.maximum(np.ceil(q * counts).astype(np.int64) - 1, 0)
        columns[name] = _at(sorted_N, starts + rank, fired)
    tokens_N = tokens_ST.reshape(-1)[rows_N]
    ids, token_counts, mass = top_tokens(feature_N, tokens_N, values_N, len(counts))
    position_N = rows_N % tokens_ST.shape[1]
    entropy = position_entropy(feature_N, position_N, len(counts), tokens_ST.shape[1])
    many = counts >= FEWEST_FOR_FLAGS
    single = many & (mass / np.where(fired, total, 1.0) >= SINGLE_TOKEN_SHARE)
    columns |= {
        "top_token_ids": ids,
        "top_token_counts": token_counts,
        "position_entropy": entropy,
        "position_only": many & (entropy < POSITION_ONLY_ENTROPY),
        "single_token": single,
    }
    edges, histogram = histograms(feature_N, values_N, np.asarray(columns["max"]))
    return pd.DataFrame(columns), edges, histogram


def _at(sorted_N: np.ndarray, where: np.ndarray, fired: np.ndarray) -> np.ndarray:
    if not len(sorted_N):
        return np.zeros(len(fired))
    return np.where(fired, sorted_N[np.clip(where, 0, len(sorted_N) - 1)], 0.0)


def top_tokens(feature_N, tokens_N, values_N, width: int):
    """The tokens that fire each feature most often, with the counts; and the largest mass of one.

    Returns:
        (ids, counts): lists of up to `TOP_TOKENS` per feature, most frequent first (ties: larger
        activation mass first); mass (F,): the largest sum of activations on one token.
    """
    # two stable sorts of small integers, which are radix sorts, are far quicker than one of pairs
    order = np.argsort(tokens_N, kind="stable")
    small = feature_N.astype(np.uint16 if width <= 2**16 else np.uint32)
    order = order[np.argsort(small[order], kind="stable")]
    feature_N, tokens_N = feature_N[order], tokens_N[order].astype(np.int64)
    changes = (np.diff(feature_N, prepend=-1) != 0) | (np.diff(tokens_N, prepend=-1) != 0)
    starts = np.flatnonzero(changes)
    counts = np.diff(starts, append=len(order))
    mass = np.add.reduceat(values_N[order], starts) if len(starts) else np.empty(0)
    feature, token = feature_N[starts], tokens_N[starts]
    order = np.lexsort((-mass, -counts, feature))
    bounds = np.searchsorted(feature[order], np.arange(width + 1))
    largest = np.zeros(width)
    np.maximum.at(largest, feature, mass)
    tops = [order[a : min(b, a + TOP_TOKENS)] for a, b in itertools.pairwise(bounds)]
    return [token[top] for top in tops], [counts[top] for top in tops], largest


def position_entropy(feature_N, position_N, width: int, context: int) -> np.ndarray:
    """Entropy of the positions a feature fires at, over the most it could be; (F,) in [0, 1].

    The most is log(min(count, T - 1)), so that rare features are not taken for positional ones.
    """
    key_N = feature_N * context + position_N.astype(np.int64)
    counts = np.bincount(key_N, minlength=width * context).reshape(width, context)
    total = counts.sum(axis=1)
    share = counts / np.maximum(total, 1)[:, None]
    entropy = -(share * np.log(np.where(counts > 0, share, 1.0))).sum(axis=1)
    most = np.log(np.clip(total, 1, context - 1))
    return np.where(most > 0, entropy / np.where(most > 0, most, 1.0), 1.0)


def histograms(feature_N, values_N, max_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Histograms of nonzero activations in `BINS` equal bins from 0 to each feature's maximum."""
    top_F = np.where(max_F > 0, max_F, 1.0)
    edges = np.linspace(0.0, 1.0, BINS + 1)[None, :] * top_F[:, None]
    bin_N = np.minimum((values_N / top_F[feature_N] * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(feature_N * BINS + bin_N, minlength=len(max_F) * BINS)
    return edges.astype(np.float32), counts.reshape(len(max_F), BINS)
