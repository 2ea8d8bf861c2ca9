"""What `sae mechanisms` shows of its reports, on the terminal and on a page: tables to be read.

Everything here is a function of a report alone, as it stands in the JSON.
"""

from collections.abc import Callable
from typing import Any

from pipelines.progress import with_interval
from sae.metrics.report import ReadTable

Report = dict[str, Any]
WAYS = ("features", "equal_density", "equal_firing", "equal_norm")


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
            f"{report['found']} induction features at {report['site']}, taken out",
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
    control = report["controls"]["random_dictionary"]
    won = report["won_by"]
    rows = []
    for name, probed in report["probing"].items():
        best = report["latents"].get(name)
        rows.append(
            (
                name,
                str(report["concepts"][name]["heldout"]),
                with_interval(probed["coder"]["k1"]),
                with_interval(probed["coder"]["k5"]),
                with_interval(control["probing"][name]["coder"]["k1"]),
                with_interval(probed["dimensions"]["k1"]),
                with_interval(probed["whole"]),
                with_interval(best["f1"]) if best else "",
                with_interval(best["specificity"]) if best else "",
                _winners(won["probing"], f"{name} k1", f"{name} k5"),
            )
        )
    probes = ("k=1", "k=5", "random k=1", "dims k=1", "whole")
    columns = ("concept", "positives", *probes, "F1", "specificity", "won by")
    probed = ReadTable(
        f"Concepts at {report['site']}",
        columns,
        rows,
        "Held-out accuracy of probes of k latents, of k of a random dictionary, of one dimension "
        "and of the whole activation, with as many positives as negatives: 0.5 is guessing. A k=1 "
        "near `whole` means one latent that stands for the concept. F1 and specificity are of the "
        "one best latent as a detector. Where a control of the last column is at least as good, "
        "the probe speaks of the text, and not of the coder.",
    )
    return [probed, _taken_out(report, control)]


def _taken_out(report: Report, control: Report) -> ReadTable:
    sides, won = (report, control), report["won_by"]
    sizes = [key for key in report["targeted_ablation"] if key != "concepts"]
    rows = [
        (
            f"TPP of {size[1:]}",
            *(with_interval(s["targeted_ablation"][size]["tpp"]) for s in sides),
            _winners(won["targeted_ablation"], size),
        )
        for size in sizes
    ]
    for level in ("tokens", "texts"):
        found = [side["spurious_removal"][level] for side in sides]
        pairs = tuple(str(len(one["pairs"])) for one in found)
        rows.append((f"SCR, pairs of {level}", *pairs, ""))
        if any(one["pairs"] for one in found):
            for size in [key for key in found[0] if key != "pairs"]:
                shares = (_share(one[size]) for one in found)
                winners = _winners(won["spurious_removal"], f"{level} {size}")
                rows.append((f"SCR of {size[1:]}, {level}", *shares, winners))
    letters = (with_interval(s["first_letter_absorption"]["absorption"]) for s in sides)
    rows.append(("first-letter absorption", *letters, ""))
    return ReadTable(
        "Latents of a concept taken out",
        ("", "coder", "random dictionary", "won by"),
        rows,
        "TPP: accuracy that a concept's own probe loses without its latents, less what the others "
        "lose (0: all alike). SCR: how much of a bias goes with the latents of what caused it (1: "
        "all, below 0: it grows). Absorption is a diagnostic, and no score.",
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
    rows = []
    for name, found in report["probing"].items():
        entries = [found[side][k] for side in ("coder", "dimensions") for k in ("k1", "k5")]
        rows.append((name, *map(with_interval, [*entries, found["whole"]])))
    if rows:
        mean = report["mean"]
        shares = [mean[side][k] for side in ("coder", "dimensions") for k in ("k1", "k5")]
        rows.append(("mean", *map(_share, (*shares, mean["whole"]))))
    return [
        ReadTable(
            f"Datasets of sae-probes at {report['site']}: held-out accuracy",
            ("dataset", "k=1", "k=5", "dims k=1", "dims k=5", "whole"),
            rows,
            "Probes of k latents, of k dimensions of the activation, and of all of it; 0.5 is "
            "guessing. Latents that do no better than dimensions have not made the concept sparse.",
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


def _winners(won: dict[str, list[str]], *keys: str) -> str:
    """Controls that win one of these scores."""
    return ", ".join(dict.fromkeys(_spoken(name) for key in keys for name in won[key]))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
