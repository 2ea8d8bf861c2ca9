"""Files of tensors that may come from anybody. Imports torch; `sae.base.foreign` does not."""

import json
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from zipfile import ZipFile

import torch
from safetensors.torch import load_file
from torch import Tensor

from sae.base.foreign import reading, require_file, require_stored

MOST_NESTED = 20
LARGEST_PART = 2**26
LARGEST_COPY = 2**24  # values of a tensor that are brought into order at a time, to be written
_CODE_OF = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_CODES = tuple(_CODE_OF.values())
"""In the order of safetensors, which writes the last ones first."""


def read_safetensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file. Raises `UserError` for a file that is not one."""
    with reading(path):
        require_file(path)
        return load_file(path)


def write_safetensors(tensors: dict[str, Tensor], file: BinaryIO) -> None:
    """The bytes of `safetensors.torch.save_file`, tensor by tensor, through the file given.

    `save_file` itself renames a file of its own over a path: what `atomic_write` then brings to
    the disk is not the weights, and a kill leaves that file behind.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-_CODES.index(_code(item[1])), item[0]))
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _code(tensor),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        own = tensor.detach().cpu()
        for part in (own,) if own.is_contiguous() else own.split(_rows_at_a_time(own)):
            flat = part.contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def _rows_at_a_time(tensor: Tensor) -> int:
    """Of a tensor that must be copied to be written."""
    return max(1, LARGEST_COPY * len(tensor) // max(1, tensor.numel()))


def _code(tensor: Tensor) -> str:
    return _CODE_OF[tensor.dtype]


def write_state(state: object, file: BinaryIO, digest: Any = None) -> None:
    """As `torch.save`; also feeds a digest. A full disk is the `OSError` that `file` raised."""
    watched = _Watched(file, digest)
    try:
        torch.save(state, cast(BinaryIO, watched))
    except Exception:
        if watched.error is not None:  # torch's zip writer, closing, hides it behind its own
            raise watched.error from None
        raise


class _Watched:
    """A file open for writing that remembers its first error; what `torch.save` needs of one."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file, self._digest = file, digest
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self._digest is not None:
            self._digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


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
            _require_small_parts(archive)
        # mapped: a state read as a whole would be in memory beside the weights that it is for
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _require_plain(found, size)
        return found


def _require_small_parts(archive: ZipFile) -> None:
    """Raises `ValueError` for a part that torch reads whole, as all but tensors' numbers are, and
    that is larger than any it writes."""
    for member in archive.infolist():
        is_numbers = PurePosixPath(member.filename).parent.name == "data"
        if not is_numbers and member.file_size > LARGEST_PART:
            raise ValueError(f"its part {member.filename} has {member.file_size:,} bytes")


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
