"""Known mechanisms, concepts and labels of one trained coder, beside its evaluation.

    sae mechanisms induction runs/induction --coder mid5
    sae mechanisms concepts runs/demo --coder topk --tokens 65536
    sae mechanisms labels runs/demo --coder topk

Writes `evaluation/mechanisms/<coder>.<what>.json` (keys: docs/metrics.md) and a page beside it,
sealed like the evaluation, and prints what matters of them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pipelines.locks import at_work
from pipelines.mechanism_tables import TABLES
from pipelines.progress import steps_progress
from pipelines.results import mechanism_of
from sae.base.commands import command
from sae.base.errors import UserError
from sae.base.files import write_json
from sae.base.sums import seal
from sae.coders import Coder, check_fit, coder_hash, load_coder
from sae.explain.control import label_control
from sae.features import FeatureIndex
from sae.features.effects import promoted_tokens, unembedding
from sae.features.tokenizer_bytes import vocabulary_of
from sae.lm import LanguageModel, load_lm
from sae.metrics.concept_report import concept_report
from sae.metrics.controls import CONTROLS, TrainData, matched_l0
from sae.metrics.induction import induction_report
from sae.metrics.probe_sets import probe_set_report
from sae.metrics.provenance import describe_report, special_ids
from sae.metrics.report import ReadTable, write_tables
from sae.metrics.sample import draw
from sae.metrics.scoring import Progress
from sae.metrics.steps import silent
from sae.store import ActivationStore

What = Literal["induction", "concepts", "probes", "labels"]
FIT_TOKENS = 65_536  # from which the scale of the controls is found


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
        check_fit(coder, store, lm)
        return cls(name, weights, coder, store, lm)


def induction(
    of: Subject, sequences: int, seed: int, progress: Progress = silent
) -> dict[str, Any]:
    return induction_report(of.coder, of.lm, sequences=sequences, seed=seed, progress=progress)


def concepts(of: Subject, tokens: int, seed: int, progress: Progress = silent) -> dict[str, Any]:
    """The concept metrics of a coder, and of dictionaries of its width and L0 without learning.

    (Codes of a shuffled decoder are the coder's own: all that is probed would be a draw.)
    """
    controls = dictionaries(of, ("random_dictionary", "train_rows"), seed)
    bytes_V = vocabulary_of(of.lm.tokenizer, of.lm.vocab_size).tokens
    return concept_report(
        of.coder,
        of.store,
        of.lm,
        bytes_V,
        tokens=tokens,
        controls=controls,
        seed=seed,
        progress=progress,
    )


def probes(of: Subject, texts: int, seed: int, progress: Progress = silent) -> dict[str, Any]:
    """Probes on the datasets of sae-probes, of the coder's latents and a random dictionary's."""
    controls = dictionaries(of, ("random_dictionary",), seed)
    return probe_set_report(
        of.coder, of.lm, texts=texts, controls=controls, seed=seed, progress=progress
    )


def dictionaries(of: Subject, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Controls that take no training, scaled on rows of the store."""
    coder, store, site = of.coder, of.store, str(of.coder.site)
    mean_D = torch.from_numpy(store.stats(site).mean_D).to(coder.W_dec_FD)
    sample = draw(store, "train", FIT_TOKENS, special_ids(of.lm, store))
    train = TrainData(sample, site, mean_D, mean_D.device)
    l0 = matched_l0(coder, train)
    return {name: CONTROLS[name](coder, train, l0, seed) for name in names}


def labels(of: Subject, run: Path, directions: int, seed: int) -> dict[str, Any]:
    """Automatic labels of features, and of random directions that fire as often."""
    coder, store, lm = of.coder, of.store, of.lm
    index = FeatureIndex.open(run / "features" / of.name)
    made_of = (of.weights, store.attributes["corpus"]["hash"])
    if (index.meta["coder_hash"], index.meta.get("corpus_hash")) != made_of:
        raise UserError(
            f"{index.folder} is the index of another coder or text than {run} holds; make it again "
            f"with `{command('index', run)}`."
        )
    reads_where_it_writes = coder.target_site == coder.site
    rows_FD = coder.W_dec_FD if reads_where_it_writes else coder.W_enc_FD
    unembed_DV = unembedding(lm)

    def promoted(unit_ND: np.ndarray) -> np.ndarray:
        return promoted_tokens(torch.from_numpy(unit_ND), lm, str(coder.site), unembed_DV)

    rows = rows_FD.detach().float().cpu().numpy()
    return label_control(index, store, rows, promoted, directions, seed)


def _show(tables: Sequence[ReadTable], console: Console) -> None:
    for shown in tables:
        table = Table(title=shown.title)
        for number, column in enumerate(shown.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in shown.rows:
            table.add_row(*row)
        console.print(table)
        console.print(shown.reading, style="dim")


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
    """Measures, prints, and writes JSON with a page beside it, by default into the run's
    `evaluation/mechanisms/`.
    """
    if out is not None and out.suffix == ".html":
        raise UserError(f"{out} is where the page would go; give the name of a JSON file.")
    began, console = time.monotonic(), Console(width=180)
    with at_work(run, f"mechanisms-{coder}"):
        of = Subject.open(run, coder)
        with steps_progress(f"{what} {coder}") as progress:
            if what == "induction":
                found = induction(of, sequences, seed, progress)
            elif what == "probes":
                found = probes(of, texts, seed, progress)
            elif what == "labels":
                found = labels(of, run, directions, seed)
            else:
                found = concepts(of, tokens, seed, progress)
    store = of.store if what in ("concepts", "labels") else None  # the others score none of it
    said = describe_report(of.coder, of.weights, of.lm, began, seed, store)
    tables = TABLES[what](found)
    _show(tables, console)
    evaluation = run / "evaluation"
    out = out or evaluation / mechanism_of(coder, what)
    page = out.with_suffix(".html")
    write_tables(f"{what.capitalize()} of {coder}", tables, said, page)
    write_json(out, {**found, "provenance": said})
    made = [path.resolve() for path in (out, page)]
    if out.resolve().is_relative_to(evaluation.resolve()):
        seal(evaluation, [path.relative_to(evaluation.resolve()).as_posix() for path in made])
    console.print(f"{page} in {time.monotonic() - began:.1f} s")
