"""Which document a row belongs to: a table of starts, kept as plain numeric Zarr arrays.

Strings are stored as one UTF-8 blob and its offsets, because Zarr v3 has no stable string type.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import zarr

from sae.store.schema import CHECKED, array_of


@dataclass(frozen=True)
class DocumentTable:
    """Documents in store order. `start[i]` is the absolute row of document i's first token."""

    start: npt.NDArray[np.int64]  # (N,), ascending
    id: Sequence[str]
    title: Sequence[str]

    def __len__(self) -> int:
        return len(self.start)

    def of_rows(self, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Document number of each absolute row.

        The BOS at position 0 belongs to the document that the row goes on with, so the row of
        a document's first token may lie one behind its BOS; both count as that document's.
        """
        found = np.searchsorted(self.start, np.asarray(rows, dtype=np.int64), side="right") - 1
        return np.maximum(found, 0)

    def save(self, group: zarr.Group) -> None:
        documents = group.create_group("documents", overwrite=True)
        documents.create_array("start", data=self.start, **CHECKED)
        for name, strings in (("id", self.id), ("title", self.title)):
            encoded = [s.encode() for s in strings]
            offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
            blob = np.frombuffer(b"".join(encoded) or b"\0", dtype=np.uint8)
            documents.create_array(f"{name}_offsets", data=offsets, **CHECKED)
            documents.create_array(f"{name}_utf8", data=blob, **CHECKED)

    @classmethod
    def load(cls, group: zarr.Group) -> "DocumentTable":
        start = np.asarray(array_of(group, "documents/start")[...])
        if not len(start) or start[0] < 0 or (start[1:] < start[:-1]).any():
            raise ValueError("their starts do not ascend")
        return cls(start, _strings(group, "id"), _strings(group, "title"))


def _strings(group: zarr.Group, name: str) -> list[str]:
    offsets = np.asarray(array_of(group, f"documents/{name}_offsets")[...])
    blob = np.asarray(array_of(group, f"documents/{name}_utf8")[...]).tobytes()
    if (offsets[1:] < offsets[:-1]).any() or offsets[0] < 0 or offsets[-1] > len(blob):
        raise ValueError(f"the offsets of each {name} do not ascend")
    return [blob[a:b].decode() for a, b in pairwise(offsets.tolist())]
