"""A coder on disk: SAELens's `cfg.json` + `sae_weights.safetensors`, with our provenance inside.

SAELens 6 loads these folders as they are. Extra keys of `metadata` survive there.
"""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast, get_args, get_type_hints

import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.base.files import (
    atomic_write,
    read_json_object,
    sha256_file,
    sync_folder,
    write_json,
)
from sae.base.foreign import reading
from sae.base.sums import SUMS, require_intact, seal
from sae.base.tensors import read_safetensors, write_safetensors
from sae.coders.contract import Coder
from sae.coders.registry import ARCHITECTURES, make_coder

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SAE_LENS = "6.54.12"  # the version of the format; without one, SAELens reads the legacy flat form
SAVED_AS = {
    "relu": "standard",
    "relu_transcoder": "transcoder",
    "relu_skip_transcoder": "skip_transcoder",
}
LOADED_AS = {saved: own for own, saved in SAVED_AS.items()}


def save_coder(coder: Coder, folder: Path | str) -> Path:
    """Writes a coder that takes raw activations, in its form for inference, and its files' sums.

    Weights come first, so a `cfg.json` means whole. That of an older coder there, which says what
    other weights mean, goes before them, with its sums.
    """
    folder, coder = Path(folder), coder.for_inference()
    for name in (CONFIG, SUMS):
        (folder / name).unlink(missing_ok=True)
    if folder.exists():
        sync_folder(folder)
    atomic_write(folder / WEIGHTS, lambda file: write_safetensors(_weights(coder), file))
    write_json(folder / CONFIG, _config(coder))
    seal(folder, [WEIGHTS, CONFIG])
    return folder


def load_coder(folder: Path | str, device: str = "cpu") -> Coder:
    """Opens a folder in SAELens's format.

    Raises:
        UserError: there is none, its files are not what was written, or Loupe cannot honour it.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        raise UserError(
            f"There is no coder in {folder} ({CONFIG} is missing); make one with `sae train`."
        )
    require_intact(folder, [CONFIG, WEIGHTS])
    config = read_json_object(folder / CONFIG)
    with reading(f"The coder in {folder}"):
        return _coder_of(config, folder).requires_grad_(False).eval().to(torch.device(device))


def _coder_of(config: dict[str, Any], folder: Path) -> Coder:
    saved_as = str(config.get("architecture"))
    architecture = LOADED_AS.get(saved_as, saved_as)
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{folder} holds a `{saved_as}` coder; Loupe reads {', '.join(ARCHITECTURES)}."
        )
    kind = ARCHITECTURES[architecture]
    _refuse_what_changes_meaning(config, folder, kind)
    d_in, d_sae = int(config["d_in"]), int(config["d_sae"])
    options = _options(config, kind)
    tensors = read_safetensors(folder / WEIGHTS)
    _require_sizes(tensors, d_in, d_sae, folder)
    coder = make_coder(architecture, d_in, d_sae, **options)
    _require_shapes(coder, tensors, folder)
    coder.load_saved(_norms_folded(tensors, config))
    coder.metadata = dict(config.get("metadata") or {})
    return coder


def _options(config: dict[str, Any], kind: type[Coder]) -> dict[str, Any]:
    """The hyperparameters in `cfg.json`, each of a type that the architecture's code can compute
    with: to Python, true is a number as well."""
    hints = get_type_hints(kind.__init__)
    options = {name: config[name] for name in kind.hyperparameters if name in config}
    for name, value in options.items():
        wanted = set(get_args(hints[name]) or (hints[name],))
        if type(value) not in (wanted | {int} if float in wanted else wanted):
            names = " or ".join(sorted(one.__name__ for one in wanted))
            raise ValueError(f"its `{name}` is {value!r}; expected {names}")
    return options


def _require_sizes(tensors: dict[str, Tensor], d_in: int, d_sae: int, folder: Path) -> None:
    """Asked before memory for a coder of the size that is written in `cfg.json` is taken."""
    W_enc = tensors.get("W_enc", tensors["W_dec"].T)  # matching pursuit has no encoder
    if W_enc.shape != (d_in, d_sae):
        raise UserError(
            f"The weights in {folder} are of {tuple(W_enc.shape)}, its {CONFIG} says "
            f"{(d_in, d_sae)}; these two files do not belong together."
        )


def _require_shapes(coder: Coder, tensors: dict[str, Tensor], folder: Path) -> None:
    """Torch copies (1, D) into (F, D) without a word."""
    for name, own in coder.saved_tensors().items():
        if name in tensors and tensors[name].shape != own.shape:
            raise UserError(
                f"`{name}` in {folder / WEIGHTS} has the shape {tuple(tensors[name].shape)}; "
                f"{coder.architecture} of this size needs {tuple(own.shape)}."
            )


def coder_hash(coder: Coder | Path | str) -> str:
    """Identity of a coder: sha256 of its folder's weights file, or of what `save_coder` writes."""
    if isinstance(coder, Coder):
        digest = hashlib.sha256()
        write_safetensors(_weights(coder), cast(BinaryIO, SimpleNamespace(write=digest.update)))
        return digest.hexdigest()
    path = Path(coder) / WEIGHTS
    if not path.is_file():
        raise UserError(f"There is no coder in {coder} ({WEIGHTS} is missing); train it again.")
    return sha256_file(path)


def _weights(coder: Coder) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in coder.saved_tensors().items()}


def _config(coder: Coder) -> dict[str, Any]:
    extra = {name: getattr(coder, name) for name in coder.hyperparameters}
    if coder.architecture == "topk":
        extra["rescale_acts_by_decoder_norm"] = False
    return {
        "architecture": SAVED_AS.get(coder.architecture, coder.architecture),
        "d_in": coder.d_in,
        "d_sae": coder.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": coder.centres_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **extra,
        "metadata": {
            "sae_lens_version": SAE_LENS,
            "sae_lens_training_version": None,
            **coder.metadata,
        },
    }


def _norms_folded(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """SAELens trains TopK by pre-activation times decoder norm: with the norms in the encoder and
    unit decoder rows it is our TopK, exactly."""
    if not config.get("rescale_acts_by_decoder_norm"):
        return tensors
    norm_F = tensors["W_dec"].norm(dim=1)
    return {
        **tensors,
        "W_enc": tensors["W_enc"] * norm_F,
        "b_enc": tensors["b_enc"] * norm_F,
        "W_dec": tensors["W_dec"] / norm_F[:, None],
    }


def _refuse_what_changes_meaning(config: dict[str, Any], folder: Path, kind: type[Coder]) -> None:
    """Settings that would make plain decoding silently wrong are an error, not a warning."""
    expected = {"apply_b_dec_to_input": kind.centres_input, "normalize_activations": "none"}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise UserError(
                f"{folder} was saved with {key}={config[key]!r}; Loupe reads {key}={value!r} only."
            )
    loading = config.get("metadata", {}).get("model_from_pretrained_kwargs") or {}
    if loading.get("center_writing_weights"):
        raise UserError(
            f"{folder} expects a mean-centred residual stream (center_writing_weights), which "
            "plain GPT-2 activations are not; Loupe does not read such coders."
        )
