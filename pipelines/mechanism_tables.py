"""What `sae mechanisms` shows of its reports, on the terminal and on a page: tables to be read.

Everything here is a function of a report alone, as it stands in the JSON.
"""

from collections.abc import Callable
from typing import Any

from pipelines.progress import with_interval
from sae.metrics.concept_kinds import UNTOLD
from sae.metrics.report import ReadTable

Report = dict[str, Any]
WAYS = ("features", "equal_density", "equal_firing", "equal_norm")
VERDICTS = ("won by", "undecided")
OF_VERDICTS = (
    "Who wins is decided by the interval of the paired difference, on the same examples; `by "
    "value` marks controls without one."
)


def induction_tables(report: Report) -> list[ReadTable]:
    clean, copied = report["clean"], WAYS[:3]
    rows = [
        (
            str(row["latents"]),
            *(with_interval(row[way]["removed"]) for way in WAYS),
            *(with_interval(row[way]["copied"]) for way in copied),
        )
        for row in report["ablations"]
    ]
    columns = ("latents", *map(_spoken, WAYS), *(f"copied, {_spoken(way)}" for way in copied))
    return [
        ReadTable(
            f"{report['found']:,} induction features at {report['site']}, taken out "
            f"({report['found_by_chance']:,} would be found where nothing repeats)",
            columns,
            rows,
            "Of random tokens shown twice the model loses "
            f"{with_interval(clean['loss_first'])} nats each the first time and "
            f"{with_interval(clean['loss_second'])} the second, of which it copies "
            f"{with_interval(clean['copied'])}. The first columns are shares of that gap that are "
            "gone when latents are taken out, the coder's error kept: of induction features they "
            "should grow with their number, and of random latents as dense, or firing as often "
            "there, or of equal norm, stay near 0. The last columns are the share that is still "
            "copied.",
        )
    ]


def concept_tables(report: Report) -> list[ReadTable]:
    controls, against = report["controls"], report["against_controls"]["probing"]
    rows = []
    for name, probed in report["probing"].items():
        best = report["latents"].get(name)
        others = [control["probing"][name]["coder"]["k1"] for control in controls.values()]
        rows.append(
            (
                name,
                str(report["concepts"][name]["heldout"]),
                with_interval(probed["coder"]["k1"]),
                with_interval(probed["coder"]["k5"]),
                *(_share(entry["value"]) for entry in (*others, probed["dimensions"]["k1"])),
                _share(probed["whole"]["value"]),
                with_interval(best["f1"]) if best else "",
                with_interval(best["specificity"]) if best else "",
                *_verdicts(against[f"{name} k1"], against[f"{name} k5"]),
            )
        )
    probes = ("k=1", "k=5", *(f"{_spoken(name)} k=1" for name in controls), "dims k=1", "whole")
    columns = ("concept", "positives", *probes, "F1", "specificity", *VERDICTS)
    probed = ReadTable(
        f"Concepts at {report['site']}",
        columns,
        rows,
        "Held-out accuracy of probes of k latents, of k of dictionaries that learned nothing, of "
        "one dimension and of the whole activation, with as many positives as negatives: 0.5 is "
        "guessing. A k=1 near `whole` means one latent that stands for the concept. F1 and "
        "specificity are of the one best latent as a detector. Where a control of the column `won "
        "by` is at least as good, the probe speaks of the text, and not of the coder; where one is "
        f"`undecided`, these examples do not say. {OF_VERDICTS}{_left_out(report['left_out'])}",
    )
    return [probed, _taken_out(report)]


def _left_out(why: dict[str, str]) -> str:
    """How many concepts are not here; and why, where it is not that they are rare."""
    if not why:
        return ""
    code = f" Of those of code, this: {UNTOLD}." if UNTOLD in why.values() else ""
    return f" Left out are {len(why)} concepts; the JSON says what each lacks.{code}"


def _taken_out(report: Report) -> ReadTable:
    sides, against = (report, *report["controls"].values()), report["against_controls"]
    rows = [
        (
            f"TPP of {size[1:]}",
            *(with_interval(s["targeted_ablation"][size]["tpp"]) for s in sides),
            *_verdicts(against["targeted_ablation"][size]),
        )
        for size in report["targeted_ablation"]
        if size != "concepts"
    ]
    for level in ("tokens", "texts"):
        found = [side["spurious_removal"][level] for side in sides]
        pairs = tuple(str(len(one["pairs"])) for one in found)
        rows.append((f"SCR, pairs of {level}", *pairs, "", ""))
        if any(one["pairs"] for one in found):
            for size in [key for key in found[0] if key != "pairs"]:
                shares = (with_interval(one[size]) for one in found)
                verdicts = _verdicts(against["spurious_removal"][f"{level} {size}"])
                rows.append((f"SCR of {size[1:]}, {level}", *shares, *verdicts))
    letters = (with_interval(s["first_letter_absorption"]["absorption"]) for s in sides)
    rows.append(("first-letter absorption", *letters, "", ""))
    return ReadTable(
        "Latents of a concept taken out",
        ("", "coder", *map(_spoken, report["controls"]), *VERDICTS),
        rows,
        "TPP: accuracy that a concept's own probe loses without its latents, less what the others "
        "lose (0: all alike). SCR: how much of a bias goes with the latents of what caused it (1: "
        "all, below 0: it grows), the mean over pairs. Absorption is a diagnostic, and no score. "
        + OF_VERDICTS,
    )


def label_tables(report: Report) -> list[ReadTable]:
    sides = ("features", "random_directions", "difference")
    rows = [
        (name, *(with_interval(report[side][name]) for side in sides))
        for name in ("f1", "precision", "recall", "auc")
    ]
    rows.append(
        ("has a rule", *(with_interval(report[side]["has_rule"]) for side in sides[:2]), "")
    )
    every = report["all_features"]
    return [
        ReadTable(
            f"Labels at {report['site']}: {len(report['pairs'])} features, directions as frequent",
            ("held-out", *map(_spoken, sides)),
            rows,
            "What a label promises, on contexts that it was not made from. Where random directions "
            "are labelled as well, the score says something of text, and nothing of the coder. All "
            f"{every['scored']:,} features with a score have a mean F1 of {every['f1_mean']:.3f}.",
        )
    ]


def probe_tables(report: Report) -> list[ReadTable]:
    sides = [(report, side, k) for side in ("coder", "dimensions") for k in ("k1", "k5")]
    sides += [
        (control, "coder", k) for control in report["controls"].values() for k in ("k1", "k5")
    ]
    rows = []
    for name, found in report["probing"].items():
        entries = [one["probing"][name][side][k] for one, side, k in sides]
        against = report["against_controls"]
        verdicts = _verdicts(against[f"{name} k1"], against[f"{name} k5"])
        rows.append((name, *map(with_interval, [*entries, found["whole"]]), *verdicts))
    if rows:
        shares = [one["mean"][side][k] for one, side, k in sides]
        rows.append(("mean", *map(_share, (*shares, report["mean"]["whole"])), "", ""))
    names = ("", "dims ", *(f"{_spoken(name)} " for name in report["controls"]))
    columns = (f"{name}{k}" for name in names for k in ("k=1", "k=5"))
    return [
        ReadTable(
            f"Datasets of sae-probes at {report['site']}: held-out accuracy",
            ("dataset", *columns, "whole", *VERDICTS),
            rows,
            "Probes of k latents, of k dimensions of the activation, of k latents of a dictionary "
            "that learned nothing, and of the whole activation; 0.5 is guessing. Latents that do "
            f"no better than dimensions have not made the concept sparse. {OF_VERDICTS}",
        )
    ]


TABLES: dict[str, Callable[[Report], list[ReadTable]]] = {
    "induction": induction_tables,
    "concepts": concept_tables,
    "labels": label_tables,
    "probes": probe_tables,
}


def _spoken(key: str) -> str:
    return key.replace("_", " ")


def _verdicts(*scores: Report) -> tuple[str, str]:
    """Controls that win one of these scores, and those of which it is undecided."""
    by_value = {name for score in scores for name in score["by_value"]}

    def names(key: str) -> str:
        found = dict.fromkeys(name for score in scores for name in score[key])
        return ", ".join(_spoken(n) + (" (by value)" if n in by_value else "") for n in found)

    return names("won_by"), names("undecided")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
