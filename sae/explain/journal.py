"""Answers that were paid for, one line each, kept the moment they come.

A line is found again by the hash of what was asked, so that a killed run, or a later one that asks
the same, never asks twice. Each line carries the SHA-256 of its own content; a line that a kill cut
off at the end of the file is dropped when the file is next written.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from sae.base.errors import UserError
from sae.base.files import sha256_json
from sae.base.locks import Lock


@dataclass(frozen=True)
class Record:
    """`content` None: the response could not be read. Tokens as the endpoint counted them."""

    key: str
    feature: int
    part: str
    content: str | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Journal:
    """The answers in the file `path`, by key; `with journal:` opens it for more.

    Raises:
        UserError: a line is not what was written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.answers: dict[str, Record] = {}
        self._file: BinaryIO | None = None
        self._whole = 0
        self._read()

    def _read(self) -> None:
        self.answers, self._whole = {}, 0
        for number, line in enumerate(_lines(self.path), start=1):
            record = _record(line)
            if record is None:
                raise UserError(
                    f"{self.path} is damaged at line {number}: it is not what was written; delete "
                    "the line to ask again."
                )
            self.answers[record.key] = record
            self._whole += len(line)

    def __enter__(self) -> "Journal":
        """For writing, alone; what another process added meanwhile is read."""
        self._lock = Lock(self.path.with_name(f".{self.path.name}.lock"), f"{self.path}")
        self._read()
        self._file = self.path.open("ab")
        self._file.truncate(self._whole)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()

    def add(self, record: Record) -> None:
        """On the disk when it returns: one line, in one write."""
        if self._file is None:
            raise UserError(f"{self.path} is not open for writing; use it in a `with`.")
        value = asdict(record)
        line = json.dumps({**value, "sha256": sha256_json(value)}) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.answers[record.key] = record


def journal_problems(path: Path) -> list[str]:
    """A sentence for each line of a journal that is not what was written."""
    return [
        f"{path}: line {number} is not what was written"
        for number, line in enumerate(_lines(path), start=1)
        if _record(line) is None
    ]


def _lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a file; none of one that does not exist."""
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def _record(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
        digest = value.pop("sha256")
        record = Record(**value) if digest == sha256_json(value) else None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    readable = record and isinstance(record.key, str) and isinstance(record.content, str | None)
    return record if readable else None
