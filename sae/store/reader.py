"""Reading a store by row, without torch."""

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import GroupNotFoundError

from sae.base.errors import UserError, nearest
from sae.store.documents import DocumentTable
from sae.store.schema import StoreSpec, array_of
from sae.store.stats import SiteStats


class ActivationStore:
    """A complete store, open for reading. Rows are numbered sequence * T + position.

    Position 0 of every sequence is its BOS, whose activation is an outlier and is not data:
    it is stored so that row numbers stay arithmetic, and left out by every consumer.
    """

    def __init__(self, path: Path, group: zarr.Group, spec: StoreSpec) -> None:
        self.path, self.spec, self._group = path, spec, group
        self.attributes: dict[str, Any] = dict(group.attrs)
        self.sites = tuple(spec.sites)
        self.width = dict(spec.sites)
        self.context = spec.context
        self.sequences = spec.sequences
        self.splits = {name: range(a, b) for name, (a, b) in spec.splits.items()}
        self._documents: DocumentTable | None = None

    @classmethod
    def open(cls, path: Path | str) -> "ActivationStore":
        """Opens a finished store. Raises `UserError` if there is none, or it is incomplete."""
        try:
            group = zarr.open_group(str(path), mode="r")
        except (FileNotFoundError, GroupNotFoundError):
            raise UserError(
                f"There is no activation store at {path}; make one with `sae harvest`."
            ) from None
        spec = StoreSpec.from_attributes(dict(group.attrs), path)
        if not group.attrs.get("complete"):
            raise UserError(
                f"The activation store at {path} is incomplete; `sae harvest` goes on with it."
            )
        return cls(Path(path), group, spec)

    @property
    def documents(self) -> DocumentTable:
        if self._documents is None:
            self._documents = DocumentTable.load(self._group)
        return self._documents

    def rows_of(self, split: str) -> range:
        """The absolute rows of a split, position 0 included."""
        if split not in self.splits:
            raise UserError(
                f"The store has no split `{split}`; it has {', '.join(self.splits)}."
                + nearest(split, self.splits)
            )
        sequences = self.splits[split]
        return range(sequences.start * self.context, sequences.stop * self.context)

    def tokens(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Token ids of sequences [start, stop): (n, T) uint16 or uint32."""
        return np.asarray(array_of(self._group, "tokens")[start:stop])

    def read(self, site: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of a site: (n, D) float16. A damaged chunk is an error."""
        self.check_site(site)
        array = array_of(self._group, f"activations/{site}")
        try:
            return np.asarray(array[start:stop])
        except ValueError as error:  # what zarr raises for a checksum that does not match
            raise UserError(
                f"Rows {start}-{stop} of `{site}` in {self.path} are damaged ({error}); "
                "remove the store and run `sae harvest` again."
            ) from error

    def stats(self, site: str) -> SiteStats:
        self.check_site(site)
        group: Any = self._group[f"statistics/{site}"]
        values: dict[str, Any] = dict(group.attrs)
        mean = np.asarray(group["mean"][...])
        return SiteStats(
            int(values["count"]), mean, float(values["mean_square"]), float(values["mean_norm"])
        )

    def check_site(self, site: str) -> None:
        if site not in self.width:
            raise UserError(
                f"The store at {self.path} has no site `{site}`; it has {', '.join(self.sites)}."
                + nearest(site, self.sites)
            )
