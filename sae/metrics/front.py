"""Several coders at once: the Pareto front of sparsity against error, and errors at equal L0.

Coders of different L0 cannot be ranked by their errors: one that is allowed more active latents
explains more. So a coder is compared with those that are at least as sparse (the front), or all
are read off at the same L0 between their neighbours on one curve (matching).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]  # value, low, high
Point = tuple[Entry, Entry]  # L0, error

BEYOND = 0.05  # share of L0 by which a curve may be read beyond its ends
NEAR = 0.01  # share of L0 within which two coders of one curve stand at the same place on it


def front(points: Mapping[str, Point]) -> list[str]:
    """Names of the coders that no other one dominates, by rising L0.

    A coder dominates another if neither its L0 nor its error is larger, and one is smaller.
    """
    ordered = sorted(points, key=lambda name: _values(points[name]))
    kept: list[str] = []
    for name in ordered:
        if not any(_dominates(points[other], points[name]) for other in kept):
            kept.append(name)
    return kept


def behind(points: Mapping[str, Point]) -> dict[str, dict[str, Any]]:
    """For each coder off the front, the best that dominates it, and whether that is certain.

    `by` has the smallest error among the coders of the front that dominate. `certain`: the 95 %
    intervals of the two errors do not touch; with a missing interval nothing is certain.
    """
    kept = front(points)
    found = {}
    for name in points:
        if name in kept:
            continue
        own = points[name]
        above = [other for other in kept if _dominates(points[other], own)]
        by = min(above, key=lambda other: points[other][1]["value"])
        high, low = points[by][1].get("high"), own[1].get("low")
        found[name] = {
            "by": by,
            "certain": high is not None and low is not None and bool(high < low),
        }
    return found


def matched(points: Sequence[Point], l0: float) -> dict[str, float | None] | None:
    """The error of one curve of coders at `l0`, with its interval; None outside the curve.

    Between the neighbours in L0, log error is taken as linear in log L0 (errors fall roughly as
    powers of L0: Gao et al. 2024, figure 1); as linear itself where an error or a bound is not
    positive. Up to 5 % beyond its ends a curve goes on as at its end. Bounds are interpolated
    like values, which takes the two errors as fully dependent: the wide side. Coders whose L0s are
    within 1 % of one another count as one, with the mean of their errors: the best of them alone
    would be too good, and a line through both would point anywhere.
    """
    if not points or min(map(_l0, points)) <= 0:
        return None
    distinct = _distinct(points)
    same = next((p for p in distinct if math.isclose(_l0(p), l0, rel_tol=1e-6)), None)
    if same is not None:
        return {key: same[1].get(key) for key in ("value", "low", "high")}
    inside = _l0(distinct[0]) / (1 + BEYOND) <= l0 <= _l0(distinct[-1]) * (1 + BEYOND)
    if len(distinct) < 2 or not inside:
        return None
    right = next((i for i, p in enumerate(distinct) if _l0(p) > l0), len(distinct) - 1)
    a, b = distinct[max(1, right) - 1], distinct[max(1, right)]
    share = math.log(l0 / _l0(a)) / math.log(_l0(b) / _l0(a))
    return _between(a[1], b[1], share)


def levels(curves: Sequence[Sequence[Point]]) -> list[int]:
    """Powers of two at which at least one curve can be read: the common places to compare."""
    reached = [_l0(point) for curve in curves for point in curve if _l0(point) > 0]
    if not reached:
        return []
    powers = range(math.floor(math.log2(min(reached))), math.ceil(math.log2(max(reached))) + 1)
    whole = [2**power for power in powers if power >= 0]
    return [l0 for l0 in whole if any(matched(curve, l0) for curve in curves)]


def _distinct(points: Sequence[Point]) -> list[Point]:
    """By rising L0, with those at the same place averaged."""
    places: list[list[Point]] = []
    for point in sorted(points, key=_values):
        if places and _l0(point) <= _l0(places[-1][0]) * (1 + NEAR):
            places[-1].append(point)
        else:
            places.append([point])
    return [(mean_entry([p[0] for p in at]), mean_entry([p[1] for p in at])) for at in places]


def mean_entry(entries: Sequence[Entry]) -> dict[str, float | None]:
    """Means of values and of bounds; a bound that one of them lacks is None."""
    columns = {key: [entry.get(key) for entry in entries] for key in ("value", "low", "high")}
    return {
        key: None if None in column else sum(column) / len(column)  # pyright: ignore
        for key, column in columns.items()
    }


def _between(a: Entry, b: Entry, share: float) -> dict[str, float | None]:
    """Value and bounds, all on one scale, so that low <= value <= high stays true."""
    keys = [key for key in ("value", "low", "high") if _known(a, key) and _known(b, key)]
    logarithmic = all(a[key] > 0 and b[key] > 0 for key in keys)
    found: dict[str, float | None] = {"value": None, "low": None, "high": None}
    for key in keys:
        if logarithmic:
            found[key] = a[key] ** (1 - share) * b[key] ** share
        else:
            found[key] = a[key] * (1 - share) + b[key] * share
    return found


def _known(entry: Entry, key: str) -> bool:
    return entry.get(key) is not None


def _l0(point: Point) -> float:
    return float(point[0]["value"])


def _values(point: Point) -> tuple[float, float]:
    return _l0(point), float(point[1]["value"])


def _dominates(one: Point, other: Point) -> bool:
    a, b = _values(one), _values(other)
    return a != b and a[0] <= b[0] and a[1] <= b[1]
