"""The feature dictionary as one HDF5 file that h5py alone reads; schema in `docs/formats.md`."""

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from sae import __version__
from sae.base.errors import UserError
from sae.base.files import partial_of, read_json_object, require_free_space, sha256_file
from sae.base.foreign import reading, require_file
from sae.base.sums import require_intact
from sae.features.assemble import Progress
from sae.features.filters import select
from sae.features.index import FeatureIndex
from sae.features.layout import TOP_TOKENS
from sae.features.windows import Example
from sae.io.hdf5_file import new_file

SCHEMA = 1
EXAMPLES, CONTEXT = 20, 10
WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
_TEXT = h5py.string_dtype("utf-8")
_COMPRESSED: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
_CHUNK_BYTES = 2**20
_EXAMPLES_PER_CHUNK, _FEATURES_AT_ONCE = 4096, 256


def export_dictionary(
    index_folder: Path | str,
    coder_folder: Path | str,
    path: Path | str,
    *,
    features: str | None = None,
    examples: int = EXAMPLES,
    context: int = CONTEXT,
    progress: Progress | None = None,
    before_replacing: Callable[[], object] = lambda: None,
) -> Path:
    """Writes weights, statistics, labels and top examples of a dictionary into one file.

    Args:
        index_folder: the coder's feature index; its notes give the user's labels.
        coder_folder: `cfg.json` and `sae_weights.safetensors`.
        path: is whole or absent; an older file is replaced.
        features: filter expression (see `sae.features.filters`); default all.
        examples: top examples per feature, duplicate contexts folded.
        context: tokens either side of an example's focus; W = 2 * context + 1.
        progress: called as progress(what, done, total).
        before_replacing: called when the new file is whole, before it takes its place.

    Raises:
        UserError: no such index or coder, a damaged one, not the index of this coder, a filter
            that nothing satisfies, too little disk.
    """
    index, path = FeatureIndex.open(index_folder), Path(path)
    weights, config = _coder(Path(coder_folder), index)
    ids = select(index, features)
    if not len(ids):
        raise UserError(f"No feature satisfies `{features}`; the file would be empty.")
    per_feature = 8 * index.meta["d_in"] + examples * (2 * context + 1) * 12 + 1000
    require_free_space(path.parent, len(ids) * per_feature, f"{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        with new_file(partial) as file:
            _write_attributes(file, index, config, features)
            _write_weights(file, weights, ids)
            _write_table(file.create_group("features"), index.view().iloc[ids])
            _write_examples(file.create_group("examples"), index, ids, examples, context, progress)
            _create(file, "vocabulary", [_storable(name) for name in index.vocabulary.names], _TEXT)
        before_replacing()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _coder(folder: Path, index: FeatureIndex) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Weights and config of the coder that `index` was built from."""
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} is not a coder folder (it has no {WEIGHTS}); give one that `sae train` made."
        )
    if sha256_file(folder / WEIGHTS) != index.meta["coder_hash"]:
        raise UserError(
            f"{index.folder} was built from other weights than {folder} holds; run `sae index` "
            "for this coder first."
        )
    require_intact(folder, [CONFIG])
    config = read_json_object(folder / CONFIG)
    with reading(folder / WEIGHTS):
        require_file(folder / WEIGHTS)
        weights = load_file(folder / WEIGHTS)
        if config.get("architecture") == "matching_pursuit" and "W_dec" in weights:
            weights["W_enc"] = weights["W_dec"].T  # tied: its encoder is not saved
        _require_widths(weights, index.width)
    return weights, config


def _require_widths(weights: dict[str, np.ndarray], width: int) -> None:
    """Raises `ValueError` unless encoder and decoder have a column and a row per feature."""
    for name, axis in (("W_enc", 1), ("W_dec", 0)):
        if name not in weights:
            raise ValueError(f"it has no {name}; expected a coder in SAELens's format")
        shape = weights[name].shape
        if len(shape) != 2 or shape[axis] != width:
            raise ValueError(f"its {name} is of {shape}, and the index of {width} features")
    if wrong := [name for name, value in weights.items() if value.dtype.kind not in "iuf"]:
        raise ValueError(f"its {wrong[0]} holds {weights[wrong[0]].dtype}")


def _write_attributes(
    file: h5py.File, index: FeatureIndex, config: dict[str, Any], features: str | None
) -> None:
    meta = index.meta
    names = ("model", "model_hash", "site", "architecture", "coder", "coder_hash")
    for name in (*names, "corpus", "corpus_hash", "tokens", "context"):
        value = meta[name]
        file.attrs[name] = json.dumps(value) if isinstance(value, dict) else value
    file.attrs["schema"] = SCHEMA
    file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    file.attrs["loupe_version"] = __version__
    file.attrs["filter"] = features or ""
    file.attrs["coder_config"] = json.dumps(config)
    file.attrs["index_created"] = meta["created"]


def _write_weights(file: h5py.File, weights: dict[str, np.ndarray], ids: np.ndarray) -> None:
    """Encoder and decoder as [F, D]; every other tensor under its own name, cut to the selection
    where it has one value per latent."""
    width = weights["W_dec"].shape[0]
    _create(file, "encoder", weights["W_enc"].T[ids], np.float32)
    _create(file, "decoder", weights["W_dec"][ids], np.float32)
    for name, value in weights.items():
        if name in ("W_enc", "W_dec"):
            continue
        per_latent = value.ndim == 1 and len(value) == width and name != "b_dec"
        _create(file, name, value[ids] if per_latent else value, np.float32)


def _write_table(group: h5py.Group, table: pd.DataFrame) -> None:
    """One dataset per column; lists as (F, 10), padded with token -1 and count or logit 0."""
    for name, column in table.items():
        if name in ("label", "label_kind"):
            _create(group, str(name), [_storable(text) for text in column], _TEXT)
        elif name == "tags":
            _create(group, "tags", [_storable(",".join(tags)) for tags in column], _TEXT)
        elif str(name).endswith(("_ids", "_counts", "_logits")):
            is_logit = str(name).endswith("_logits")
            fill = -1 if str(name).endswith("_ids") else 0
            rows = np.full((len(column), TOP_TOKENS), fill, np.float32 if is_logit else np.int64)
            for row, values in zip(rows, column, strict=True):
                row[: len(values)] = values
            dtype = np.float32 if is_logit else np.int32 if fill else np.int64
            _create(group, str(name), rows, dtype)
        else:
            values = column.to_numpy()
            dtype = np.float32 if values.dtype == np.float64 else values.dtype
            _create(group, str(name), values, dtype)


def _write_examples(
    group: h5py.Group,
    index: FeatureIndex,
    ids: np.ndarray,
    number: int,
    context: int,
    progress: Progress | None,
) -> None:
    width = 2 * context + 1
    columns: dict[str, tuple[Any, tuple[int, ...]]] = {
        "feature": (np.int64, ()),
        "tokens": (np.int32, (width,)),
        "activations": (np.float16, (width,)),
        "length": (np.int32, ()),
        "focus": (np.int32, ()),
        "activation": (np.float16, ()),
        "position": (np.int32, ()),
        "document": (_TEXT, ()),
        "title": (_TEXT, ()),
        "text": (_TEXT, ()),
    }
    for name, (dtype, shape) in columns.items():
        limits = {"maxshape": (None, *shape), "chunks": (_EXAMPLES_PER_CHUNK, *shape)}
        group.create_dataset(name, (0, *shape), dtype, **limits, **_COMPRESSED)
    for start in range(0, len(ids), _FEATURES_AT_ONCE):
        block = ids[start : start + _FEATURES_AT_ONCE]
        found = list(_rows(index, block, number, context))
        for name in columns if found else ():
            dataset = group[name]
            if not isinstance(dataset, h5py.Dataset):
                raise TypeError(f"/examples/{name} is not a dataset")
            dataset.resize(len(dataset) + len(found), axis=0)
            dataset[-len(found) :] = _stack([row[name] for row in found])
        if progress is not None:
            progress("examples", start + len(block), len(ids))


def _stack(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=object if isinstance(values[0], str) else None)


def _rows(
    index: FeatureIndex, ids: np.ndarray, number: int, context: int
) -> Iterator[dict[str, Any]]:
    for feature in ids:
        for example in index.examples(int(feature), "top", number, context=context):
            yield _row(index, int(feature), example, 2 * context + 1)


def _row(index: FeatureIndex, feature: int, example: Example, width: int) -> dict[str, Any]:
    window = example.window
    length = len(window)
    tokens, acts = np.full(width, -1, np.int32), np.zeros(width, np.float16)
    tokens[:length], acts[:length] = window.token_ids, window.acts
    return {
        "feature": feature,
        "tokens": tokens,
        "activations": acts,
        "length": length,
        "focus": window.focus,
        "activation": np.float16(example.activation),
        "position": example.row % index.context,
        "document": _storable(example.document.id),
        "title": _storable(example.document.title),
        "text": _storable(index.vocabulary.text(window.token_ids)),
    }


def _storable(text: str) -> str:
    """HDF5's variable-length strings end at a NUL, so it is written as `\\x00`."""
    return text.replace("\0", "\\x00")


def _create(group: h5py.Group, name: str, values: Any, dtype: Any) -> None:
    """A chunked, compressed dataset; chunks of about a megabyte of whole rows."""
    array = np.asarray(values, dtype=object if dtype is _TEXT else dtype)
    if array.ndim == 0 or not len(array):
        group.create_dataset(name, data=array, dtype=dtype)
        return
    row = max(1, array.nbytes // len(array))
    chunks = (min(len(array), max(1, _CHUNK_BYTES // row)), *array.shape[1:])
    group.create_dataset(name, data=array, dtype=dtype, chunks=chunks, **_COMPRESSED)
