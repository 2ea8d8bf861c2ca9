"""Reading a store by row, without torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import GroupNotFoundError

from sae.base.errors import UserError, nearest
from sae.base.foreign import reading
from sae.base.sums import SUMS, read_sums, require_intact
from sae.store.bounds import Local, require_layout, require_shard_of, require_statistics
from sae.store.documents import DocumentTable
from sae.store.schema import StoreSpec, array_of, shard_file
from sae.store.stats import SiteStats

VERIFYING = "zarr.core.codec_pipeline.BatchedCodecPipeline"
"""Zarr's own pipeline. `zarrs` (0.2.3) gave flipped bytes of single chunks as data."""


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
        self._looked_at: set[str] = set()

    @classmethod
    def open(cls, path: Path | str) -> "ActivationStore":
        """Opens a finished store. Raises `UserError` if there is none, or it is incomplete, or
        a file is missing or its metadata damaged. Rows are checked when they are read.
        """
        folder = Path(path)
        sealed = (folder / SUMS).is_file()
        local = Local.of(folder)
        if sealed:
            _require_files(folder)
        try:
            with reading(f"{path}/zarr.json", "harvest again"):
                group = local.group("r")
                attributes = dict(group.attrs)
        except UserError as error:
            if isinstance(error.__cause__, FileNotFoundError | GroupNotFoundError):
                raise UserError(
                    f"There is no activation store at {path}; make one with `sae harvest`."
                ) from None
            raise
        spec = StoreSpec.from_attributes(attributes, path)
        if not attributes.get("complete") or (attributes.get("sealed") and not sealed):
            raise UserError(
                f"The activation store at {path} is incomplete; `sae harvest` goes on with it."
            )
        with reading(f"The activation store {path}", "remove it and run `sae harvest` again"):
            require_layout(group, spec, local)
            for site, width in spec.sites.items():
                require_statistics(group, site, width, local)
        return cls(folder, group, spec)

    @property
    def documents(self) -> DocumentTable:
        if self._documents is None:
            with self._damage_named("documents"):
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
        with self._damage_named("tokens"):
            return np.asarray(array_of(self._group, "tokens")[start:stop])

    def read(self, site: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of a site: (n, D) float16. A damaged or lost chunk is an error."""
        self.check_site(site)
        with self._damage_named(f"rows {start} to {stop} of `{site}`"):
            array = array_of(self._group, f"activations/{site}")
            self._require_shards(site, array, start, stop)
            return np.asarray(array[start:stop])

    def stats(self, site: str) -> SiteStats:
        self.check_site(site)
        with self._damage_named(f"statistics of `{site}`"):
            group: Any = self._group[f"statistics/{site}"]
            values: dict[str, Any] = dict(group.attrs)
            mean = np.asarray(group["mean"][...])
            names = ("count", "mean_square", "mean_norm")
            count, square, norm = (float(values[name]) for name in names)
            if not np.isfinite([count, square, norm, *mean]).all():
                raise ValueError("they are not finite")
            return SiteStats(int(count), mean, square, norm)

    def _require_shards(self, site: str, array: Any, start: int, stop: int) -> None:
        """Zarr reads a shard that is not there as nought; here it is an error. What its chunks
        unfold to is looked at once."""
        rows = array.shards[0]
        for shard in range(start // rows, -(-max(start, stop) // rows)):
            file = shard_file(site, shard)
            if not (self.path / file).is_file():
                raise FileNotFoundError(f"{file} is missing")
            if file not in self._looked_at:
                require_shard_of(array, self.path / file)
                self._looked_at.add(file)

    @contextmanager
    def _damage_named(self, what: str) -> Iterator[None]:
        """Whatever zarr raises for damage (a checksum, a length, a missing file) as a sentence."""
        pipeline = zarr.config.get("codec_pipeline.path")
        if pipeline != VERIFYING:
            raise UserError(
                f"Zarr is set to the codec pipeline `{pipeline}`; Loupe reads with `{VERIFYING}`, "
                "which checks every chunk's sum: unset `codec_pipeline.path`."
            )
        advice = (
            f"`sae verify {self.path}` names the files; remove the store and run `sae harvest` "
            "again"
        )
        with reading(f"The {what} in {self.path} are damaged: they", advice):
            yield

    def check_site(self, site: str) -> None:
        if site not in self.width:
            raise UserError(
                f"The store at {self.path} has no site `{site}`; it has {', '.join(self.sites)}."
                + nearest(site, self.sites)
            )


def _require_files(path: Path) -> None:
    """Every file is there, and those that say how to read the others are what was written.

    Zarr takes a chunk whose file is missing for noughts.
    """
    names = list(read_sums(path))
    lost = [name for name in names if not (path / name).is_file()]
    if lost:
        raise UserError(
            f"The activation store {path} lacks {lost[0]}"
            + (f" and {len(lost) - 1} more files" if len(lost) > 1 else "")
            + "; remove the store and run `sae harvest` again."
        )
    require_intact(path, [name for name in names if name.rpartition("/")[2] == "zarr.json"])
