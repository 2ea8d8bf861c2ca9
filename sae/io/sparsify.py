"""Coders that EleutherAI's sparsify (1.3) saved: `cfg.json` + `sae.safetensors`."""

from pathlib import Path

from sae.base.errors import UserError
from sae.base.files import read_json_object
from sae.base.foreign import reading
from sae.base.tensors import read_safetensors
from sae.coders import Coder
from sae.io.imported import imported_coder, named_tensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
NAMES = {
    "W_enc": "encoder.weight",
    "b_enc": "encoder.bias",
    "W_dec": "W_dec",
    "b_dec": "b_dec",
}


def load_sparsify(folder: Path | str, site: str) -> Coder:
    """Opens a TopK autoencoder that sparsify saved; `site` names where it reads the model.

    It encodes as `topk` does, ReLU and then the k largest of (x − b_dec) W_encᵀ + b_enc, so codes
    are the same but for ties. Transcoders, skip connections and group-max are refused.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} is no sparsify coder: it needs {CONFIG} and {WEIGHTS}.")
    config = read_json_object(folder / CONFIG)
    with reading(f"The coder in {folder}"):
        _refuse_others(config, folder)
        tensors = named_tensors(read_safetensors(folder / WEIGHTS), NAMES, folder / WEIGHTS)
        tensors["W_enc"] = tensors["W_enc"].T
        source = {"tool": "sparsify", "config": config}
        return imported_coder("topk", tensors, site, source, k=int(config["k"]))


def _refuse_others(config: dict, folder: Path) -> None:
    """What would change the meaning of the weights is an error."""
    if config.get("transcode") or config.get("skip_connection"):
        raise UserError(f"{folder} holds a transcoder; only autoencoders can be imported.")
    if config.get("activation", "topk") != "topk":
        raise UserError(
            f"{folder} selects by `{config['activation']}`; only `topk` can be imported."
        )
    if "k" not in config:
        raise UserError(f"{folder / CONFIG} does not say k.")
