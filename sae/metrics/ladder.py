"""How the coder stands to its controls: the best of them on each number, and who wins."""

from collections.abc import Mapping
from typing import Any

from sae.metrics.bootstrap import Entry
from sae.metrics.registry import REGISTRY

Scores = Mapping[str, Entry]
COMPARED = (
    "ev",
    "fvu",
    "nmse",
    "cosine",
    "delta_ce",
    "kl",
    "ce_recovered_mean",
    "ce_recovered_zero",
)


def ladder(own: Scores, controls: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """The `"ladder"` key of an evaluation; `own` are the coder's numbers on the controls' tokens.

    {METRIC: {"coder", "best", "best_value", "lift", "won_by"}}: the best control and its value,
    how much better the coder is (below 0: worse, whichever way the metric counts), and all
    controls that are at least as good as it.
    """
    found = {}
    for name in COMPARED:
        value = own.get(name, {}).get("value")
        others = {
            control: float(scores[name]["value"] or 0.0)
            for control, scores in controls.items()
            if name in scores and scores[name]["value"] is not None
        }
        if value is None or not others:
            continue
        sign = 1 if REGISTRY[name].better == "higher" else -1
        best = max(others, key=lambda control: sign * others[control])
        found[name] = {
            "coder": value,
            "best": best,
            "best_value": others[best],
            "lift": sign * (value - others[best]),
            "won_by": [c for c, other in others.items() if sign * (other - value) >= 0],
        }
    return found
