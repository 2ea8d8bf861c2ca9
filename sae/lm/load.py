"""Finding and loading a GPT-2, with device and dtype chosen well by default."""

import hashlib
import json
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel

from sae.base.devices import default_dtype, parse_device, parse_dtype
from sae.base.errors import UserError
from sae.lm.assets import POCKET, local_model_folder
from sae.lm.model import LanguageModel


def load_lm(
    name: str = POCKET, device: str | None = None, dtype: str | torch.dtype | None = None
) -> LanguageModel:
    """Loads `"pocket"` (embedded), a local folder in Hugging Face layout, or a hub id.

    `device` defaults to CUDA, or else the CPU; `dtype` to bfloat16 where the
    hardware computes in it, else float32. Raises `UserError` if there is no such GPT-2.
    """
    chosen = parse_device(device)
    precision = parse_dtype(dtype) if dtype is not None else default_dtype(chosen)
    path = str(local_model_folder(name) or name)
    try:
        kind = AutoConfig.from_pretrained(path).model_type
        if kind != "gpt2":
            raise UserError(f"The model `{name}` is a `{kind}`; Loupe reads GPT-2 models.")
        model = GPT2LMHeadModel.from_pretrained(path, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"The model `{name}` could not be loaded: give `pocket`, a folder in Hugging Face "
            f"layout with its tokenizer, or the hub id of a GPT-2 ({_first_line(error)})"
        ) from None
    identity = weights_hash(model)
    _use_fused_gelu(model)
    model.eval().requires_grad_(False)
    nn.Module.to(model, device=chosen, dtype=precision)
    return LanguageModel(model, tokenizer, name=name, hash=identity)


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


def _use_fused_gelu(model: GPT2LMHeadModel) -> None:
    """`gelu_new` is the tanh approximation spelt out in eight passes; torch has it in one."""
    if model.config.activation_function == "gelu_new":
        block: Any
        for block in model.transformer.h:
            block.mlp.act = nn.GELU(approximate="tanh")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
