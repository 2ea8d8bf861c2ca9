"""Intervals for numbers that have no place in the registry: one function of per-unit sums."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from sae.metrics.bootstrap import LEVEL, RESAMPLES, Entry, entries
from sae.metrics.registry import Metric
from sae.metrics.sums import Sums

INTERVAL = {"level": LEVEL, "resamples": RESAMPLES}


def estimate(
    compute: Callable[[Sums], np.ndarray],
    table: Mapping[str, npt.NDArray[np.floating]],
    tokens: int,
    seed: int = 0,
) -> Entry:
    """`compute(sums)` with the interval of resampled units; `table[term]` is (U, ...).

    Units without tokens are no part of the sample if the table has a `count`; else all count.
    """
    units = len(next(iter(table.values())))
    counted = {"count": np.ones(units), **table}
    metric = Metric("value", "comparison", "", "", "", "neither", compute)
    return {**entries(counted, [metric], seed)["value"], "tokens": tokens}


def estimate_mean(values_U: npt.NDArray[np.floating], tokens: int, seed: int = 0) -> Entry:
    """The mean over units; None without any."""
    if not len(values_U):
        return {"value": None, "low": None, "high": None, "tokens": tokens, "units": 0}
    return estimate(lambda s: s["value"] / s["count"], {"value": values_U}, tokens, seed)


def estimate_ratio(
    above_U: npt.NDArray[np.floating],
    below_U: npt.NDArray[np.floating],
    tokens: int,
    seed: int = 0,
) -> Entry:
    """Σ above / Σ below; None where the denominator is empty."""
    table = {"above": above_U, "below": below_U}
    return estimate(lambda s: s["above"] / s["below"], table, tokens, seed)
