"""A disk that is full from one write on."""

import builtins
import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

REAL = io.open


class FullDisk:
    """Counts the writes to files opened for binary writing; from number `limit` on, all fail."""

    def __init__(self, limit: float = float("inf")) -> None:
        self.limit, self.writes = limit, 0

    def check(self) -> None:
        self.writes += 1
        if self.writes >= self.limit:
            raise OSError(errno.ENOSPC, "No space left on device")


class _File:
    """A file whose writes ask the disk first."""

    def __init__(self, file: Any, disk: FullDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> int:
        self._disk.check()
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def full_disk(limit: float = float("inf")) -> Iterator[FullDisk]:
    """Within it, files that Python opens are on such a disk."""
    disk = FullDisk(limit)

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        real = REAL(file, mode, *args, **options)
        writes = "b" in mode and any(c in mode for c in "wax+")
        return _File(real, disk) if writes else real

    with patch.object(io, "open", opened), patch.object(builtins, "open", opened):
        yield disk
