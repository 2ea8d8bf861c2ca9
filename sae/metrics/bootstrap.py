"""95 % intervals by resampling documents (Efron 1979; the cluster bootstrap).

Tokens of one document are not independent, so whole documents are drawn with replacement.
All metrics of a table are recomputed on the same draws, so what combines two of them is paired.

Percentiles of resamples of a few units are much too narrow (four units have 35 different
resamples), so below `MIN_UNITS` there is no interval.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from sae.metrics.registry import Metric
from sae.metrics.sums import Sums

RESAMPLES = 1000
LEVEL = 0.95
MIN_UNITS = 10  # with fewer there is no interval
LEAST_DEFINED = 0.95  # of the resamples; with fewer, an interval would be of something else
RESAMPLES_AT_A_TIME = 125  # bounds the (R, F) tables of the sparsity metrics

Entry = dict[str, float | int | None]  # value, low, high, tokens, units


def draws(units: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(R, U): how often each of U units is drawn in each resample of U draws."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float64)


def entries(
    table: Mapping[str, np.ndarray],
    metrics: Iterable[Metric],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Entry]:
    """Value, interval and counts of tokens and units of each metric, from sums (U, ...) per unit.

    `table["count"]` says which units hold tokens at all; the others are no part of the sample, and
    are not counted in `units`. With fewer than `MIN_UNITS` of them there is no interval: low and
    high are None. A value that does not exist (a ratio with an empty denominator) is None too;
    JSON never holds NaN. An end of an interval that is infinite is None, and both are where too
    many resamples have no value.
    """
    metrics = list(metrics)
    used = table["count"] > 0
    kept = {name: values[used] for name, values in table.items()}
    units = int(used.sum())
    whole = Sums(kept, np.ones((1, units)))
    resampled: dict[str, list[np.ndarray]] = {m.name: [] for m in metrics}
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {m.name: float(m.compute(whole)[0]) for m in metrics}
        if units >= MIN_UNITS:
            weights = draws(units, seed, resamples)
            for start in range(0, resamples, RESAMPLES_AT_A_TIME):
                part = Sums(kept, weights[start : start + RESAMPLES_AT_A_TIME])
                for m in metrics:
                    resampled[m.name].append(m.compute(part))
    found: dict[str, Entry] = {}
    for m in metrics:
        low, high = _interval(m, values[m.name], resampled[m.name])
        counts = {"tokens": round(float(whole[m.count][0])), "units": units}
        found[m.name] = {"value": _finite(values[m.name]), "low": low, "high": high, **counts}
    return found


def _interval(
    metric: Metric, value: float, resampled: list[np.ndarray]
) -> tuple[float | None, float | None]:
    found = np.concatenate(resampled) if resampled else np.empty(0)
    defined = found[~np.isnan(found)]
    known = bool(np.isfinite(value)) and len(found) > 0
    if not known or len(defined) < LEAST_DEFINED * len(found):
        return None, None
    if metric.recentred:
        defined = np.clip(defined - defined.mean() + value, 0, 1)
    low, high = map(_finite, _quantiles(defined))
    return low, high


def _quantiles(found: np.ndarray) -> np.ndarray:
    """Both ends of the interval; between a finite resample and an infinite one lies nothing."""
    tail = (1 - LEVEL) / 2
    exact = bool(np.isinf(found).any())
    return np.quantile(found, [tail, 1 - tail], method="inverted_cdf" if exact else "linear")


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
