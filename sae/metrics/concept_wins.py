"""Which controls do at least as well as the coder on the concept metrics.

A score that a random dictionary, or the activation's own dimensions, reaches as well says
something of the text and the probe, and nothing of the coder.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Report = Mapping[str, Any]
OWN_DIMENSIONS = "dimensions"  # of the activation: the control inside every sparse probe


def controls_that_win(own: Report, controls: Mapping[str, Report]) -> dict[str, dict[str, Any]]:
    """{metric: {what of it: names of the controls that are at least as good as the coder}}.

    It goes by the values alone, which rest on the same examples; where a side has none, nobody
    wins. Absorption is left out: it is a diagnostic, and no score.
    """
    others = {name: dict(_scores(report)) for name, report in controls.items()}
    others[OWN_DIMENSIONS] = {
        ("probing", f"{concept} {k}"): entry["value"]
        for concept, probed in own["probing"].items()
        for k, entry in probed["dimensions"].items()
    }
    found: dict[str, dict[str, Any]] = {}
    for (metric, what), value in _scores(own):
        found.setdefault(metric, {})[what] = [
            name for name, scores in others.items() if _at_least(scores.get((metric, what)), value)
        ]
    return found


def _scores(report: Report) -> Iterator[tuple[tuple[str, str], float | None]]:
    """Every score of which more is better, by its metric and what of it."""
    for concept, probed in report["probing"].items():
        for k, entry in probed["coder"].items():
            yield ("probing", f"{concept} {k}"), entry["value"]
    for concept, best in report["latents"].items():
        yield ("latents", concept), best["f1"]["value"]
    for size, found in report["targeted_ablation"].items():
        if size != "concepts":
            yield ("targeted_ablation", size), found["tpp"]["value"]
    for level, removed in report["spurious_removal"].items():
        for size, value in removed.items():
            if size != "pairs":
                yield ("spurious_removal", f"{level} {size}"), value


def _at_least(other: float | None, own: float | None) -> bool:
    return other is not None and own is not None and other >= own
