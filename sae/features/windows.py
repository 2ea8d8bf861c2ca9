"""Windows of tokens around a row, and the hash by which equal contexts are folded."""

from dataclasses import dataclass

import numpy as np

FOLD_CONTEXT = 10
"""Two contexts are duplicates if the tokens up to this far on either side are the same."""


@dataclass(frozen=True)
class Document:
    """One text of the corpus, as far as it lies in the index: rows `start` to `stop`."""

    number: int
    id: str
    title: str
    split: str
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """A run of n tokens with one feature's activations.

    Attributes:
        token_ids: (n,) int64.
        acts: (n,) float32; 0 where the feature is silent.
        start_row: row of the first token, in the index's numbering.
        focus: offset of the row that the window is about.
    """

    token_ids: np.ndarray
    acts: np.ndarray
    start_row: int
    focus: int

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Example:
    """A context in which a feature fires (or, for a near-miss, does not).

    Attributes:
        window: the tokens around the row.
        row: row of the focus, in the index's numbering; its position is `row % T`.
        activation: at the focus; 0 for a near-miss.
        percentile: share in [0, 1] of the feature's nonzero activations that are not larger.
        document: the document that the row is in.
        copies: how many of the contexts looked at had this very window (1: no duplicate).
        interval: for kind "quantiles", (number, low, high): the quantile interval, 0 the lowest.
    """

    window: Window
    row: int
    activation: float
    percentile: float
    document: Document
    copies: int = 1
    interval: tuple[int, float, float] | None = None


def gather_windows(
    tokens_ST: np.ndarray, rows_M: np.ndarray, before: int, after: int
) -> np.ndarray:
    """Tokens around each row, (M, before + 1 + after) int64; -1 beyond the packed row's ends."""
    context = tokens_ST.shape[1]
    rows_M = np.asarray(rows_M, dtype=np.int64)
    sequences, positions = rows_M // context, rows_M % context
    at = positions[:, None] + np.arange(-before, after + 1)[None, :]
    inside = (at >= 0) & (at < context)
    found = tokens_ST[sequences[:, None], np.clip(at, 0, context - 1)].astype(np.int64)
    return np.where(inside, found, -1)


def window_hashes(tokens_ST: np.ndarray, rows_M: np.ndarray, reach: int = FOLD_CONTEXT):
    """A 64-bit hash (M,) of the tokens `reach` either side of each row (polynomial, mod 2^64)."""
    windows = gather_windows(tokens_ST, rows_M, reach, reach).astype(np.uint64)
    hashes = np.zeros(len(windows), dtype=np.uint64)
    for column in windows.T:
        hashes = (hashes ^ column) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def fold(tokens_ST: np.ndarray, rows_M: np.ndarray, reach: int = FOLD_CONTEXT):
    """Folds duplicate contexts.

    Returns:
        (keep, copies): offsets into `rows_M` of the first of each distinct context, in order, and
        how many of `rows_M` have that context.
    """
    hashes = window_hashes(tokens_ST, rows_M, reach)
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    order = np.argsort(first)
    return first[order], counts[order]
