"""Known mechanisms and concepts of one trained coder, beside its evaluation.

    python -m pipelines.mechanisms induction runs/demo --coder topk
    python -m pipelines.mechanisms concepts runs/demo --coder topk --tokens 65536

Writes `evaluation/mechanisms/<coder>.induction.json` and `<coder>.concepts.json` (their keys are
in docs/metrics.md), and prints what matters of them.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sae.base.files import write_json
from sae.coders import Coder, load_coder
from sae.features.tokenizer_bytes import vocabulary_of
from sae.lm import LanguageModel, load_lm
from sae.metrics.concept_report import TOKENS, concept_report
from sae.metrics.controls import TrainData, matched_l0, random_dictionary
from sae.metrics.induction import induction_report
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("induction", "concepts"))
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--coder", default="topk")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="default: the run's evaluation/")
    given = parser.parse_args(arguments)
    began, console = time.perf_counter(), Console(width=180)
    if given.what == "induction":
        report = induction(given.run, given.coder, given.sequences, given.seed)
        print_induction(report, console)
    else:
        report = concepts(given.run, given.coder, given.tokens, given.seed)
        print_concepts(report, console)
    out = given.out or given.run / "evaluation" / "mechanisms" / f"{given.coder}.{given.what}.json"
    write_json(out, report)
    console.print(f"{out} in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
