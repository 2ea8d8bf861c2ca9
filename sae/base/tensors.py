"""Files of tensors that may come from anybody. Imports torch; `sae.base.foreign` does not."""

import os
import re
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.base.foreign import reading, require_file, require_stored

MOST_NESTED = 20


def read_safetensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file. Raises `UserError` for a file that is not one."""
    with reading(path):
        require_file(path)
        return load_file(path)


def write_safetensors(tensors: dict[str, Tensor], path: Path | str) -> None:
    """Straight from the tensors to the disk: as bytes they would be in memory once more.

    Raises `OSError` as any other writing does; safetensors has errors of its own for a full disk.
    """
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        if code := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
        raise


def read_state(path: Path | str, advice: str = "make it again, or take another") -> Any:
    """What `torch.save` wrote: tensors, numbers, texts, and what holds them; no code is run.

    Raises:
        UserError: it holds something else, or tensors that are larger than the file (a view that
            repeats one number, a sparse tensor, a compressed part).
    """
    with reading(path, advice):
        size = require_file(path)
        with ZipFile(path) as archive:
            require_stored(archive)
        # mapped: a state read as a whole would be in memory beside the weights that it is for
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _require_plain(found, size)
        return found


def _require_plain(value: Any, size: int, depth: int = 0) -> None:
    """Raises `ValueError` unless each tensor holds its numbers one by one, in the file's bytes."""
    if depth > MOST_NESTED:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        for inner in value.values():
            _require_plain(inner, size, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _require_plain(inner, size, depth + 1)
    elif isinstance(value, Tensor):
        is_plain = value.layout == torch.strided and value.device.type == "cpu"
        if not is_plain or value.is_quantized or value.numel() * value.element_size() > size:
            raise ValueError(
                f"it holds a tensor of shape {tuple(value.shape)} that is not all there"
            )
