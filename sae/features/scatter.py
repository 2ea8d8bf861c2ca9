"""From codes in row order to codes in feature order (CSC), in bounded memory."""

import os
from pathlib import Path

import numpy as np

from sae.base.files import write_array
from sae.features.layout import ACTS, INDPTR, ROWS, rows_dtype

BLOCK = 8_000_000
"""Firings sorted at a time; about 30 bytes each."""


def scatter(
    folder: Path,
    row_indptr: np.ndarray,
    features_N: np.ndarray,
    acts_N: np.ndarray,
    counts_F: np.ndarray,
    block: int = BLOCK,
) -> None:
    """Writes `indptr.npy`, `rows.npy` and `acts.npy` into `folder`.

    Args:
        row_indptr: (R + 1,) firings of row r are `row_indptr[r]` to `row_indptr[r + 1]`.
        features_N, acts_N: the feature and activation of each firing, in row order.
        counts_F: firings of each feature (they fix where each one's slice lies).

    Blocks are taken in row order and each is sorted stably by feature, so rows ascend within
    every feature. A second run overwrites with the same bytes.
    """
    indptr = np.concatenate([[0], np.cumsum(counts_F, dtype=np.int64)])
    write_array(folder / INDPTR, indptr)
    total = int(indptr[-1])
    rows = _create(folder / ROWS, rows_dtype(len(row_indptr) - 1), total)
    acts = _create(folder / ACTS, np.dtype(np.float16), total)
    cursor_F = indptr[:-1].copy()
    for start in range(0, total, block):
        stop = min(start + block, total)
        feature_B = np.asarray(features_N[start:stop])
        order = np.argsort(feature_B, kind="stable")
        sorted_B = feature_B[order]
        present, first, counts = np.unique(sorted_B, return_index=True, return_counts=True)
        # where a firing goes: its feature's cursor plus its rank among those of the same feature
        target = np.arange(len(order)) + np.repeat(cursor_F[present] - first, counts)
        rows[target] = _rows_of(row_indptr, start, stop)[order]
        acts[target] = np.asarray(acts_N[start:stop])[order]
        cursor_F[present] += counts
    for array in (rows, acts):
        if isinstance(array, np.memmap):
            array.flush()


def _rows_of(row_indptr: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Row of each of the firings `start` to `stop`."""
    first = int(np.searchsorted(row_indptr, start, side="right")) - 1
    last = int(np.searchsorted(row_indptr, stop, side="left"))
    edges = np.clip(row_indptr[first : last + 1], start, stop)
    return np.repeat(np.arange(first, last), np.diff(edges))


def _create(path: Path, dtype: np.dtype, size: int) -> np.ndarray:
    if size == 0:  # an empty file cannot be mapped
        write_array(path, np.empty(0, dtype))
        return np.empty(0, dtype)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(size,))
    _allocate(path)
    return array


def _allocate(path: Path) -> None:
    """Takes the file's blocks now: a disk that fills up later would end the process (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
