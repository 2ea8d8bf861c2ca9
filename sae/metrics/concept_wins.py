"""How a coder stands to its controls on the concept metrics: who wins, and what is undecided.

A score that a random dictionary, or the activation's own dimensions, reaches as well says
something of the text and the probe, and nothing of the coder.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sae.metrics.bootstrap import Entry
from sae.metrics.paired import PairedEntry
from sae.metrics.wins import verdict

Report = Mapping[str, Any]
OWN_DIMENSIONS = "dimensions"  # of the activation: the control inside every sparse probe


def against_controls(own: Report, controls: Mapping[str, Report]) -> dict[str, dict[str, Any]]:
    """{metric: {what of it: `verdicts`}}, of reports on the same examples.

    Absorption is left out: it is a diagnostic, and no score.
    """
    probing = {name: report["probing"] for name, report in controls.items()}
    others = {name: dict(_scores(report)) for name, report in controls.items()}
    found: dict[str, dict[str, Any]] = {
        "probing": probing_against_controls(own["probing"], probing)
    }
    for (metric, what), entry in _scores(own):
        theirs = {name: scores.get((metric, what)) for name, scores in others.items()}
        found.setdefault(metric, {})[what] = verdicts(entry, theirs)
    return found


def probing_against_controls(own: Report, controls: Mapping[str, Report]) -> dict[str, Any]:
    """{"CONCEPT k1": `verdicts`} of sparse probes, the activation's own dimensions among them."""
    others = {name: dict(_accuracies(probing)) for name, probing in controls.items()}
    others[OWN_DIMENSIONS] = dict(_accuracies(own, OWN_DIMENSIONS))
    return {
        what: verdicts(entry, {name: scores.get(what) for name, scores in others.items()})
        for what, entry in _accuracies(own)
    }


def verdicts(own: Entry, others: Mapping[str, Entry | None]) -> dict[str, Any]:
    """What one score (more is better) says of each control that has it:

        won_by      controls that are at least as good: the whole interval of the coder's lift over
                    them is at 0 or below
        undecided   controls over which the lift has 0 inside its interval
        by_value    controls without a paired interval: there the values alone decide
        lift        {control: entry}, how much better than it the coder is

    Where either side has no number, nothing is said.
    """
    found: dict[str, Any] = {"won_by": [], "undecided": [], "by_value": [], "lift": {}}
    for name, other in others.items():
        if other is None or own["value"] is None or other["value"] is None:
            continue
        lift = _lift(own, other)
        low, high = lift["low"], lift["high"]
        if low is None or high is None:
            found["by_value"].append(name)
            low = high = own["value"] - other["value"]
        if said := verdict(low, high):
            found[said].append(name)
        found["lift"][name] = lift
    return found


def _lift(own: Entry, other: Entry) -> Entry:
    paired = None
    if isinstance(own, PairedEntry) and isinstance(other, PairedEntry):
        paired = own.over(other)
    if paired is not None:
        return paired
    value = (own["value"] or 0.0) - (other["value"] or 0.0)
    return {"value": value, "low": None, "high": None, "tokens": own.get("tokens")}


def _accuracies(probing: Report, side: str = "coder") -> Iterator[tuple[str, Entry]]:
    """Of probes of latents, or of `dimensions`."""
    for concept, probed in probing.items():
        for k, entry in probed[side].items():
            yield f"{concept} {k}", entry


def _scores(report: Report) -> Iterator[tuple[tuple[str, str], Entry]]:
    """Every other score of which more is better, by its metric and what of it."""
    for concept, best in report["latents"].items():
        yield ("latents", concept), best["f1"]
    for size, found in report["targeted_ablation"].items():
        if size != "concepts":
            yield ("targeted_ablation", size), found["tpp"]
    for level, removed in report["spurious_removal"].items():
        for size, entry in removed.items():
            if size != "pairs":
                yield ("spurious_removal", f"{level} {size}"), entry
