"""Finding and loading a GPT-2, with device and dtype chosen well by default."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

from sae.base.devices import default_dtype, parse_device, parse_dtype
from sae.base.errors import UserError
from sae.base.files import read_json_object, sha256_json
from sae.base.foreign import require_file, require_plain_files
from sae.lm.assets import POCKET, local_model_folder
from sae.lm.model import LanguageModel

DESCRIPTIONS, LARGEST = (".json", ".txt", ".jinja", ".model"), 2**27
"""Files beside the weights, which are read whole, and the most bytes of one of them."""
DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
OF_FUNCTION = (
    *("n_head", "activation_function", "layer_norm_epsilon"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
)
"""What `config.json` says of the function that a model computes and its weights do not: the rest
of the file is sizes, which show in the weights, or of training. Named one by one, since other
versions of transformers write other files."""
NO_LIMIT = int(1e30)  # tokens that a tokenizer takes, as transformers writes it


def load_lm(
    name: str = POCKET, device: str | None = None, dtype: str | torch.dtype | None = None
) -> LanguageModel:
    """Loads `"pocket"` (embedded), a local folder in Hugging Face layout, or a hub id.

    `device` defaults to CUDA, or else the CPU; `dtype` to bfloat16 where the
    hardware computes in it, else float32. Raises `UserError` if there is no such GPT-2.
    """
    chosen = parse_device(device)
    precision = parse_dtype(dtype) if dtype is not None else default_dtype(chosen)
    folder = local_model_folder(name)
    try:
        model, tokenizer = _loaded(name, folder)
    except UserError:
        raise
    except Exception as error:  # transformers and tokenizers raise what they like for a bad file
        raise UserError(
            f"The model `{name}` could not be loaded: give `pocket`, a folder in Hugging Face "
            f"layout with its tokenizer, or the hub id of a GPT-2 ({_first_line(error)})"
        ) from error
    identity = model_hash(model)
    _use_fused_gelu(model)
    model.eval().requires_grad_(False)
    nn.Module.to(model, device=chosen, dtype=precision)
    return LanguageModel(model, tokenizer, name=name, hash=identity)


def _loaded(name: str, folder: Path | None) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]:
    """Model and tokenizer; code that a folder brings along is never run."""
    path = str(folder or name)
    weights = None
    if folder is not None:
        weights = require_plain_files(folder)
        for file in (file for file in folder.iterdir() if file.suffix in DESCRIPTIONS):
            require_file(file, LARGEST)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if config.model_type != "gpt2":
        raise UserError(f"The model `{name}` is a `{config.model_type}`; Loupe reads GPT-2 models.")
    if weights is not None:
        _require_parameters(config, weights)
    for dropout in DROPOUTS:  # of training, which Loupe does not do; a file may hold anything
        setattr(config, dropout, 0.0)
    loaded: Any = GPT2LMHeadModel.from_pretrained(
        path, config=config, dtype=torch.float32, weights_only=True, output_loading_info=True
    )
    model, found = loaded
    _require_all_weights(found)
    if folder is not None:
        _require_ids(folder / "tokenizer.json", config.vocab_size)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    tokenizer.model_max_length = NO_LIMIT  # whole documents are tokenised, then packed
    _require_tokenizer(tokenizer, config.vocab_size)
    return model, tokenizer


def _require_parameters(config: Any, there: int) -> None:
    """Raises `ValueError` if `config.json` promises far more than the folder's files can hold;
    asked before memory for such a model is taken."""
    sizes = [config.vocab_size, config.n_positions, config.n_embd, config.n_layer, config.n_head]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("a size in config.json is no positive whole number")
    vocabulary, positions, d, layers, _ = sizes
    inner = config.n_inner if config.n_inner is not None else 4 * d
    promised = d * (vocabulary + positions) + layers * d * (4 * d + 2 * inner)
    if type(inner) is not int or inner < 1 or promised > there or layers > there:
        raise ValueError(f"config.json promises {promised:,} parameters in {there:,} bytes")


def _require_all_weights(found: dict[str, Any]) -> None:
    """Raises `ValueError` if a tensor was not there: it would be random, anew at each loading."""
    for what in ("missing_keys", "mismatched_keys"):
        if lacking := sorted(map(str, found[what])):
            raise ValueError(
                f"its weights lack `{lacking[0]}`, or have it in another shape "
                f"({len(lacking)} such tensors)"
            )


def _require_ids(path: Path, vocabulary: int) -> None:
    """Raises `ValueError` for ids beyond the model's, for each of which up to the largest the
    tokenizer would take memory."""
    if not path.is_file():  # an older layout, which has a list of tokens instead
        return
    described = read_json_object(path)
    tokens = described["model"]["vocab"]
    ids = list(tokens.values()) if isinstance(tokens, dict) else []
    ids += [token["id"] for token in described.get("added_tokens") or ()]
    _require_known(ids, vocabulary)


def _require_known(ids: Iterable[object], vocabulary: int) -> None:
    if not all(type(i) is int and 0 <= i < vocabulary for i in ids):
        raise ValueError(f"its tokenizer gives tokens beyond the model's {vocabulary}")


def _require_tokenizer(tokenizer: Any, vocabulary: int) -> None:
    """Raises `ValueError` unless text becomes token ids that the model has an embedding of."""
    tokenizer_hash(tokenizer)
    known = {"BOS": tokenizer.bos_token_id, "EOS": tokenizer.eos_token_id}
    if lacking := [name for name, token in known.items() if token is None]:
        raise ValueError(
            f"its tokenizer has no {lacking[0]} token, with which sequences and documents begin"
        )
    _require_known([*tokenizer.get_vocab().values(), *known.values()], vocabulary)


def tokenizer_hash(tokenizer: object) -> str:
    """Hash of a fast tokenizer's whole definition."""
    definition = tokenizer.backend_tokenizer.to_str()  # pyright: ignore[reportAttributeAccessIssue]
    parsed = json.loads(definition)
    parsed.pop("truncation", None)  # state of the last call, not part of the definition
    parsed.pop("padding", None)
    return hashlib.sha256(json.dumps(parsed, sort_keys=True).encode()).hexdigest()


def weights_hash(model: nn.Module) -> str:
    """Hash of all parameters in float32: the same model from any file has the same hash."""
    digest = hashlib.sha256()
    for key, value in sorted(model.named_parameters()):
        digest.update(key.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def model_hash(model: GPT2LMHeadModel) -> str:
    """Identity of the function that a model computes: of its weights and of `OF_FUNCTION`."""
    settings = {name: getattr(model.config, name) for name in OF_FUNCTION}
    settings["layer_norm_epsilon"] = float(settings["layer_norm_epsilon"])  # a file may say 1
    return sha256_json([weights_hash(model), settings])


def _use_fused_gelu(model: GPT2LMHeadModel) -> None:
    """`gelu_new` is the tanh approximation spelt out in eight passes; torch has it in one."""
    if model.config.activation_function == "gelu_new":
        block: Any
        for block in model.transformer.h:
            block.mlp.act = nn.GELU(approximate="tanh")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
