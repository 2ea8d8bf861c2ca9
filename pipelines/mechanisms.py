"""Known mechanisms, concepts and labels of one trained coder, beside its evaluation.

    sae mechanisms induction runs/induction --coder mid5
    sae mechanisms concepts runs/demo --coder topk --tokens 65536
    sae mechanisms labels runs/demo --coder topk

Writes `evaluation/mechanisms/<coder>.<what>.json` (keys: docs/metrics.md), sealed like the
evaluation, and prints what matters of them.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pipelines.progress import steps_progress, with_interval
from pipelines.results import mechanism_of
from sae.base.errors import UserError
from sae.base.files import write_json
from sae.base.sums import seal
from sae.coders import Coder, coder_hash, load_coder
from sae.explain.control import label_control
from sae.features import FeatureIndex
from sae.features.effects import promoted_tokens, unembedding
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

What = Literal["induction", "concepts", "probes", "labels"]
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


def labels(of: Subject, run: Path, directions: int, seed: int) -> dict[str, Any]:
    """Automatic labels of features, and of random directions that fire as often."""
    coder, store, lm = of.coder, of.store, of.lm
    index = FeatureIndex.open(run / "features" / of.name)
    made_of = (of.weights, store.attributes["corpus"]["hash"])
    if (index.meta["coder_hash"], index.meta.get("corpus_hash")) != made_of:
        raise UserError(
            f"{index.folder} is the index of another coder or text than {run} holds; make it again "
            f"with `sae index {run}`."
        )
    reads_where_it_writes = coder.target_site == coder.site
    rows_FD = coder.W_dec_FD if reads_where_it_writes else coder.W_enc_FD
    unembed_DV = unembedding(lm)

    def promoted(unit_ND: np.ndarray) -> np.ndarray:
        return promoted_tokens(torch.from_numpy(unit_ND), lm, str(coder.site), unembed_DV)

    rows = rows_FD.detach().float().cpu().numpy()
    return label_control(index, store, rows, promoted, directions, seed)


def print_labels(report: dict[str, Any], console: Console) -> None:
    pairs = len(report["pairs"])
    table = Table(title=f"Labels at {report['site']}: {pairs} features, directions as frequent")
    for column in ("held-out", "features", "random directions", "difference"):
        table.add_column(column, justify="left" if column == "held-out" else "right")
    sides = ("features", "random_directions", "difference")
    for name in ("f1", "precision", "recall", "auc"):
        table.add_row(name, *(with_interval(report[side][name]) for side in sides))
    table.add_row(
        "has a rule", *(with_interval(report[side]["has_rule"]) for side in sides[:2]), ""
    )
    console.print(table)
    every = report["all_features"]
    console.print(f"all {every['scored']:,} scored features: mean F1 {every['f1_mean']:.3f}")


def print_probes(report: dict[str, Any], console: Console) -> None:
    table = Table(title=f"Datasets of sae-probes at {report['site']}: held-out accuracy")
    for column in ("dataset", "k=1", "k=5", "dims k=1", "dims k=5", "whole"):
        table.add_column(column, justify="left" if column == "dataset" else "right")
    for name, found in report["probing"].items():
        entries = [found[side][k] for side in ("coder", "dimensions") for k in ("k1", "k5")]
        table.add_row(name, *map(with_interval, [*entries, found["whole"]]))
    mean = report["mean"]
    shares = [mean[side][k] for side in ("coder", "dimensions") for k in ("k1", "k5")]
    if report["probing"]:
        table.add_row("mean", *(f"{share:.3f}" for share in (*shares, mean["whole"])))
    console.print(table)


def print_induction(report: dict[str, Any], console: Console) -> None:
    clean = report["clean"]
    console.print(
        f"{report['site']}: {report['found']} induction features; first occurrence "
        f"{with_interval(clean['loss_first'])} nats, second {with_interval(clean['loss_second'])}, "
        f"copied {with_interval(clean['copied'])}"
    )
    table = Table(title="Taken out: share of the copying loss gap that is lost")
    copied = ("features", "equal_density", "equal_firing")
    for column in ("latents", *WAYS, *(f"copied, {way}" for way in copied)):
        table.add_column(column, justify="right")
    for row in report["ablations"]:
        shares = [with_interval(row[way]["removed"]) for way in WAYS]
        rest = [with_interval(row[way]["copied"]) for way in copied]
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
            with_interval(probed["coder"]["k1"]),
            with_interval(probed["coder"]["k5"]),
            with_interval(control["probing"][name]["coder"]["k1"]),
            with_interval(probed["dimensions"]["k1"]),
            with_interval(probed["whole"]),
            with_interval(best["f1"]) if best else "",
            with_interval(best["specificity"]) if best else "",
        )
    console.print(table)
    for name, found in (("coder", report), ("random dictionary", control)):
        erased, letters = found["targeted_ablation"], found["first_letter_absorption"]
        sizes = [key for key in erased if key != "concepts"]
        tpp = ", ".join(f"{key} {with_interval(erased[key]['tpp'])}" for key in sizes)
        console.print(f"{name}: TPP {tpp}")
        for level, removed in found["spurious_removal"].items():
            scr = ", ".join(f"{k} {v:.2f}" for k, v in removed.items() if isinstance(v, float))
            console.print(f"{name}: SCR over {len(removed['pairs'])} pairs of {level} {scr or '-'}")
        console.print(f"{name}: first-letter absorption {with_interval(letters['absorption'])}")


def report(
    what: What,
    run: Path,
    coder: str,
    *,
    sequences: int,
    tokens: int,
    texts: int,
    directions: int,
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
        elif what == "labels":
            found, show = labels(of, run, directions, seed), print_labels
        else:
            found, show = concepts(of, tokens, seed, progress), print_concepts
    store = of.store if what in ("concepts", "labels") else None  # the others read none of it
    said = describe_report(of.coder, of.weights, of.lm, began, seed, store)
    show(found, console)
    evaluation = run / "evaluation"
    out = out or evaluation / mechanism_of(coder, what)
    write_json(out, {**found, "provenance": said})
    if out.resolve().is_relative_to(evaluation.resolve()):
        seal(evaluation, [out.resolve().relative_to(evaluation.resolve()).as_posix()])
    console.print(f"{out} in {time.monotonic() - began:.1f} s")
