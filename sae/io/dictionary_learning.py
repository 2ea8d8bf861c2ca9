"""Coders that dictionary_learning (0.1) saved: `ae.pt`, a state dict, + `config.json`."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.base.errors import UserError, nearest
from sae.base.files import read_json_object
from sae.base.foreign import reading
from sae.base.tensors import read_state
from sae.coders import Coder
from sae.io.imported import imported_coder, named_tensors

CONFIG, WEIGHTS = "config.json", "ae.pt"
NAMES = {
    "W_enc": "encoder.weight",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight",
    "b_dec": "b_dec",
}
# Their dictionary class -> our architecture.
KINDS = {"AutoEncoderTopK": "topk", "BatchTopKSAE": "jumprelu", "AutoEncoder": "relu"}


def load_dictionary_learning(folder: Path | str, site: str) -> Coder:
    """Opens a dictionary; `site` names where it reads the model.

    `AutoEncoderTopK` becomes `topk`, `BatchTopKSAE` a `jumprelu` with its learned threshold for
    every latent (its own way at inference), `AutoEncoder` a `relu`. Other classes are refused.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} is no dictionary: it needs {WEIGHTS} and {CONFIG}.")
    config = read_json_object(folder / CONFIG)
    with reading(f"The dictionary in {folder}"):
        return _imported(dict(config.get("trainer", {})), folder, site)


def _imported(trainer: dict[str, Any], folder: Path, site: str) -> Coder:
    kind = str(trainer.get("dict_class"))
    if kind not in KINDS:
        raise UserError(
            f"{folder} holds a `{kind}`; those that can be imported are {', '.join(KINDS)}."
            + nearest(kind, KINDS)
        )
    state = dict(read_state(folder / WEIGHTS))
    names = NAMES if kind != "AutoEncoder" else {**NAMES, "b_dec": "bias"}
    tensors = named_tensors(state, names, folder / WEIGHTS)
    tensors["W_enc"], tensors["W_dec"] = tensors["W_enc"].T, tensors["W_dec"].T
    options: dict[str, Any] = {}
    if kind == "AutoEncoderTopK":
        options["k"] = int(named_tensors(state, {"k": "k"}, folder / WEIGHTS)["k"])
    elif kind == "BatchTopKSAE":
        tensors["threshold"] = _threshold(state, folder / WEIGHTS, len(tensors["b_enc"]))
    source = {"tool": "dictionary_learning", "config": _plain(trainer)}
    return imported_coder(KINDS[kind], tensors, site, source, **options)


def _threshold(state: dict[str, Tensor], path: Path, width: int) -> Tensor:
    """Its threshold starts at −1, meaning none has been learned yet."""
    threshold = float(named_tensors(state, {"threshold": "threshold"}, path)["threshold"])
    if threshold < 0:
        raise UserError(
            f"{path} was saved before its threshold was learned ({threshold:g}); train it longer."
        )
    return torch.full((width,), threshold)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Only what JSON can hold goes on into our own folder."""
    return json.loads(json.dumps(config, default=str))
