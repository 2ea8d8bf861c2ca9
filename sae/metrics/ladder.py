"""How the coder stands to its controls: the best of them on each number, and who wins."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sae.metrics.bootstrap import MIN_UNITS, Entry, entries
from sae.metrics.controls import RANDOM_MODEL
from sae.metrics.registry import REGISTRY, Group, Metric, metrics_of
from sae.metrics.sums import Sums
from sae.metrics.wins import verdict

Scores = Mapping[str, Entry]
UNCOMPARED = ("ce_clean", "ce_spliced")  # the model's own loss; what `delta_ce` compares
OWN = "own "  # before the coder's terms, in a table of both
APART = (RANDOM_MODEL,)  # scored on other activations: compared, but no number to subtract
OF_ACTIVATIONS = ("activation", "activation²")  # units that other activations do not share


def lifts(
    own: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], group: Group, seed: int
) -> dict[str, Entry]:
    """How much better the coder is than a control, on each compared metric of a group.

    `own` and `other` are sums (U, ...) per unit on the same tokens; both metrics of a pair are
    computed on the same resamples. Above 0 the coder is better, whichever way the metric counts.
    """
    both = {**other, **{f"{OWN}{term}": sums for term, sums in own.items()}}
    return entries(both, [_lift(metric) for metric in compared(group)], seed)


def compared(*groups: Group) -> list[Metric]:
    """Metrics of which one can say that a coder or a control is better."""
    every = metrics_of(*(groups or ("reconstruction", "fidelity")))
    return [m for m in every if m.better != "neither" and m.name not in UNCOMPARED]


def _lift(metric: Metric) -> Metric:
    def lift(both: Sums) -> np.ndarray:
        return _sign(metric.name) * (metric.compute(both.under(OWN)) - metric.compute(both))

    return replace(metric, group="comparison", better="higher", compute=lift)


def _sign(name: str) -> int:
    return 1 if REGISTRY[name].better == "higher" else -1


def ladder(
    own: Scores,
    controls: Mapping[str, Scores],
    paired: Mapping[str, Scores],
    units: Mapping[str, int] | None = None,
) -> dict[str, dict[str, Any]]:
    """The `"ladder"` key of an evaluation: for each compared metric,

        coder              its value on the controls' tokens
        best, best_value   the best control, of those scored on the coder's own activations
        lift, low, high    how much better than it the coder is, with the paired interval
        tokens, units      that the lift rests on; units are what the interval resamples
        won_by             controls that are at least as good: the whole interval of the lift over
                           them is at 0 or below
        undecided          controls whose lift has 0 inside its interval, or no interval; all,
                           where there are fewer than `MIN_UNITS` units
        by_value           controls that nothing is paired with: their verdict goes by the values

    `own` are the coder's numbers on the controls' tokens, `paired[control]` its `lifts`, `units`
    how many there are of each group of metrics, where that is known.
    """
    found = {}
    for metric in compared():
        name, known = metric.name, (units or {}).get(metric.group)
        value = own.get(name, {}).get("value")
        others = _comparable(metric, controls)
        if value is None or not others:
            continue
        over = {control: paired.get(control, {}).get(name, {}) for control in others}
        best = max(
            (control for control in others if control not in APART),
            key=lambda control, n=name, o=others: _sign(n) * o[control],
            default=None,
        )
        lift = over[best] if best is not None else {}
        found[name] = {
            "coder": value,
            "best": best,
            "best_value": None if best is None else others[best],
            "lift": None if best is None else _sign(name) * (value - others[best]),
            **{key: lift.get(key) for key in ("low", "high", "tokens")},
            "units": known,
            **_verdicts(name, float(value), others, over, is_few(known)),
        }
    return found


def is_few(units: int | None) -> bool:
    """Whether a number rests on so few units that none is better."""
    return units is not None and units < MIN_UNITS


def _comparable(metric: Metric, controls: Mapping[str, Scores]) -> dict[str, float]:
    """The controls' values, but for those whose activations are of another size, where the metric
    is in units of the activations."""
    return {
        control: float(scores[metric.name]["value"] or 0.0)
        for control, scores in controls.items()
        if metric.name in scores
        and scores[metric.name]["value"] is not None
        and not (control in APART and metric.unit in OF_ACTIVATIONS)
    }


def _verdicts(
    name: str, value: float, others: Mapping[str, float], over: Mapping[str, Entry], few: bool
) -> dict[str, list[str]]:
    verdicts: dict[str, list[str]] = {"won_by": [], "undecided": [], "by_value": []}
    for control, other in others.items():
        if few:
            low, high = -math.inf, math.inf
        elif over[control]:
            low, high = _ends(over[control])
        else:
            verdicts["by_value"].append(control)
            low = high = _sign(name) * (value - other)
        if said := verdict(low, high):
            verdicts[said].append(control)
    return verdicts


def _ends(lift: Entry) -> tuple[float, float]:
    """Of the interval; an end that is None is infinite, or unknown."""
    low, high = lift.get("low"), lift.get("high")
    return -math.inf if low is None else low, math.inf if high is None else high
