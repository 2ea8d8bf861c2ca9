"""Whether the files of an index fit each other, so that no slice of one leads out of another.

Sums say whether files are what was written, not whether somebody wrote nonsense. Each check reads
its arrays once; a `ValueError` says what is wrong (`sae.base.foreign.reading` makes a sentence).
"""

from typing import Any

import numpy as np
import pandas as pd

from sae.features import layout

_INFINITE = 0x7C00
"""The bits of float16's infinity; positive finite numbers lie below."""
INTEGERS = ("d_in", "d_sae", "context", "sequences", "tokens")
TEXTS = ("label", "label_kind")
LISTS = {"top_token": "counts", "promoted": "logits", "suppressed": "logits"}
"""Columns of lists: what goes with the token ids of each."""


def require_meta(meta: dict[str, Any]) -> None:
    """`index.json` says in words and numbers what its readers show."""
    for name in layout.FACTS:
        if not isinstance(meta.get(name), str) or not meta[name].isprintable():
            raise ValueError(f"it does not say {name}")
    for name in INTEGERS:
        if type(meta.get(name)) is not int or not 0 <= meta[name] < 2**62:
            raise ValueError(f"it does not say {name}")
    if not isinstance(meta.get("corpus", ""), str | dict):
        raise ValueError("its corpus is neither a text nor an object")


def require_tokens(tokens_ST: np.ndarray) -> None:
    if tokens_ST.ndim != 2 or tokens_ST.dtype.kind != "u" or tokens_ST.shape[1] < 1:
        raise ValueError("it holds no packed rows of token ids")


def require_known(tokens_ST: np.ndarray, size: int) -> None:
    """Every token of the text is one of the vocabulary."""
    if tokens_ST.size and int(tokens_ST.max()) >= size:
        raise ValueError(f"it does not know token {int(tokens_ST.max())} of the text")


def require_firings(
    indptr: np.ndarray, rows: np.ndarray, acts: np.ndarray, total_rows: int
) -> None:
    """Codes by feature: each feature's slice of rows that exist, with positive activations."""
    if (rows.dtype.kind, acts.dtype, rows.ndim) != ("u", np.float16, 1):
        raise ValueError("rows.npy or acts.npy is of another kind")
    if acts.shape != rows.shape:
        raise ValueError(f"acts.npy has {acts.size} values, rows.npy {rows.size}")
    _require_divides(indptr, len(rows), "indptr.npy")
    if len(rows) and int(rows.max()) >= total_rows:
        raise ValueError("rows.npy leads beyond the last row")
    bits = np.asarray(acts).view(np.uint16)
    if len(bits) and not 0 < int(bits.min()) <= int(bits.max()) < _INFINITE:
        raise ValueError("acts.npy holds what is not positive and finite")


def require_row_codes(
    row_indptr: np.ndarray, row_features: np.ndarray, total_rows: int, width: int
) -> None:
    """Codes by row: each row's slice of features that exist."""
    if row_features.ndim != 1 or row_features.dtype.kind != "u":
        raise ValueError("row_features.npy is of another kind")
    _require_divides(row_indptr, len(row_features), "row_indptr.npy")
    if len(row_indptr) != total_rows + 1:
        raise ValueError(f"row_indptr.npy is of {len(row_indptr) - 1} rows, not {total_rows}")
    if len(row_features) and int(row_features.max()) >= width:
        raise ValueError(f"row_features.npy leads beyond the {width} features")


def _require_divides(indptr: np.ndarray, total: int, name: str) -> None:
    ends = (indptr[:1].tolist(), indptr[-1:].tolist())
    fits = indptr.ndim == 1 and indptr.dtype == np.int64 and ends == ([0], [total])
    if not fits or len(indptr) < 2 or (indptr[1:] < indptr[:-1]).any():
        raise ValueError(f"{name} does not divide the {total} firings")


def require_table(table: pd.DataFrame, width: int, vocabulary: int) -> None:
    """`features.parquet`: one row per feature, texts as texts, numbers as numbers."""
    missing = set(layout.COLUMNS) - set(table.columns)
    if len(table) != width or missing or list(table.index) != list(range(width)):
        raise ValueError(f"it is not the table of {width} features")
    if len(set(table.columns)) != len(table.columns):
        raise ValueError("it has a column twice")
    for name in set(layout.COLUMNS) | {"id"}:
        if name in TEXTS:
            if not all(isinstance(value, str) for value in table[name]):
                raise ValueError(f"its `{name}` is no text")
        elif not name.startswith(tuple(f"{what}_" for what in LISTS)):
            _require_numbers(table, name)
    if not np.array_equal(table["id"].to_numpy(), np.arange(width)):
        raise ValueError("its features are not in the order of their ids")
    for name in table.columns.intersection(["position_only", "single_token"]):
        if table[name].dtype != bool:
            raise ValueError(f"its `{name}` is not true or false")
    for what, other in LISTS.items():
        ids = "top_token_ids" if what == "top_token" else f"{what}_ids"
        _require_lists(table, ids, f"{what}_{other}", vocabulary)


def _require_numbers(table: pd.DataFrame, name: str) -> None:
    if name not in table or table[name].dtype.kind not in "iuf":
        raise ValueError(f"its `{name}` holds what is no number")


def _require_lists(table: pd.DataFrame, ids: str, others: str, vocabulary: int) -> None:
    """Token ids of the vocabulary, and as many numbers."""
    lengths, tokens = _flat(table, ids, "iu")
    if not np.array_equal(lengths, _flat(table, others, "iuf")[0]):
        raise ValueError(f"its `{ids}` and `{others}` differ in length")
    if lengths.max(initial=0) > layout.TOP_TOKENS:
        raise ValueError(f"its `{ids}` holds more than {layout.TOP_TOKENS}")
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise ValueError(f"its `{ids}` holds tokens that are not in the vocabulary")


def _flat(table: pd.DataFrame, name: str, kinds: str) -> tuple[np.ndarray, np.ndarray]:
    """The length of each list of a column, and all their numbers."""
    lists = list(table[name])
    if not all(isinstance(values, np.ndarray) and values.ndim == 1 for values in lists):
        raise ValueError(f"its `{name}` holds what is no list")
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    flat = np.concatenate([np.empty(0, np.int64), *(v for v in lists if len(v))])
    if flat.dtype.kind not in (kinds if lengths.any() else "iuf"):
        raise ValueError(f"its `{name}` holds {flat.dtype}")
    return lengths, flat


def require_documents(table: pd.DataFrame) -> None:
    """Starts that ascend from the first row on, and texts."""
    if "start" in table:
        starts = table["start"].to_numpy()
        if starts.dtype.kind not in "iu" or not len(starts) or (starts[1:] <= starts[:-1]).any():
            raise ValueError("its starts do not ascend")
        if starts[0] < 0:
            raise ValueError("it begins before the text")
    for name in {"id", "title", "split"} & set(table.columns):
        if not all(isinstance(value, str) for value in table[name]):
            raise ValueError(f"its `{name}` is no text")


def require_histograms(arrays: dict[str, np.ndarray], width: int) -> None:
    edges, counts = arrays["edges"], arrays["counts"]
    if edges.ndim != 2 or counts.shape != (width, edges.shape[1] - 1) or len(edges) != width:
        raise ValueError(f"it does not hold a histogram for each of {width} features")
    _require_kinds((edges, "f"), (counts, "iu"))


def require_neighbours(arrays: dict[str, np.ndarray], width: int) -> None:
    for kind in ("decoder", "encoder"):
        ids, cosines = arrays[f"{kind}_ids"], arrays[f"{kind}_cos"]
        if ids.ndim != 2 or len(ids) != width or cosines.shape != ids.shape:
            raise ValueError(f"it does not hold the neighbours of {width} features")
        _require_kinds((ids, "i"), (cosines, "f"))
        if ids.size and not -1 <= int(ids.min()) <= int(ids.max()) < width:
            raise ValueError("it names features that do not exist")


def _require_kinds(*pairs: tuple[np.ndarray, str]) -> None:
    for array, kinds in pairs:
        if array.dtype.kind not in kinds:
            raise ValueError(f"it holds {array.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError("it holds what is not finite")
