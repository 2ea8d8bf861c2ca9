"""Reading files that may come from anybody: bounded in size, and refused in one sentence.

Sums (`sae.base.sums`) find what changed since a file was written; they say nothing of a file that
somebody wrote to do harm, sums and all. So every reader of such a file stays within bounds that
the file itself cannot set, and whatever a parser raises becomes a `UserError`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from sae.base.errors import CheckFailure, UserError

LONGEST_REASON = 200


@contextmanager
def reading(
    what: object, advice: str = "make it again, or take it from where you trust"
) -> Iterator[None]:
    """Within it, whatever a parser raises for what it was given is a `UserError` about `what`.

    Parsers of other people (JSON, YAML, zip, parquet, SQLite, torch) raise what they like for bad
    input, so every `Exception` counts; running out of memory too, since the file asked for it.
    """
    try:
        yield
    except (UserError, CheckFailure):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > LONGEST_REASON:
            reason = reason[:LONGEST_REASON] + "…"
        raise UserError(f"{what} cannot be read ({reason}); {advice}.") from error


def require_size(path: Path | str, most: int) -> None:
    """Raises `UserError` if the file is larger than anything of its kind can be."""
    size = os.stat(path).st_size
    if size > most:
        raise UserError(
            f"{path} has {size:,} bytes, and a file of its kind at most {most:,}; take another."
        )


def read_npy(path: Path | str, *, mapped: bool = False) -> np.ndarray:
    """An array of a `.npy` file, never a pickle; `mapped` leaves it on the disk.

    It is mapped first in any case, so that a header that promises more than the file holds is
    refused before memory is taken.
    """
    with reading(path):
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:
            found = np.load(path, allow_pickle=False) if _is_empty(path) else None
            if found is None:
                raise
        if not isinstance(found, np.ndarray):
            raise ValueError("it holds no array")
        return found if mapped or not found.size else np.array(found)


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file that `numpy.savez` wrote: stored as they are, not compressed."""
    with reading(path), ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"its part {member.filename} is compressed")
        names = archive.namelist()
        return {name.removesuffix(".npy"): _stored(archive, name) for name in names}


def _stored(archive: ZipFile, name: str) -> np.ndarray:
    """One array of an archive: the bytes that its header promises must be there."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"its part {name} holds Python objects")
        data = file.read()
    found = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    return found.reshape(shape, order="F" if fortran else "C").copy()


def _is_empty(path: Path | str) -> bool:
    """Whether the header says that the array has no elements: such a file cannot be mapped."""
    with Path(path).open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            return False
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return 0 in shape and not dtype.hasobject
