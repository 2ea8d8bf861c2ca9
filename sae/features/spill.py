"""Codes written to disk in row order, block by block, so that a killed build goes on."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from sae.base.errors import UserError
from sae.base.files import read_json_object, write_array, write_json
from sae.base.foreign import require_file
from sae.features.assemble import RowCodes
from sae.features.layout import ROW_FEATURES, features_dtype

PROGRESS = "progress.json"
_ACTS, _COUNTS = "row_acts.npy", "row_counts.npy"


class GrowingArray:
    """A 1-D `.npy` file that grows at its end and can be cut back.

    Numpy pads the header so that its length does not depend on the first axis; so the header is
    written once for length 0 and again, in place, at the end.
    """

    def __init__(self, path: Path, dtype: np.dtype, length: int):
        self.path, self.dtype, self.length = path, np.dtype(dtype), length
        if not path.exists():
            write_array(path, np.empty(0, dtype))
        self.file = path.open("r+b")
        self._write_header(0)
        self.offset = self.file.tell()
        self.file.truncate(self.offset + length * self.dtype.itemsize)

    def append(self, array: np.ndarray) -> None:
        self.file.seek(self.offset + self.length * self.dtype.itemsize)
        self.file.write(np.ascontiguousarray(array, self.dtype).tobytes())
        self.length += len(array)

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self._write_header(self.length)
        self.sync()
        self.file.close()

    def _write_header(self, length: int) -> None:
        self.file.seek(0)
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(self.file, header)


def read_progress(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """How much of a build of this fingerprint is whole: {"rows", "firings"}; None if nothing is.

    Raises `UserError` if the file that says so is not what was written.
    """
    path = folder / PROGRESS
    if not path.exists():
        return None
    state = read_json_object(path)
    if state.get("fingerprint") != fingerprint:
        return None
    counts = [state.get(name) for name in ("rows", "firings")]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise UserError(f"{path} does not say how far the index is; remove {folder}.")
    return state


class Spill:
    """The codes of a build in `folder`: firings per row, feature and activation of each firing.

    `progress.json` names how much of the files is whole; it is written after each block, when the
    files are on disk. `fingerprint` says what is being built: another one starts from nothing.
    """

    def __init__(self, folder: Path, width: int, fingerprint: str):
        self.folder, self.width, self.fingerprint = folder, width, fingerprint
        state = self._state()
        self.rows: int = state["rows"]
        self._features = GrowingArray(
            folder / ROW_FEATURES, features_dtype(width), state["firings"]
        )
        self._acts = GrowingArray(folder / _ACTS, np.dtype(np.float16), state["firings"])
        self._counts = GrowingArray(folder / _COUNTS, np.dtype(np.uint32), state["rows"])

    def _state(self) -> dict[str, Any]:
        begun = read_progress(self.folder, self.fingerprint)
        if begun is None:
            return {"rows": 0, "firings": 0}
        for name, dtype, length in (
            (ROW_FEATURES, features_dtype(self.width), begun["firings"]),
            (_ACTS, np.dtype(np.float16), begun["firings"]),
            (_COUNTS, np.dtype(np.uint32), begun["rows"]),
        ):
            if require_file(self.folder / name) < length * dtype.itemsize:
                raise UserError(f"{self.folder / name} is cut short; remove {self.folder}.")
        return begun

    def append(self, counts_R: np.ndarray, features_N: np.ndarray, acts_N: np.ndarray) -> None:
        """The codes of the next R rows: firings per row, and each firing in row order."""
        self._counts.append(counts_R)
        self._features.append(features_N)
        self._acts.append(to_float16(acts_N))
        for array in (self._counts, self._features, self._acts):
            array.sync()
        self.rows += len(counts_R)
        state = {
            "fingerprint": self.fingerprint,
            "rows": self.rows,
            "firings": self._features.length,
        }
        write_json(self.folder / PROGRESS, state)

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *_: object) -> None:
        for array in (self._counts, self._features, self._acts):
            array.close()

    def codes(self) -> RowCodes:
        """What was spilled, mapped from the files; they must be closed."""
        counts_R = np.load(self._counts.path)
        row_indptr = np.concatenate([[0], np.cumsum(counts_R, dtype=np.int64)])
        if row_indptr[-1] != self._features.length:
            raise UserError(f"The counts in {self.folder} are damaged; remove it, and index again.")
        mode = "r" if row_indptr[-1] else None
        features_N = np.load(self._features.path, mmap_mode=mode)
        counts_F = np.zeros(self.width, np.int64)
        for start in range(0, len(features_N), 2**24):
            found = np.bincount(features_N[start : start + 2**24], minlength=self.width)
            if len(found) > self.width:
                raise UserError(f"The features in {self.folder} are damaged; remove it.")
            counts_F += found
        return RowCodes(row_indptr, features_N, np.load(self._acts.path, mmap_mode=mode), counts_F)


def to_float16(acts_N: np.ndarray) -> np.ndarray:
    """Positive activations as float16 that stay positive and finite: a firing stays a firing."""
    tiny, top = np.finfo(np.float16).smallest_subnormal, np.finfo(np.float16).max
    return np.clip(acts_N, float(tiny), float(top)).astype(np.float16)
