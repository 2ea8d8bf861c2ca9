"""HDF5 files that are written through Python, since HDF5 itself does not survive a full disk.

When one of its writes fails it fails again at closing, and takes the process with it. Here it is
never told: the first failure is kept, and raised when the file is closed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py


class _Patient:
    """What h5py needs of a file; after the first write that fails, none is tried."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w+b")
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        self.attempt(lambda: self.file.write(data))
        return len(data)

    def truncate(self, size: int) -> int:
        self.attempt(lambda: self.file.truncate(size))
        return size

    def flush(self) -> None:
        self.attempt(self.file.flush)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.attempt(lambda: self.file.seek(offset, whence))  # writes what is buffered
        return offset if whence == os.SEEK_SET else self.file.tell()

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def readinto(self, buffer: Any) -> int:
        return self.file.readinto(buffer)

    def attempt(self, work: Callable[[], object]) -> None:
        if self.failure is None:
            try:
                work()
            except OSError as error:
                self.failure = error


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file at `path`, on the disk at the end; `OSError` if it did not get there."""
    patient = _Patient(path)
    try:
        try:
            with h5py.File(patient, "w", libver=("earliest", "v110")) as file:
                yield file
        finally:
            patient.flush()
            patient.attempt(lambda: os.fsync(patient.file.fileno()))
            if patient.failure is not None:  # what HDF5 makes of it says nothing
                raise patient.failure
    finally:
        with suppress(OSError):  # it tries once more to write what it could not
            patient.file.close()
