"""Writes a store shard by shard from a background thread; a killed harvest resumes where it was.

A shard is done when `progress/<shard>.npz`, written after its arrays, exists. That file holds
the shard's statistics; when all are there they are merged and the store is marked complete.
"""

import queue
import shutil
import threading
from pathlib import Path
from types import TracebackType

import numpy as np
import zarr

from sae.base.errors import UserError
from sae.base.files import atomic_write, require_free_space
from sae.store.documents import DocumentTable
from sae.store.schema import StoreSpec, array_of, create_arrays
from sae.store.stats import SiteStats, SiteSums

Block = dict[str, np.ndarray]  # site -> (rows of the shard, D) float16


class StoreWriter:
    """Creates or resumes the store at `path`.

    with StoreWriter(path, spec, tokens, documents) as writer:
        for shard in writer.missing:
            writer.write(shard, {site: x_BD})      # returns at once; blocks only if 2 shards behind
        writer.finish()

    An error of the background thread is raised by the next `write`, `finish`, or on leaving.
    """

    def __init__(
        self, path: Path | str, spec: StoreSpec, tokens: np.ndarray, documents: DocumentTable
    ) -> None:
        self.path, self.spec = Path(path), spec
        self._progress = self.path / "progress"
        if self._is_resumable():
            self._group = zarr.open_group(self.path, mode="r+")
        else:
            require_free_space(self.path, spec.bytes, "The activation store")
            shutil.rmtree(self.path, ignore_errors=True)
            self._group = zarr.create_group(self.path)
            create_arrays(self._group, spec, tokens)
            documents.save(self._group)
            self._group.attrs.update({**spec.attributes(), "complete": False})
        self._progress.mkdir(exist_ok=True)
        self._queue: queue.Queue[tuple[int, Block] | None] = queue.Queue(maxsize=2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._drain, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def missing(self) -> list[int]:
        """Shards that are not on disk yet."""
        return [i for i in range(self.spec.shards) if not self._done_file(i).exists()]

    def write(self, shard: int, block: Block) -> None:
        self._raise_if_failed()
        self._queue.put((shard, block))

    def finish(self) -> None:
        """Waits for the disk, merges the statistics and marks the store complete."""
        self._stop()
        self._raise_if_failed()
        if missing := self.missing:
            raise UserError(f"{self.path} still misses shards {missing[:5]}; harvest again.")
        for site, width in self.spec.sites.items():
            parts = [_load_sums(self._done_file(i), site) for i in range(self.spec.shards)]
            stats = SiteStats.from_sums(SiteSums.merge(parts, width))
            group = self._group.require_group(f"statistics/{site}")
            group.create_array("mean", data=stats.mean_D, overwrite=True)
            group.attrs.update(
                count=stats.count, mean_square=stats.mean_square, mean_norm=stats.mean_norm
            )
        self._group.attrs["complete"] = True
        shutil.rmtree(self._progress)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        if kind is None:
            self._raise_if_failed()

    def _is_resumable(self) -> bool:
        if not (self.path / "zarr.json").exists():
            return False
        attributes = dict(zarr.open_group(self.path, mode="r").attrs)
        if attributes.get("complete") is not False:
            return False
        return StoreSpec.from_attributes(attributes, self.path) == self.spec

    def _drain(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._write_shard(*item)
                except BaseException as error:
                    self._error = error

    def _write_shard(self, shard: int, block: Block) -> None:
        first, last = self.spec.shard_range(shard)
        context = self.spec.context
        used = _training_rows(self.spec, first, last)
        arrays: dict[str, np.ndarray] = {}
        for site, x_BD in block.items():
            target = array_of(self._group, f"activations/{site}")
            target[first * context : last * context] = x_BD
            sums = SiteSums.of(x_BD[used])
            if not np.isfinite(sums.total_square) or not np.isfinite(x_BD[::context]).all():
                raise UserError(
                    f"Activations at `{site}` are not finite as float16 (largest value 65,504); "
                    "check the model, or harvest another site."
                )
            arrays[f"{site}/total"] = sums.total_D
            arrays[f"{site}/scalars"] = np.array([sums.count, sums.total_square, sums.total_norm])
        atomic_write(
            self._done_file(shard), lambda file: np.savez(file, allow_pickle=False, **arrays)
        )

    def _done_file(self, shard: int) -> Path:
        return self._progress / f"{shard}.npz"

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error


def _training_rows(spec: StoreSpec, first: int, last: int) -> np.ndarray:
    """Indices, within a shard, of the rows that count: train split, not position 0."""
    start, stop = spec.splits["train"]
    sequences = np.arange(max(first, start), min(last, stop)) - first
    rows = sequences[:, None] * spec.context + np.arange(1, spec.context)
    return rows.ravel()


def _load_sums(path: Path, site: str) -> SiteSums:
    with np.load(path) as arrays:
        count, square, norm = arrays[f"{site}/scalars"]
        return SiteSums(int(count), arrays[f"{site}/total"], float(square), float(norm))
