"""Codes written to disk in row order, block by block, so that a killed build goes on."""

import hashlib
import os
from io import BytesIO
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
SPILLED = (ROW_FEATURES, _ACTS, _COUNTS)


class GrowingArray:
    """A 1-D `.npy` file that grows at its end and can be cut back.

    Numpy pads the header so that its length does not depend on the first axis; so the header is
    written once for length 0 and again, in place, at the end.

    Args:
        length: of what is kept of the file.
        sum_then: what `sha256` was at that length, if it is not 0.

    Raises:
        UserError: what is kept is not what was written.
    """

    def __init__(self, path: Path, dtype: np.dtype, length: int = 0, sum_then: str = ""):
        self.path, self.dtype, self.length = path, np.dtype(dtype), length
        self.offset = len(self._header(0))
        if not length:
            write_array(path, np.empty(0, dtype))
        self._digest = self._read()
        if length:
            self._require(self.sha256, sum_then)

    def open(self) -> None:
        """For appending; what lies there beyond the length is cut off."""
        self.file = self.path.open("r+b")
        self.file.write(self._header(0))
        self.file.truncate(self.offset + self.length * self.dtype.itemsize)

    @property
    def sha256(self) -> str:
        """Of the array's bytes, taken as they were given; the header is not among them."""
        return self._digest.hexdigest()

    def append(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array, self.dtype).tobytes()
        self._digest.update(data)
        self.file.seek(self.offset + self.length * self.dtype.itemsize)
        self.file.write(data)
        self.length += len(array)

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.seek(0)
        self.file.write(self._header(self.length))
        self.sync()
        self.file.close()

    def reread(self) -> np.ndarray:
        """The closed file's array, mapped. Raises `UserError` if it is not what was appended."""
        self._require(self._read().hexdigest(), self.sha256)
        # an empty file cannot be mapped
        return np.load(self.path, mmap_mode="r" if self.length else None)

    def _read(self) -> Any:
        """The running sum of what the file holds, up to the array's length."""
        digest, left = hashlib.sha256(), self.length * self.dtype.itemsize
        try:
            require_file(self.path)
        except FileNotFoundError:
            return digest
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while left and (data := file.read(min(left, 2**24))):
                digest.update(data)
                left -= len(data)
        return digest

    def _require(self, found: str, wanted: str) -> None:
        if found != wanted or self._is_short():
            raise UserError(
                f"{self.path} is damaged: it is not what was written; remove {self.path.parent}, "
                "and index again."
            )

    def _is_short(self) -> bool:
        """Sums of what is there may fit where a stranger made them."""
        size = self.path.stat().st_size if self.path.exists() else 0
        return size < self.offset + self.length * self.dtype.itemsize

    def _header(self, length: int) -> bytes:
        descr, file = np.lib.format.dtype_to_descr(self.dtype), BytesIO()
        header = {"descr": descr, "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(file, header)
        return file.getvalue()


def read_progress(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """How much of a build of this fingerprint is whole, and the sums of the files up to there:
    {"rows", "firings", "sha256": {file: sum}}; None if nothing is.

    Raises `UserError` if the file that says so is not what was written.
    """
    path = folder / PROGRESS
    if not path.exists():
        return None
    state = read_json_object(path)
    if state.get("fingerprint") != fingerprint:
        return None
    counts, sums = [state.get(name) for name in ("rows", "firings")], state.get("sha256")
    if not (
        all(type(count) is int and count >= 0 for count in counts)
        and isinstance(sums, dict)
        and all(isinstance(sums.get(name), str) for name in SPILLED)
    ):
        raise UserError(f"{path} does not say how far the index is; remove {folder}.")
    return state


class Spill:
    """The codes of a build in `folder`: firings per row, feature and activation of each firing.

    `progress.json` names how much of the files is whole, and its sums; it is written after each
    block, when the files are on disk. `fingerprint` says what is being built: another one starts
    from nothing.
    """

    def __init__(self, folder: Path, width: int, fingerprint: str):
        self.folder, self.width, self.fingerprint = folder, width, fingerprint
        begun = read_progress(folder, fingerprint) or {"rows": 0, "firings": 0, "sha256": {}}
        self.rows: int = begun["rows"]

        def there(name: str, dtype: np.dtype, length: int) -> GrowingArray:
            return GrowingArray(folder / name, dtype, length, begun["sha256"].get(name, ""))

        self._features = there(ROW_FEATURES, features_dtype(width), begun["firings"])
        self._acts = there(_ACTS, np.dtype(np.float16), begun["firings"])
        self._counts = there(_COUNTS, np.dtype(np.uint32), begun["rows"])

    def append(self, counts_R: np.ndarray, features_N: np.ndarray, acts_N: np.ndarray) -> None:
        """The codes of the next R rows: firings per row, and each firing in row order."""
        self._counts.append(counts_R)
        self._features.append(features_N)
        self._acts.append(to_float16(acts_N))
        for array in self._arrays:
            array.sync()
        self.rows += len(counts_R)
        state = {
            "fingerprint": self.fingerprint,
            "rows": self.rows,
            "firings": self._features.length,
            "sha256": {array.path.name: array.sha256 for array in self._arrays},
        }
        write_json(self.folder / PROGRESS, state)

    def __enter__(self) -> "Spill":
        for array in self._arrays:
            array.open()
        return self

    def __exit__(self, *_: object) -> None:
        for array in self._arrays:
            array.close()

    @property
    def _arrays(self) -> tuple[GrowingArray, ...]:
        return self._features, self._acts, self._counts

    def codes(self) -> RowCodes:
        """What was spilled, mapped from the files; they must be closed.

        Raises `UserError` if one of them is not what was spilled.
        """
        features_N, acts_N, counts_R = (array.reread() for array in self._arrays)
        row_indptr = np.concatenate([[0], np.cumsum(counts_R, dtype=np.int64)])
        if row_indptr[-1] != self._features.length:
            raise UserError(f"The counts in {self.folder} are damaged; remove it, and index again.")
        counts_F = np.zeros(self.width, np.int64)
        for start in range(0, len(features_N), 2**24):
            found = np.bincount(features_N[start : start + 2**24], minlength=self.width)
            if len(found) > self.width:
                raise UserError(f"The features in {self.folder} are damaged; remove it.")
            counts_F += found
        return RowCodes(row_indptr, features_N, acts_N, counts_F)


def to_float16(acts_N: np.ndarray) -> np.ndarray:
    """Positive activations as float16 that stay positive and finite: a firing stays a firing."""
    tiny, top = np.finfo(np.float16).smallest_subnormal, np.finfo(np.float16).max
    return np.clip(acts_N, float(tiny), float(top)).astype(np.float16)
