"""Known mechanisms and concepts of one trained coder, beside its evaluation.

    sae mechanisms induction runs/induction --coder mid5
    sae mechanisms concepts runs/demo --coder topk --tokens 65536

Writes `evaluation/mechanisms/<coder>.induction.json` and `<coder>.concepts.json` (their keys are
in docs/metrics.md), sealed like the evaluation, and prints what matters of them.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from pipelines.progress import steps_progress
from pipelines.results import mechanism_of
from sae.base.files import write_json
from sae.base.sums import seal
from sae.coders import Coder, coder_hash, load_coder
from sae.features.tokenizer_bytes import vocabulary_of
from sae.lm import LanguageModel, load_lm
from sae.metrics.concept_report import concept_report
from sae.metrics.controls import TrainData, matched_l0, random_dictionary
from sae.metrics.induction import induction_report
from sae.metrics.probe_sets import probe_set_report
from sae.metrics.provenance import describe_report, special_ids
from sae.metrics.sample import draw
from sae.metrics.scoring import Progress
from sae.metrics.steps import silent
from sae.store import ActivationStore

WAYS = ("features", "equal_density", "equal_firing", "equal_norm")
FIT_TOKENS = 65_536  # from which the scale of the random dictionary is found


@dataclass(frozen=True)
class Subject:
    """The coder that is asked about, and what it is of."""

    name: str
    weights: str  # hash
    coder: Coder
    store: ActivationStore
    lm: LanguageModel

    @classmethod
    def open(cls, run: Path, name: str) -> "Subject":
        folder = run / "coders" / name
        coder, weights = load_coder(folder), coder_hash(folder)
        store = ActivationStore.open(run / "activations.zarr")
        lm = load_lm(str(store.attributes["model"]["name"]), device="cpu", dtype="float32")
        return cls(name, weights, coder, store, lm)


def induction(
    of: Subject, sequences: int, seed: int, progress: Progress = silent
) -> dict[str, Any]:
    return induction_report(of.coder, of.lm, sequences=sequences, seed=seed, progress=progress)


def concepts(of: Subject, tokens: int, seed: int, progress: Progress = silent) -> dict[str, Any]:
    """The concept metrics of a coder and of a random dictionary of equal width and L0."""
    coder, store, lm = of.coder, of.store, of.lm
    site = str(coder.site)
    mean_D = torch.from_numpy(store.stats(site).mean_D).to(coder.W_dec_FD)
    sample = draw(store, "train", FIT_TOKENS, special_ids(lm, store))
    train = TrainData(sample, site, mean_D, mean_D.device)
    control = random_dictionary(coder, train, matched_l0(coder, train), seed)
    bytes_V = vocabulary_of(lm.tokenizer, lm.vocab_size).tokens
    controls: Any = {"random_dictionary": control}
    return concept_report(
        coder, store, lm, bytes_V, tokens=tokens, controls=controls, seed=seed, progress=progress
    )


def probes(of: Subject, texts: int, seed: int, progress: Progress = silent) -> dict[str, Any]:
    return probe_set_report(of.coder, of.lm, texts=texts, seed=seed, progress=progress)


def print_probes(report: dict[str, Any], console: Console) -> None:
    table = Table(title=f"Datasets of sae-probes at {report['site']}: held-out accuracy")
    for column in ("dataset", "k=1", "k=5", "dims k=1", "dims k=5", "whole"):
        table.add_column(column, justify="left" if column == "dataset" else "right")
    for name, found in report["probing"].items():
        entries = [found[side][k] for side in ("coder", "dimensions") for k in ("k1", "k5")]
        table.add_row(name, *map(_shown, [*entries, found["whole"]]))
    mean = report["mean"]
    shares = [mean[side][k] for side in ("coder", "dimensions") for k in ("k1", "k5")]
    if report["probing"]:
        table.add_row("mean", *(f"{share:.3f}" for share in (*shares, mean["whole"])))
    console.print(table)


def print_induction(report: dict[str, Any], console: Console) -> None:
    clean = report["clean"]
    console.print(
        f"{report['site']}: {report['found']} induction features; first occurrence "
        f"{_shown(clean['loss_first'])} nats, second {_shown(clean['loss_second'])}, "
        f"copied {_shown(clean['copied'])}"
    )
    table = Table(title="Taken out: share of the copying loss gap that is lost")
    copied = ("features", "equal_density", "equal_firing")
    for column in ("latents", *WAYS, *(f"copied, {way}" for way in copied)):
        table.add_column(column, justify="right")
    for row in report["ablations"]:
        shares = [_shown(row[way]["removed"]) for way in WAYS]
        rest = [_shown(row[way]["copied"]) for way in copied]
        table.add_row(str(row["latents"]), *shares, *rest)
    console.print(table)


def print_concepts(report: dict[str, Any], console: Console) -> None:
    control = report["controls"]["random_dictionary"]
    table = Table(title=f"Concepts at {report['site']}")
    columns = ("positives", "k=1", "k=5", "random k=1", "dims k=1", "whole", "F1", "specificity")
    for column in ("concept", *columns):
        table.add_column(column, justify="left" if column == "concept" else "right")
    for name, probed in report["probing"].items():
        best = report["latents"].get(name)
        table.add_row(
            name,
            str(report["concepts"][name]["heldout"]),
            _shown(probed["coder"]["k1"]),
            _shown(probed["coder"]["k5"]),
            _shown(control["probing"][name]["coder"]["k1"]),
            _shown(probed["dimensions"]["k1"]),
            _shown(probed["whole"]),
            _shown(best["f1"]) if best else "",
            _shown(best["specificity"]) if best else "",
        )
    console.print(table)
    for name, found in (("coder", report), ("random dictionary", control)):
        erased, letters = found["targeted_ablation"], found["first_letter_absorption"]
        sizes = [key for key in erased if key != "concepts"]
        tpp = ", ".join(f"{key} {_shown(erased[key]['tpp'])}" for key in sizes)
        removed = found["spurious_removal"]
        scr = ", ".join(f"{k} {v:.2f}" for k, v in removed.items() if isinstance(v, float))
        console.print(f"{name}: TPP {tpp}")
        console.print(f"{name}: SCR over {len(removed['pairs'])} pairs {scr or '-'}")
        console.print(f"{name}: first-letter absorption {_shown(letters['absorption'])}")


def _shown(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return "-"
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def report(
    what: Literal["induction", "concepts", "probes"],
    run: Path,
    coder: str,
    *,
    sequences: int,
    tokens: int,
    texts: int,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Measures, prints, and writes JSON, by default into the run's `evaluation/mechanisms/`."""
    began, console = time.monotonic(), Console(width=180)
    of = Subject.open(run, coder)
    with steps_progress(f"{what} {coder}") as progress:
        if what == "induction":
            found, show = induction(of, sequences, seed, progress), print_induction
        elif what == "probes":
            found, show = probes(of, texts, seed, progress), print_probes
        else:
            found, show = concepts(of, tokens, seed, progress), print_concepts
    store = of.store if what == "concepts" else None  # the others read none of its activations
    said = describe_report(of.coder, of.weights, of.lm, began, seed, store)
    show(found, console)
    evaluation = run / "evaluation"
    out = out or evaluation / mechanism_of(coder, what)
    write_json(out, {**found, "provenance": said})
    if out.resolve().is_relative_to(evaluation.resolve()):
        seal(evaluation, [out.resolve().relative_to(evaluation.resolve()).as_posix()])
    console.print(f"{out} in {time.monotonic() - began:.1f} s")
