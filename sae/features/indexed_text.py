"""The text that an index is of: token ids in packed rows, and the documents that they come from."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from sae.base.errors import UserError
from sae.base.foreign import read_npy, reading
from sae.features import forms, layout
from sae.features.tables import read_table
from sae.features.vocabulary import Vocabulary
from sae.features.windows import Document


class IndexedText:
    """Row r is position r % T of sequence r // T; documents follow each other in row order."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tokens_ST = read_npy(folder / layout.TOKENS, mapped=True)
        with reading(folder / layout.TOKENS, "make the index again"):
            forms.require_tokens(self.tokens_ST)

    @property
    def context(self) -> int:
        """T."""
        return self.tokens_ST.shape[1]

    @property
    def sequences(self) -> int:
        """S."""
        return self.tokens_ST.shape[0]

    @property
    def tokens_indexed(self) -> int:
        """Rows that could fire: all but position 0 of each packed row."""
        return self.sequences * (self.context - 1)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        found = Vocabulary.read(self.folder / layout.VOCABULARY)
        with reading(self.folder / layout.VOCABULARY, "make the index again"):
            forms.require_known(self.tokens_ST, len(found))
        return found

    @cached_property
    def token_counts_V(self) -> np.ndarray:
        """How often each token occurs in the indexed rows (position 0 left out); (V,) int64."""
        return np.bincount(self.tokens_ST[:, 1:].reshape(-1), minlength=len(self.vocabulary))

    def documents_of(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Document number of each row."""
        found = np.searchsorted(self._document_starts, np.asarray(rows), side="right") - 1
        return np.maximum(found, 0)

    def document_of(self, row: int) -> Document:
        """The document that `row` lies in."""
        return self.document(int(self.documents_of([row])[0]))

    def document(self, number: int) -> Document:
        """Document `number` of the index."""
        starts = self._document_starts
        if not 0 <= number < len(starts):
            raise UserError(
                f"Document {number} does not exist; this index has documents 0 to "
                f"{len(starts) - 1}."
            )
        stop = int(starts[number + 1]) if number + 1 < len(starts) else self.tokens_ST.size
        id_, title, split = (self._documents[name][number] for name in ("id", "title", "split"))
        return Document(number, id_, title, split, int(starts[number]), stop)

    @cached_property
    def documents(self) -> pd.DataFrame:
        """The columns start, id, title and split of every document."""
        path, columns = self.folder / layout.DOCUMENTS, ["start", "id", "title", "split"]
        table = read_table(path, self.tokens_ST.size, columns)
        with reading(path, "make the index again"):
            forms.require_documents(table)
        return table

    @cached_property
    def _documents(self) -> dict[str, list[str]]:
        table = self.documents[["id", "title", "split"]]
        return {str(name): column.to_list() for name, column in table.items()}

    @cached_property
    def _document_starts(self) -> np.ndarray:
        return self.documents["start"].to_numpy()
