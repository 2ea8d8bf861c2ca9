"""Writes a store shard by shard from a background thread; a killed harvest resumes where it was.

A shard is done when `progress/<shard>.npz`, written after its arrays are on the disk, exists. That
file holds the shard's statistics and the sha256 of its files, `progress/SHA256SUMS` those of all
other files; when all are there they are merged, the store is marked complete, and sealed.
"""

import queue
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr

from sae.base.errors import UserError
from sae.base.files import (
    atomic_write,
    finish_removal,
    remove_tree,
    require_free_space,
    sha256_file,
    sync_file,
)
from sae.base.foreign import read_npz, reading
from sae.base.locks import Lock
from sae.base.sums import SUMS, write_sums
from sae.store.bounds import Local, require_layout
from sae.store.documents import DocumentTable
from sae.store.schema import CHECKED, StoreSpec, array_of, create_arrays, shard_file
from sae.store.seals import PROGRESS, seal_small_files, sums_of_others, sums_of_small_files
from sae.store.stats import SiteStats, SiteSums, load_sums

Block = dict[str, np.ndarray]  # site -> (rows of the shard, D) float16
WAITING = 2
"""Shards that may wait in memory for the disk."""


class StoreWriter:
    """Creates or resumes the store at `path`, which no other writer can hold at the same time.

    with StoreWriter(path, spec, tokens, documents) as writer:
        for shard in writer.missing:
            writer.write(shard, {site: x_BD})      # returns at once; blocks only if 2 shards behind
        writer.finish()

    `begin` is called when nothing is left to refuse of what lies there and of the disk, before
    anything changes; it may remove the store, which is then made anew.

    An error of the background thread is raised by the next `write`, `finish`, or on leaving.

    Raises:
        UserError: another process writes this store; what lies there is the beginning of another
            harvest, or no store; the disk cannot hold it.
    """

    def __init__(
        self,
        path: Path | str,
        spec: StoreSpec,
        tokens: np.ndarray,
        documents: DocumentTable,
        begin: Callable[[], object] = lambda: None,
    ) -> None:
        self.path, self.spec, self.documents = Path(path), spec, documents
        self._progress = self.path / PROGRESS
        self._lock = Lock(f"{self.path}.lock", f"The activation store {self.path}")
        try:
            finish_removal(self.path)  # else its bytes would be missed by the next line
            if not self._is_same(self._attributes()):
                self._require_space()
            begin()
            self._complete = self._is_complete()
            if self._complete or self._is_resumable():
                self._group = self._open()
            else:
                self._group = self._create(tokens)
        except BaseException:
            self._lock.release()
            raise
        self._queue: queue.Queue[tuple[int, Block] | None] = queue.Queue(maxsize=WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._drain, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def missing(self) -> list[int]:
        """Shards that are not on disk yet."""
        if self._complete:
            return []
        return [i for i in range(self.spec.shards) if not self._is_done(i)]

    def write(self, shard: int, block: Block) -> None:
        self._raise_if_failed()
        self._queue.put((shard, block))

    def finish(self) -> None:
        """Waits for the disk, merges the statistics, seals the store and marks it complete."""
        self._stop()
        self._raise_if_failed()
        if missing := self.missing:
            raise UserError(f"{self.path} still misses shards {missing[:5]}; harvest again.")
        if not self._complete:
            for site, width in self.spec.sites.items():
                self._write_statistics(site, width)
            self._group.attrs["complete"] = True
            self._seal()
            self._complete = True
        shutil.rmtree(self._progress, ignore_errors=True)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._stop()
        finally:
            self._lock.release()
        if kind is None:
            self._raise_if_failed()

    def _open(self) -> zarr.Group:
        """What is to be gone on with, if its arrays are those that this harvest writes."""
        with reading(f"The activation store {self.path}", "remove it, and harvest again"):
            local = Local.of(self.path)
            group = local.group("r+")
            require_layout(group, self.spec, local)
        return group

    def _attributes(self) -> dict[str, Any]:
        """Of the store at `path`, {} if there is none; `UserError` for what is not of Loupe."""
        if not self.path.exists() or all(p.suffix == ".partial" for p in self.path.iterdir()):
            return {}
        try:
            with reading(self.path):
                attributes: dict[str, Any] = dict(Local.of(self.path).group("r").attrs)
        except UserError:
            attributes = {}
        if "schema" not in attributes:
            raise UserError(
                f"{self.path} is there already and is no activation store of Loupe; remove it, or "
                "give another `folder`."
            )
        return attributes

    def _is_complete(self) -> bool:
        """Whether this very store is whole already: a kill came before that was written down."""
        attributes = self._attributes()
        whole = attributes.get("complete") and (self.path / SUMS).exists()
        return bool(whole) and self._is_same(attributes)

    def _is_same(self, attributes: dict[str, Any]) -> bool:
        """Whether the attributes are those of this very store."""
        try:
            return not StoreSpec.from_attributes(attributes, self.path).differences(self.spec)
        except UserError:  # there is none, or of another schema: replaced
            return False

    def _is_resumable(self) -> bool:
        """Whether a part of this very store is there. A part of another one is refused."""
        attributes = self._attributes()
        begun = any(self._progress.glob("*.npz"))
        whole = attributes.get("complete") and (self.path / SUMS).exists()
        if whole or not begun:  # of another harvest, or nothing harvested yet: made anew
            return False
        differ = StoreSpec.from_attributes(attributes, self.path).differences(self.spec)
        if differ:
            done = sum(self._is_done(shard) for shard in range(self.spec.shards))
            raise UserError(
                f"{self.path} holds {done} shards of another harvest (its {', '.join(differ)} "
                "differ); go on with that configuration, give another `folder`, or remove it."
            )
        sums_of_small_files(self.path)
        return True

    def _require_space(self) -> None:
        """Of a store that takes the place of what lies there."""
        freed = sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file())
        require_free_space(self.path, self.spec.bytes - freed, "The activation store")

    def _create(self, tokens: np.ndarray) -> zarr.Group:
        self._require_space()
        remove_tree(self.path)
        attributes = {**self.spec.attributes(), "complete": False, "sealed": True}
        group = zarr.create_group(self.path, attributes=attributes)
        create_arrays(group, self.spec, tokens)
        self.documents.save(group)
        seal_small_files(self.path)
        return group

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
            self._require_finite(site, x_BD, first * context)
            target = array_of(self._group, f"activations/{site}")
            target.with_config({"write_empty_chunks": True})[first * context : last * context] = (
                x_BD
            )
            file = self.path / shard_file(site, shard)
            sync_file(file)
            sums = SiteSums.of(x_BD[used])
            arrays[f"{site}/total"] = sums.total_D
            arrays[f"{site}/scalars"] = np.array([sums.count, sums.total_square, sums.total_norm])
            arrays[f"{site}/sha256"] = np.array(sha256_file(file))
        atomic_write(
            self._done_file(shard), lambda file: np.savez(file, allow_pickle=False, **arrays)
        )

    def _require_finite(self, site: str, x_BD: np.ndarray, first_row: int) -> None:
        bad = np.flatnonzero(~np.isfinite(x_BD).all(axis=1))
        if not len(bad):
            return
        rows = first_row + bad
        counts = np.bincount(self.documents.of_rows(rows), minlength=1)
        named = [f"`{self.documents.id[i]}` ({counts[i]})" for i in np.flatnonzero(counts)[:3]]
        raise UserError(
            f"{len(bad)} of {len(x_BD)} activations at `{site}` are not finite as float16 (largest "
            f"value 65,504), the first at position {rows[0] % self.spec.context} of sequence "
            f"{rows[0] // self.spec.context}, in the documents {', '.join(named)}; check the model "
            "and these texts, or harvest another site."
        )

    def _write_statistics(self, site: str, width: int) -> None:
        parts = [load_sums(self._done_file(i), site, width) for i in range(self.spec.shards)]
        stats = SiteStats.from_sums(SiteSums.merge(parts, width))
        group = self._group.require_group(f"statistics/{site}")
        group.create_array("mean", data=stats.mean_D, overwrite=True, **CHECKED)
        group.attrs.update(
            count=stats.count, mean_square=stats.mean_square, mean_norm=stats.mean_norm
        )

    def _seal(self) -> None:
        """The sums of all files, each as it was taken when the file was written.

        All that they vouch for is on the disk before they are.
        """
        sums: dict[str, str] = {}
        for shard in range(self.spec.shards):
            arrays = read_npz(self._done_file(shard))
            for site in self.spec.sites:
                sums[shard_file(site, shard)] = str(arrays[f"{site}/sha256"])
        sums |= sums_of_small_files(self.path)
        write_sums(self.path, sums | sums_of_others(self.path, sums))

    def _is_done(self, shard: int) -> bool:
        """Whether the shard's statistics can be read and its files are there."""
        try:
            for site, width in self.spec.sites.items():
                load_sums(self._done_file(shard), site, width)
        except UserError:
            return False
        return all((self.path / shard_file(site, shard)).is_file() for site in self.spec.sites)

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
