"""Sparse probing on the text datasets of the package `sae-probes`, where it is installed.

Kantamneni et al. 2025, "Are Sparse Autoencoders Useful? A Case Study in Sparse Probing". The
package carries its datasets as CSV (`prompt`, `target`); they are read as files, and nothing of its
code is run: the probes are those of `sae.metrics.probing`. As there, the activation is that of
a text's last token, and long texts lose their beginning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from sae.base.errors import UserError, nearest
from sae.base.foreign import reading, require_file
from sae.coders import Coder
from sae.metrics.ablation import Dictionary
from sae.metrics.concept_data import Examples
from sae.metrics.concept_wins import OWN_DIMENSIONS, probing_against_controls
from sae.metrics.concepts import NO, YES
from sae.metrics.estimate import INTERVAL
from sae.metrics.probing import FEWEST, KS, sparse_probing
from sae.metrics.recovery import as_csr
from sae.metrics.scoring import Progress
from sae.metrics.steps import silent

if TYPE_CHECKING:
    from sae.lm import LanguageModel

SCHEMA = 2
TEXTS = 600  # of a dataset, half of them to fit on
BATCH = 32
LARGEST = 2**28
MISSING = (
    "The datasets of `sae-probes` are not installed; `pip install --no-deps sae-probes zstandard` "
    "brings them (45 MB; the package's own dependencies are not needed)."
)


def probe_sets(folder: Path | None = None) -> dict[str, Path]:
    """{name: CSV} of all datasets, of the installed package or of a folder of `prompt,target`."""
    if folder is None:
        package = find_spec("sae_probes")
        if package is None or not package.submodule_search_locations:
            raise UserError(MISSING)
        folder = Path(package.submodule_search_locations[0]) / "data" / "cleaned_data"
    found = {path.name.partition(".csv")[0]: path for path in sorted(folder.glob("*.csv*"))}
    if not found:
        raise UserError(f"{folder} holds no `.csv` or `.csv.zst` of prompts and targets.")
    return found


def probe_set_report(
    coder: Coder,
    lm: "LanguageModel",
    names: Sequence[str] = (),
    *,
    texts: int = TEXTS,
    controls: Mapping[str, Dictionary] | None = None,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Accuracies on datasets with two targets, JSON as in `docs/metrics.md`.

    `names`: some of them; by default all. `controls` code the same activations. Datasets with other
    targets, or too few texts, are named in `left_out`. Raises `UserError` where there are no
    datasets, or none of that name.
    """
    sets = probe_sets(folder)
    for name in names:
        if name not in sets:
            raise UserError(f"`{name}` is no dataset of `sae-probes`.{nearest(name, sets)}")
    methods: dict[str, Dictionary] = {"coder": coder, **(controls or {})}
    probing: dict[str, dict[str, Any]] = {name: {} for name in methods}
    left_out = []
    for number, name in enumerate(names or sets):
        progress("datasets", number, len(names or sets))
        prompts, label_E = read_set(sets[name], texts, seed)
        if min((label_E == YES).sum(), (label_E == NO).sum()) < 2 * FEWEST:
            left_out.append(name)
            continue
        examples = last_tokens(coder, lm, prompts, name, label_E)
        for method, dictionary in methods.items():
            is_own = method == "coder"
            coded = examples if is_own else coded_by(dictionary, examples)
            probing[method] |= _halves(coded, name, seed, activation=is_own)
    progress("datasets", len(names or sets), len(names or sets))
    own, others = probing.pop("coder"), probing
    return {
        "schema": SCHEMA,
        "site": coder.site,
        "texts": texts,
        "interval": {**INTERVAL, "over": "texts"},
        "mean": {
            **{side: _means(own, side) for side in ("coder", OWN_DIMENSIONS)},
            "whole": _mean([found["whole"] for found in own.values()]),
        },
        "probing": own,
        "controls": {
            name: {"mean": {"coder": _means(found, "coder")}, "probing": found}
            for name, found in others.items()
        },
        "against_controls": probing_against_controls(own, others),
        "left_out": left_out,
    }


def coded_by(dictionary: Dictionary, examples: Examples) -> Examples:
    """The same activations with the codes of another."""
    x_ED = torch.from_numpy(examples.x_ED).to(dictionary.W_dec_FD)
    return replace(examples, codes_EF=sp.csr_matrix(as_csr(dictionary.encode(x_ED))))


def _halves(examples: Examples, name: str, seed: int, activation: bool) -> dict[str, Any]:
    """Probes fitted on every other text, and scored on the rest."""
    half = np.arange(len(examples)) % 2 == 0
    fit, test = (examples.take(np.flatnonzero(part)) for part in (half, ~half))
    return sparse_probing(fit, test, [name], seed=seed, activation=activation)


def read_set(path: Path, texts: int, seed: int) -> tuple[list[str], np.ndarray]:
    """At most `texts` prompts in random order, as many of either target; no labels (all unknown)
    where there are not two targets."""
    import pandas

    try:
        with reading(path, "take another"):
            require_file(path, LARGEST)
            table = pandas.read_csv(path).dropna(subset=["prompt", "target"])
            targets = sorted(table["target"].unique().tolist(), key=str)
    except UserError as error:
        if isinstance(error.__cause__, ImportError):
            raise UserError(MISSING) from error
        raise
    if len(targets) != 2:
        return [], np.empty(0, np.int8)
    rng = np.random.default_rng(seed)
    both = [np.flatnonzero((table["target"] == target).to_numpy()) for target in targets]
    count = min(texts // 2, *(len(rows) for rows in both))
    rows = rng.permutation(np.concatenate([rng.choice(r, count, replace=False) for r in both]))
    label_E = np.where((table["target"] == targets[1]).to_numpy()[rows], YES, NO)
    return table["prompt"].astype(str).iloc[rows].tolist(), label_E.astype(np.int8)


@torch.inference_mode()
def last_tokens(
    coder: Coder, lm: "LanguageModel", prompts: Sequence[str], name: str, label_E: np.ndarray
) -> Examples:
    """Activation and codes at the last token of each text, behind BOS."""
    site, room = str(coder.site), lm.context - 1
    encoded: Any = lm.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    rows = [[lm.bos_id, *ids[-room:]] for ids in encoded]
    parts: list[np.ndarray] = []
    codes: list[sp.csr_matrix] = []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        width = max(map(len, some))  # what is behind the last token cannot be seen by it
        padded = [row + [lm.bos_id] * (width - len(row)) for row in some]
        x_STD = lm.capture(torch.tensor(padded), [site])[site].float()
        x_BD = x_STD[torch.arange(len(some)), torch.tensor([len(row) - 1 for row in some])]
        parts.append(x_BD.cpu().numpy())
        codes.append(as_csr(coder.encode(x_BD.to(coder.W_dec_FD))))
    x_ED = np.concatenate(parts)
    return Examples(x_ED, sp.csr_matrix(sp.vstack(codes)), {name: label_E}, np.arange(len(x_ED)))


def _means(probing: Mapping[str, Any], side: str) -> dict[str, float | None]:
    return {f"k{k}": _mean([found[side][f"k{k}"] for found in probing.values()]) for k in KS}


def _mean(entries: Sequence[dict[str, Any]]) -> float | None:
    return float(np.mean([entry["value"] for entry in entries])) if entries else None
