"""Shuffled batches for training, read ahead by a background thread."""

import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np

from sae.base.errors import UserError
from sae.store.order import BatchOrder
from sae.store.reader import ActivationStore

WINDOW = 64  # chunks that are shuffled together, unless another number is asked for
Batch = dict[str, np.ndarray]  # site -> (B, D), float16 from a store


class BatchSource(Protocol):
    """What a training reads: a `ShuffledReader`, or a `sae.synthetic.SyntheticStream`."""

    waited: float  # seconds that the consumer stood waiting

    @property
    def batch(self) -> int: ...

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Batches from number `start` on, without end."""
        ...


class ShuffledReader:
    """An endless iterator of shuffled batches of a split, the same rows for every site.

    reader = ShuffledReader(store, ["blocks.2.hook_resid_post"], batch=4096, seed=0)
    for batch in reader.batches(start=1000): ...

    Memory: about 2 * window * chunk_rows * ΣD * 2 bytes. `waited` is the time in seconds that
    the consumer stood waiting for data.
    """

    def __init__(
        self,
        store: ActivationStore,
        sites: Sequence[str],
        batch: int,
        *,
        split: str = "train",
        seed: int = 0,
        window: int = WINDOW,
        ahead: int = 8,
    ) -> None:
        for site in sites:
            store.check_site(site)
        rows = store.rows_of(split)
        self.store, self.sites, self.ahead = store, tuple(sites), ahead
        self.first_row = rows.start
        chunk_rows = store.spec.chunk_sequences * store.context
        self.order = BatchOrder(len(rows), chunk_rows, store.context, batch, window, seed)
        if self.order.batches_per_epoch == 0:
            raise UserError(
                f"The {split} split has {len(rows)} rows, fewer than one batch of {batch}; "
                "harvest more tokens or take a smaller `batch`."
            )
        self.waited = 0.0

    @property
    def batch(self) -> int:
        return self.order.batch

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Batches from number `start` on, without end."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=self.ahead)
        stop = threading.Event()

        def put(item: Batch | BaseException) -> None:
            while not stop.is_set():
                with suppress(queue.Full):
                    ready.put(item, timeout=0.2)
                    return

        def produce() -> None:
            try:
                for batch in self._produce(start):
                    put(batch)
                    if stop.is_set():
                        return
            except BaseException as error:
                put(error)

        threading.Thread(target=produce, name="store-reader", daemon=True).start()
        try:
            while True:
                began = time.perf_counter()
                item = ready.get()
                self.waited += time.perf_counter() - began
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()

    def _produce(self, start: int) -> Iterator[Batch]:
        order, size = self.order, self.order.batch
        left: Batch = {}
        last_epoch = -1
        for epoch, number, chunks, skip in order.from_batch(start):
            if epoch != last_epoch:  # an epoch's last rows never mix with the next one's
                left, last_epoch = {site: self._empty(site) for site in self.sites}, epoch
            slots = order.window_slots(epoch, number, chunks)[skip:]
            data = {site: self._read_window(site, chunks) for site in self.sites}
            have = len(left[self.sites[0]])
            if have:
                take = min(size - have, len(slots))
                left = {s: np.concatenate([left[s], data[s][slots[:take]]]) for s in self.sites}
                slots = slots[take:]
                if have + take < size:
                    continue
                yield left
            full = len(slots) // size * size
            for i in range(0, full, size):
                yield {site: data[site][slots[i : i + size]] for site in self.sites}
            left = {site: data[site][slots[full:]] for site in self.sites}

    def _read_window(self, site: str, chunks: np.ndarray) -> np.ndarray:
        """(len(chunks) * chunk_rows, D); rows behind the split's end are nought and never used."""
        rows = self.order.chunk_rows
        window = np.zeros((len(chunks) * rows, self.store.width[site]), dtype=np.float16)
        for i, chunk in enumerate(chunks):
            first = int(chunk) * rows
            last = min(first + rows, self.order.rows)
            block = self.store.read(site, self.first_row + first, self.first_row + last)
            window[i * rows : i * rows + last - first] = block
        return window

    def _empty(self, site: str) -> np.ndarray:
        return np.empty((0, self.store.width[site]), dtype=np.float16)
