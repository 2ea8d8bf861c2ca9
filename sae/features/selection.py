"""Which sequences of a store are indexed, and where they come to lie."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sae.base.errors import UserError

if TYPE_CHECKING:
    from sae.store import ActivationStore

HELDOUT_SHARE = 0.2
"""Share of the token budget spent on held-out text, on which labels are scored."""


@dataclass(frozen=True)
class Selection:
    """Sequences of the store, in the order in which the index numbers them from 0.

    `train` and `heldout` are ranges of the store's sequences.
    """

    train: range
    heldout: range
    context: int

    @property
    def parts(self) -> list[range]:
        return [part for part in (self.train, self.heldout) if len(part)]

    @property
    def sequences(self) -> int:
        return len(self.train) + len(self.heldout)

    @property
    def rows(self) -> list[list[int]]:
        """[start, stop) ranges of the store's absolute rows."""
        return [[part.start * self.context, part.stop * self.context] for part in self.parts]

    @property
    def splits(self) -> dict[str, list[int]]:
        """[start, stop) of the index's sequences per split."""
        train = len(self.train)
        return {"train": [0, train], "heldout": [train, self.sequences]}

    def store_sequences(self, start: int, stop: int) -> list[range]:
        """The store's sequences that are the index's `start` to `stop`."""
        train = len(self.train)
        parts = [
            self.train[min(start, train) : min(stop, train)],
            self.heldout[max(start - train, 0) : max(stop - train, 0)],
        ]
        return [part for part in parts if len(part)]


def choose(store: "ActivationStore", tokens: int) -> Selection:
    """A prefix of the train and of the held-out sequences, about `tokens` tokens in all.

    Raises:
        UserError: no sequence fits the budget, or the store is empty.
    """
    wanted = tokens // (store.context - 1)
    train, heldout = store.splits["train"], store.splits["heldout"]
    if wanted < 2 or len(train) + len(heldout) == 0:
        raise UserError(
            f"An index of {tokens} tokens cannot be built from {store.path} with "
            f"{len(train) + len(heldout)} sequences of {store.context}; ask for at least "
            f"{2 * store.context} tokens of a store that is not empty."
        )
    share = min(len(heldout), max(1, round(wanted * HELDOUT_SHARE)))
    of_train = min(len(train), wanted - share)
    of_heldout = min(len(heldout), wanted - of_train)
    return Selection(train[:of_train], heldout[:of_heldout], store.context)


def documents_of(store: "ActivationStore", selection: Selection) -> pd.DataFrame:
    """The documents that lie in the selection, with `start` in the index's own rows."""
    table, context = store.documents, selection.context
    starts = np.asarray(table.start, np.int64)
    found: list[pd.DataFrame] = []
    base = 0
    for part in selection.parts:
        first_row, stop_row = part.start * context, part.stop * context
        # position 0 is BOS: the text of the part begins at position 1
        first = max(int(np.searchsorted(starts, first_row + 1, side="right")) - 1, 0)
        last = max(int(np.searchsorted(starts, stop_row, side="left")), first + 1)
        own = np.maximum(starts[first:last] - first_row, 0) + base
        own[0] = base
        split = "train" if part is selection.train else "heldout"
        columns = {
            "start": own,
            "id": list(table.id[first:last]),
            "title": list(table.title[first:last]),
            "split": split,
        }
        found.append(pd.DataFrame(columns))
        base += len(part) * context
    return pd.concat(found, ignore_index=True)
