"""Known mechanisms and concepts of one trained coder, beside its evaluation.

    sae mechanisms induction runs/induction --coder mid5
    sae mechanisms concepts runs/demo --coder topk --tokens 65536

Writes `evaluation/mechanisms/<coder>.induction.json` and `<coder>.concepts.json` (their keys are
in docs/metrics.md), and prints what matters of them.
"""

import time
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from sae.base.files import write_json
from sae.base.sums import seal
from sae.coders import Coder, load_coder
from sae.features.tokenizer_bytes import vocabulary_of
from sae.lm import LanguageModel, load_lm
from sae.metrics.concept_report import concept_report
from sae.metrics.controls import TrainData, matched_l0, random_dictionary
from sae.metrics.induction import induction_report
from sae.metrics.probe_sets import probe_set_report
from sae.metrics.provenance import special_ids
from sae.metrics.sample import draw
from sae.store import ActivationStore

WAYS = ("features", "equal_density", "equal_norm")
FIT_TOKENS = 65_536  # from which the scale of the random dictionary is found


def induction(run: Path, name: str, sequences: int, seed: int) -> dict[str, Any]:
    coder, _, lm = _open(run, name)
    return induction_report(coder, lm, sequences=sequences, seed=seed)


def concepts(run: Path, name: str, tokens: int, seed: int) -> dict[str, Any]:
    """The concept metrics of a coder and of a random dictionary of equal width and L0."""
    coder, store, lm = _open(run, name)
    site = str(coder.site)
    mean_D = torch.from_numpy(store.stats(site).mean_D).to(coder.W_dec_FD)
    sample = draw(store, "train", FIT_TOKENS, special_ids(lm, store))
    train = TrainData(sample, site, mean_D, mean_D.device)
    control = random_dictionary(coder, train, matched_l0(coder, train), seed)
    bytes_V = vocabulary_of(lm.tokenizer, lm.vocab_size).tokens
    controls: Any = {"random_dictionary": control}
    return concept_report(coder, store, lm, bytes_V, tokens=tokens, controls=controls, seed=seed)


def probes(run: Path, name: str, texts: int, seed: int) -> dict[str, Any]:
    coder, _, lm = _open(run, name)
    return probe_set_report(coder, lm, texts=texts, seed=seed)


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
    for column in ("latents", *WAYS, "copied after", "copied, equal density"):
        table.add_column(column, justify="right")
    for row in report["ablations"]:
        own = row["features"]
        shares = [_shown(row[way]["removed"]) for way in WAYS]
        rest = (_shown(own["copied"]), _shown(row["equal_density"]["copied"]))
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


def _open(run: Path, name: str) -> tuple[Coder, ActivationStore, LanguageModel]:
    coder = load_coder(run / "coders" / name)
    store = ActivationStore.open(run / "activations.zarr")
    lm = load_lm(str(store.attributes["model"]["name"]), device="cpu", dtype="float32")
    return coder, store, lm


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
    began, console = time.perf_counter(), Console(width=180)
    if what == "induction":
        found = induction(run, coder, sequences, seed)
        print_induction(found, console)
    elif what == "probes":
        found = probes(run, coder, texts, seed)
        print_probes(found, console)
    else:
        found = concepts(run, coder, tokens, seed)
        print_concepts(found, console)
    name = f"mechanisms/{coder}.{what}.json"
    path = write_json(out or run / "evaluation" / name, found)
    if out is None:
        seal(run / "evaluation", [name])
    console.print(f"{path} in {time.perf_counter() - began:.1f} s")
