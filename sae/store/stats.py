"""Streaming statistics of activations: float64 sums per shard, merged in shard order.

Kept per shard so that an interrupted harvest, resumed, ends with bit-identical statistics.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sae.base.foreign import read_npz, reading

Floats = npt.NDArray[np.float64]
BLOCK = 4096  # rows converted to float32 at a time: small enough to stay in cache


@dataclass(frozen=True)
class SiteSums:
    """Sums over rows of one site: the count, Σx (D,), Σ‖x‖², and Σ‖x‖."""

    count: int
    total_D: Floats
    total_square: float
    total_norm: float

    @classmethod
    def of(cls, x_BD: npt.NDArray[np.floating]) -> "SiteSums":
        total = np.zeros(x_BD.shape[1])
        square = norm = 0.0
        for start in range(0, len(x_BD), BLOCK):
            block = x_BD[start : start + BLOCK].astype(np.float32)
            total += block.sum(axis=0, dtype=np.float64)
            squares = np.einsum("bd,bd->b", block, block).astype(np.float64)
            square += float(squares.sum())
            norm += float(np.sqrt(squares).sum())
        return cls(len(x_BD), total, square, norm)

    @classmethod
    def merge(cls, parts: Iterable["SiteSums"], width: int) -> "SiteSums":
        count, total, square, norm = 0, np.zeros(width), 0.0, 0.0
        for part in parts:
            count += part.count
            total = total + part.total_D
            square += part.total_square
            norm += part.total_norm
        return cls(count, total, square, norm)


@dataclass(frozen=True)
class SiteStats:
    """Statistics of the train split of one site, position 0 left out."""

    count: int
    mean_D: Floats
    mean_square: float  # E‖x‖²
    mean_norm: float  # E‖x‖

    @property
    def variance(self) -> float:
        """Total variance E‖x‖² − ‖E x‖², the denominator of FVU."""
        return self.mean_square - float(self.mean_D @ self.mean_D)

    @classmethod
    def from_sums(cls, sums: SiteSums) -> "SiteStats":
        n = max(1, sums.count)
        return cls(sums.count, sums.total_D / n, sums.total_square / n, sums.total_norm / n)


def load_sums(path: Path, site: str, width: int) -> SiteSums:
    """The statistics of a shard that is done. Raises `UserError` if it is not."""
    with reading(path):
        arrays = read_npz(path)
        count, square, norm = arrays[f"{site}/scalars"].tolist()
        total_D = arrays[f"{site}/total"]
        digest = arrays[f"{site}/sha256"]
        if (total_D.shape, total_D.dtype) != ((width,), np.float64) or digest.dtype.kind != "U":
            raise ValueError("it is of another harvest")
        return SiteSums(int(count), total_D, float(square), float(norm))
