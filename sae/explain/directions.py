"""Random directions that fire as often as given features: what a label's score is held against.

A direction u fires where u·x exceeds a threshold τ, by max(0, u·x − τ): a ReLU latent with a random
encoder row, its bias set so that it fires exactly as often as asked.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sae.features.spill import to_float16

if TYPE_CHECKING:
    from sae.store import ActivationStore

BLOCK_ROWS = 2**16


def random_directions(n: int, width: int, seed: int) -> np.ndarray:
    """(n, width) float32 unit vectors, uniform on the sphere."""
    rows_ND = np.random.default_rng(seed).normal(size=(n, width))
    return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float32)


def firings_of(
    store: "ActivationStore",
    site: str,
    ranges: Sequence[Sequence[int]],
    unit_ND: np.ndarray,
    counts_N: Sequence[int],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows ascending, activations float16) of each direction, which fires `counts_N` times.

    `ranges`: [start, stop) rows of the store, in the order in which the index numbers them from 0.
    Position 0 is not data. Memory is bounded by the firings, not by the rows.
    """
    kept = [_Largest(count) for count in counts_N]
    for first, values_RN in _projected(store, site, ranges, unit_ND):
        rows = first + np.arange(len(values_RN))
        data = rows % store.context > 0
        for one, values in zip(kept, values_RN[data].T, strict=True):
            one.add(rows[data], values)
    return [one.firings() for one in kept]


def _projected(
    store: "ActivationStore", site: str, ranges: Iterable[Sequence[int]], unit_ND: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, in the index's numbers, projections (R, N)) of one block after the other."""
    row = 0
    for start, stop in ranges:
        for at in range(start, stop, BLOCK_ROWS):
            x_RD = store.read(site, at, min(at + BLOCK_ROWS, stop)).astype(np.float32)
            yield row, x_RD @ unit_ND.T
            row += len(x_RD)


class _Largest:
    """The `n` largest of a stream of values, less the next one; at most about 3 n are held."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.rows, self.values = np.empty(0, np.int64), np.empty(0, np.float32)
        self.floor = -np.inf

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        above = values > self.floor
        self.rows = np.concatenate([self.rows, rows[above]])
        self.values = np.concatenate([self.values, values[above]])
        if len(self.values) > 2 * self.n + 1:
            self._trim()

    def _trim(self) -> None:
        """Keeps n + 1: the smallest of them is the threshold."""
        if len(self.values) > self.n + 1:
            order = np.argpartition(self.values, len(self.values) - self.n - 1)[-self.n - 1 :]
            self.rows, self.values = self.rows[order], self.values[order]
            self.floor = float(self.values.min())

    def firings(self) -> tuple[np.ndarray, np.ndarray]:
        self._trim()
        order = np.argsort(self.rows, kind="stable")
        rows, values = self.rows[order], self.values[order]
        smallest = int(values.argmin())
        threshold = values[smallest]
        rows, values = np.delete(rows, smallest), np.delete(values, smallest)
        return rows, to_float16(values - threshold)
