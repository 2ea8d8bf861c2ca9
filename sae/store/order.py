"""The order of training rows: a pure function of (seed, epoch), in two levels.

Chunks are permuted over the whole split, then the rows of a window of W consecutive chunks (in
that order) are permuted together. To resume, one integer is enough: the number of the batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchOrder:
    """Which rows make up which batch.

    The split is `chunks` chunks of `chunk_rows` rows (the last may be shorter: `rows` in all),
    each row with `row % context == 0` being left out. Every epoch visits each other row at most
    once; rows that do not fill a last batch (fewer than `batch`) are left out, others each time.
    """

    rows: int
    chunk_rows: int
    context: int
    batch: int
    window: int = 64
    seed: int = 0

    @property
    def chunks(self) -> int:
        return -(-self.rows // self.chunk_rows)

    @property
    def batches_per_epoch(self) -> int:
        return (self.rows - self.rows // self.context) // self.batch

    def windows(self, epoch: int) -> list[Ints]:
        """The chunks of each window, in the order of reading."""
        order = self._rng(epoch, 0).permutation(self.chunks)
        return [order[i : i + self.window] for i in range(0, self.chunks, self.window)]

    def window_slots(self, epoch: int, number: int, chunks: Ints) -> Ints:
        """Permuted slots: slot s is row s % chunk_rows of chunk chunks[s // chunk_rows].

        Slots of absent rows (behind the split's end) and of position 0 are left out.
        """
        slots = np.arange(len(chunks) * self.chunk_rows)
        row = chunks[slots // self.chunk_rows] * self.chunk_rows + slots % self.chunk_rows
        slots = slots[(row % self.context != 0) & (row < self.rows)]
        return self._rng(epoch, number + 1).permutation(slots)

    def window_length(self, chunks: Ints) -> int:
        """How many slots a window has, without building them."""
        sizes = np.minimum((chunks + 1) * self.chunk_rows, self.rows) - chunks * self.chunk_rows
        return int((sizes - sizes // self.context).sum())

    def from_batch(self, number: int) -> Iterator[tuple[int, int, Ints, int]]:
        """Windows from the one that batch `number` starts in: (epoch, window, chunks, skip).

        `skip` slots of the first window were used up by earlier batches. Endless.
        """
        epoch, inside = divmod(number, max(1, self.batches_per_epoch))
        skip = inside * self.batch
        while True:
            for window, chunks in enumerate(self.windows(epoch)):
                length = self.window_length(chunks)
                if skip >= length:
                    skip -= length
                    continue
                yield epoch, window, chunks, skip
                skip = 0
            epoch, skip = epoch + 1, 0

    def _rng(self, epoch: int, level: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, level])
