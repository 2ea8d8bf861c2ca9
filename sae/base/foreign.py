"""Reading files that may come from anybody: bounded in size, and refused in one sentence.

Sums (`sae.base.sums`) find what changed since a file was written; they say nothing of a file that
somebody wrote to do harm, sums and all. So every reader of such a file stays within bounds that
the file itself cannot set, and whatever a parser raises becomes a `UserError`.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from sae.base.errors import CheckFailure, UserError, one_line

LONGEST_REASON = 200
LONGEST_NAME = 255


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
        reason = one_line(str(error)) or type(error).__name__
        if len(reason) > LONGEST_REASON:
            reason = reason[:LONGEST_REASON] + "…"
        raise UserError(f"{what} cannot be read ({reason}); {advice}.") from error


def require_file(path: Path | str, most: int | None = None) -> int:
    """The size of the plain file at `path`, links followed. Asked before anything opens it.

    A pipe would be waited for without end, and a device has no end.

    Raises:
        UserError: it is something else, or larger than anything of its kind can be.
        FileNotFoundError: nothing is there.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError) as error:  # links in a ring; a name that no file can have
        raise UserError(f"{path} cannot be read ({error}); take another.") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is no plain file; put one in its place.")
    if most is not None and found.st_size > most:
        raise UserError(
            f"{path} has {found.st_size:,} bytes, and a file of its kind at most {most:,}; take "
            "another."
        )
    return found.st_size


def require_plain_files(folder: Path | str) -> int:
    """Raises `UserError` if there is anything but plain files and folders below `folder`; returns
    their bytes. For libraries that open the files of a whole folder themselves."""
    size = 0
    for inner, _, names in os.walk(folder):
        for name in names:
            try:
                size += require_file(os.path.join(inner, name))
            except FileNotFoundError:
                raise UserError(f"{os.path.join(inner, name)} leads nowhere; remove it.") from None
    return size


def read_bytes(path: Path | str, most: int) -> bytes:
    """A whole file of at most so many bytes; raises as `require_file`."""
    require_file(path, most)
    return Path(path).read_bytes()


def is_inside(name: object) -> bool:
    """Whether a name that a file gives stays within the folder that it is relative to."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    longest = max(len(part.encode("utf-8", "replace")) for part in ("", *path.parts))
    return longest <= LONGEST_NAME and not path.is_absolute() and ".." not in path.parts


def read_npy(path: Path | str, *, mapped: bool = False) -> np.ndarray:
    """An array of a `.npy` file, never a pickle; `mapped` leaves it on the disk.

    It is mapped first in any case, so that a header that promises more than the file holds is
    refused before memory is taken.
    """
    with reading(path):
        require_file(path)
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
    with reading(path):
        require_file(path)
        with ZipFile(path) as archive:
            require_stored(archive)
            names = archive.namelist()
            return {name.removesuffix(".npy"): _stored(archive, name) for name in names}


def require_stored(archive: ZipFile) -> None:
    """Raises `ValueError` if a part of a zip file would unfold to more than lies there."""
    for member in archive.infolist():
        if member.compress_type != ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"its part {member.filename} is compressed")


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
