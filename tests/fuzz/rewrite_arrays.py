"""Well-formed files of arrays and tensors that say or hold something odd."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from tests.fuzz.odd import INTS, mutate_bytes, mutate_tree, odd_text, odd_value

DTYPES = (
    *("<f2", "<f4", "<f8", "<i8", "<u2", "<u4", "|b1", "|O", "<U3", "|S7"),
    *("<c16", "<M8[s]", ">i4"),
)
BOMB = 2**30
"""Bytes of noughts that a compressed bomb unfolds to; more than the limit of memory."""


def npy(data: bytes, rng: Random) -> bytes:
    """An array of another shape, type or content, or a header that does not fit what follows."""
    array = np.load(io.BytesIO(data))
    if rng.random() < 0.5:
        return _npy_bytes(odd_array(array, rng))
    shape = list(array.shape)
    descr: Any = array.dtype.str
    how = rng.randrange(4)
    if how == 0 and shape:
        shape[rng.randrange(len(shape))] = rng.choice(INTS)
    elif how == 1:
        shape = [rng.choice(INTS) for _ in range(rng.randrange(4))]
    elif how == 2:
        descr = rng.choice((*DTYPES, [("a", "<f8"), ("b", "|O")], [("a", "<i4", (2**31,))], "x", 7))
    header = {"descr": descr, "fortran_order": rng.random() < 0.3, "shape": tuple(shape)}
    text = repr(header).encode() + b" " * rng.randrange(64) + b"\n"
    body = data[10 + int.from_bytes(data[8:10], "little") :]
    major = rng.choice((1, 1, 1, 2, 3, 9))
    width = 2 if major == 1 else 4
    return b"\x93NUMPY" + bytes([major, 0]) + len(text).to_bytes(width, "little") + text + body


def _npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype.hasobject)
    return file.getvalue()


def odd_array(array: np.ndarray, rng: Random) -> np.ndarray:
    """An array that is another in shape, type, or some of its values."""
    how = rng.randrange(8)
    if how == 0:
        return array[: len(array) // 2] if array.ndim else array.reshape(1)
    if how == 1:
        return array.reshape(-1)
    if how == 2:
        return array[None]
    if how == 3:
        return np.array(rng.choice((0, 3, -1)), array.dtype if array.dtype.kind in "iuf" else "f4")
    if how == 4:
        return np.empty((0, *array.shape[1:]), array.dtype)
    if how == 5:
        with np.errstate(all="ignore"):
            return array.astype(rng.choice(DTYPES))
    found = array.copy()
    if found.size and found.dtype.kind in "iuf":
        values = INTS if found.dtype.kind in "iu" else (np.nan, np.inf, -np.inf, -1.0, 6e4, 0.0)
        for _ in range(rng.choice((1, 1, 5))):
            value = rng.choice(values)
            if found.dtype.kind in "iu":
                value = int(value) % 2 ** (8 * found.dtype.itemsize - (found.dtype.kind == "i"))
            found.reshape(-1)[rng.randrange(found.size)] = value
    return np.concatenate([found, found]) if how == 7 and found.ndim else found


def archive(data: bytes, rng: Random, member: Callable[[str, bytes], bytes]) -> bytes:
    """A zip file with a changed, lost, renamed, repeated or compressed part."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        parts = [(name, old.read(name)) for name in old.namelist()]
    at = rng.randrange(len(parts))
    name, content = parts[at]
    how = rng.randrange(8)
    if how < 4:
        parts[at] = name, member(name, content)
    elif how == 4:
        del parts[at]
    elif how == 5:
        parts[at] = odd_text(rng, name).replace("\0", "0") or "x", content
    elif how == 6:
        parts.append((name, content[::-1]))
    method = zipfile.ZIP_DEFLATED if how == 7 or rng.random() < 0.1 else zipfile.ZIP_STORED
    if how == 7 and rng.random() < 0.5:
        parts[at] = name, content + bytes(BOMB // 4)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as new:
        for part, content in parts:
            new.writestr(part.encode("utf-8", "replace").decode(), content)
    return file.getvalue()


def npz(data: bytes, rng: Random) -> bytes:
    return archive(data, rng, lambda _name, content: npy(content, rng))


def safetensors(data: bytes, rng: Random) -> bytes:
    """Tensors of other shapes and types, well written, or a header that says something odd."""
    import torch
    from safetensors.torch import load, save

    if rng.random() < 0.5:
        length = int.from_bytes(data[:8], "little")
        header = mutate_tree(json.loads(data[8 : 8 + length]), rng)
        text = json.dumps(header).encode("utf-8", "surrogatepass")
        said = len(text) if rng.random() < 0.8 else rng.choice(INTS) % 2**64
        return said.to_bytes(8, "little") + text + data[8 + length :]
    tensors = dict(load(data))
    odd_entries(tensors, rng)
    kept = {k: v for k, v in tensors.items() if isinstance(v, torch.Tensor) and _is_small(v)}
    return save({k: v.detach().clone().contiguous() for k, v in kept.items()})


def _is_small(tensor: Any) -> bool:
    import torch

    return tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.numel() < 2**20


def odd_entries(tensors: dict[Any, Any], rng: Random) -> None:
    """Changes, loses or renames an entry of a state dict."""
    key = rng.choice(list(tensors))
    how = rng.randrange(5)
    if how < 3:
        tensors[key] = odd_tensor(tensors[key], rng)
    elif how == 3:
        tensors[odd_text(rng, str(key))] = tensors.pop(key)
    else:
        del tensors[key]


def odd_tensor(value: Any, rng: Random) -> Any:
    """Another tensor, some of which promise more than the file that holds them."""
    import torch

    if not isinstance(value, torch.Tensor):
        return odd_value(rng, value) if rng.random() < 0.8 else torch.zeros(3)
    makers: tuple[Callable[[], Any], ...] = (
        lambda: value[:-1] if value.ndim else value[None],
        lambda: value.T.contiguous() if value.ndim == 2 else value[None],
        lambda: value.reshape(-1),
        lambda: value.new_zeros(()),
        lambda: value.new_empty((0, *value.shape[1:])),
        lambda: value.new_zeros(1).expand(value.shape or (2**20,)),
        lambda: value.new_zeros(1).expand(2**20, 2**14),
        lambda: value.to(rng.choice((torch.float64, torch.bfloat16, torch.int64, torch.bool))),
        lambda: value.to(rng.choice((torch.complex64, torch.float8_e4m3fn, torch.uint8))),
        lambda: torch.full_like(value, rng.choice((0, 1))) / 0,
        lambda: torch.full_like(value, -1),
        lambda: torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), [1.0], (2**40,)),
        lambda: torch.zeros(4, 4, dtype=torch.float32).to_sparse(),
        lambda: torch.zeros(2**33, device="meta"),
        lambda: value.detach().float().requires_grad_(True),
        lambda: torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
        lambda: odd_value(rng, 3),
    )
    return rng.choice(makers)()


class Payload:
    """What a pickle can do to who loads it."""

    def __init__(self, rng: Random) -> None:
        self.what = rng.choice(((os.system, ("true",)), (eval, ("1",)), (os.mkdir, ("pwned",))))

    def __reduce__(self) -> Any:
        return self.what


def checkpoint(data: bytes, rng: Random) -> bytes:
    """A file of `torch.save` with other things in it, in any of its forms, or repacked."""
    import torch

    if rng.random() < 0.3:
        return archive(data, rng, lambda _name, content: mutate_bytes(content, rng))
    state = torch.load(io.BytesIO(data), weights_only=True)
    for _ in range(rng.choice((1, 1, 3))):
        odd_entries(_any_dict(state, rng), rng)
    if rng.random() < 0.1:
        state = rng.choice((Payload(rng), [state], odd_value(rng), {"a": Payload(rng)}))
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=rng.random() < 0.9)
    return file.getvalue()


def _any_dict(state: dict[Any, Any], rng: Random) -> dict[Any, Any]:
    inner = [value for value in state.values() if isinstance(value, dict) and value]
    return _any_dict(rng.choice(inner), rng) if inner and rng.random() < 0.8 else state
