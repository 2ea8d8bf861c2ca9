"""Runs a loop that releases the GIL over ranges of its rows, on as many threads as torch uses."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch

RANGES_PER_THREAD = 4  # so that a thread that the system holds up does not hold up all


def for_ranges(rows: int, body: Callable[[int, int], object], bounds: Sequence[int] = ()) -> None:
    """Calls body(start, stop) for ranges that cover 0..rows, several at a time.

    `bounds` cuts the rows where work is uneven; by default all ranges are of equal length.
    """
    threads = torch.get_num_threads()
    if threads == 1 or rows < threads:
        body(0, rows)
        return
    parts = RANGES_PER_THREAD * threads
    cuts = bounds or [rows * part // parts for part in range(parts + 1)]
    ranges = iter(list(pairwise(cuts)))

    def work() -> None:
        for start, stop in ranges:  # one iterator for all threads: each takes the next range
            if stop > start:
                body(start, stop)

    others = [_pool(os.getpid()).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


def sum_over_ranges(
    rows: int, part: Callable[[int, int], float], bounds: Sequence[int] = ()
) -> float:
    """The sum of part(start, stop) over such ranges: the same, whichever thread was first."""
    parts: list[tuple[int, float]] = []
    for_ranges(rows, lambda start, stop: parts.append((start, part(start, stop))), bounds)
    return sum(value for _, value in sorted(parts))


def even_cuts(offsets: np.ndarray) -> list[int]:
    """Cuts of the segments of `offsets` (S + 1,) into ranges with about the same entries."""
    count = RANGES_PER_THREAD * torch.get_num_threads()
    wanted = np.linspace(0, offsets[-1], count + 1)[1:-1]
    inner = np.searchsorted(offsets, wanted, side="left")
    return [0, *inner.tolist(), len(offsets) - 1]


@cache
def _pool(_process: int) -> ThreadPoolExecutor:
    """One pool for each process: threads do not survive a fork."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="kernels")
