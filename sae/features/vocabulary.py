"""Tokens as bytes, and as text that a person can read."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sae.base.errors import UserError
from sae.features.tables import read_table

LARGEST = 2**22
"""Tokens; the largest vocabularies in use have a quarter of a million."""
_UTF8_LENGTHS = ((0xC2, 0xDF, 2), (0xE0, 0xEF, 3), (0xF0, 0xF4, 4))


class Vocabulary(Sequence[bytes]):
    """The raw bytes of every token: `vocabulary[id]` is `bytes`.

    A byte-level token can hold a part of a character only; `display` joins such parts with their
    neighbours, `name` shows one token by itself.
    """

    def __init__(self, tokens: Iterable[bytes]):
        self.tokens = list(tokens)

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """Reads `vocabulary.parquet` (columns id, bytes)."""
        tokens = read_table(path, LARGEST, ["bytes"])["bytes"].to_list()
        if not all(isinstance(token, bytes) for token in tokens):
            raise UserError(f"{path} holds no tokens as bytes; make the index again.")
        return cls(tokens)

    def write(self, path: Path) -> None:
        ids = pa.array(np.arange(len(self.tokens), dtype=np.int32))
        pq.write_table(pa.table({"id": ids, "bytes": pa.array(self.tokens, pa.binary())}), path)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, token):  # an int gives bytes, a slice a list
        return self.tokens[token]

    @cached_property
    def _texts(self) -> list[str | None]:
        """Text of each token, None where its bytes are not whole characters by themselves."""
        return [_strict(token) for token in self.tokens]

    @cached_property
    def names(self) -> list[str]:
        """Text of each token by itself; bytes that are no whole character as `\\xNN`."""
        return [token.decode("utf-8", "backslashreplace") for token in self.tokens]

    def name(self, token: int) -> str:
        """Text of one token by itself; bytes that are no whole character as `\\xNN`."""
        return self.tokens[int(token)].decode("utf-8", "backslashreplace")

    def display(self, ids: Iterable[int]) -> list[str]:
        """One piece of text per token of a run of text; the pieces joined are the text.

        A character whose bytes are spread over several tokens is shown whole at the token that
        begins it; a token with nothing but the rest of such a character gets `""`. Bytes that make
        no character (cut off at an end of the window) are shown as `\\xNN`. Nothing is escaped
        for HTML and no control character is replaced: that is the business of the view.
        """
        ids = [int(token) for token in ids]
        pieces = [self._texts[token] for token in ids]
        out: list[str] = []
        start = 0
        while start < len(pieces):
            text = pieces[start]
            if text is not None:
                out.append(text)
                start += 1
                continue
            stop = start
            while stop < len(pieces) and pieces[stop] is None:
                stop += 1
            out.extend(_join([self.tokens[token] for token in ids[start:stop]]))
            start = stop
        return out

    def text(self, ids: Iterable[int]) -> str:
        """The text of a run of tokens; stray bytes as `\\xNN`."""
        return b"".join(self.tokens[int(t)] for t in ids).decode("utf-8", "backslashreplace")


def _strict(token: bytes) -> str | None:
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _join(parts: list[bytes]) -> list[str]:
    """Pieces for tokens of which none is whole by itself; see `Vocabulary.display`."""
    data = b"".join(parts)
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    pieces = [""] * len(parts)
    at = 0
    while at < len(data):
        length = _character_length(data, at)
        pieces[owner[at]] += data[at : at + length].decode("utf-8", "backslashreplace")
        at += length
    return pieces


def _character_length(data: bytes, at: int) -> int:
    """Bytes of the character that begins at `at`; 1 where no whole character does."""
    for low, high, length in _UTF8_LENGTHS:
        if low <= data[at] <= high and _strict(data[at : at + length]) is not None:
            return length
    return 1
