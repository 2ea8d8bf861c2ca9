"""Files that are either whole or absent, and hashes that say what is in them."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import numpy as np

from sae.base.errors import UserError
from sae.base.foreign import read_bytes

LARGEST_JSON = 2**26
QUIET = 60
"""Seconds without a write after which a partial file that nobody has locked counts as left."""
WITHOUT_FOLDER_SYNC = (errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOTSUP)


def atomic_write(path: Path | str, write: Callable[[BinaryIO], object]) -> Path:
    """Calls `write(file)` on a partial file beside `path`, then renames it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            _lock(file.fileno())  # until it has its name: it says that the writer lives
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    return path


def sync_file(path: Path | str) -> None:
    """Returns when the content of a file is on the disk."""
    with Path(path).open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path | str) -> None:
    """Returns when the names in a folder are on the disk, where the file system can tell."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in WITHOUT_FOLDER_SYNC:
            raise


def partial_of(path: Path) -> Path:
    """Where this process writes what it will rename to `path`; a dead process's one is removed."""
    form = re.compile(re.escape(f".{path.name}.") + r"(.+)-(\d+)\.partial")
    host = socket.gethostname()
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if named := form.fullmatch(left.name):
            dead_here = named[1] == host and not _runs(int(named[2]))
            if dead_here or _is_left(left):
                left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{host}-{os.getpid()}.partial")


def _is_left(partial: Path) -> bool:
    """Whether nobody has locked the file or written to it of late.

    Its process cannot be asked after: a container that starts again has another host's name, and
    under the old name another process may have the number.
    """
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        is_quiet = time.time() - os.fstat(descriptor).st_mtime > QUIET
        return is_quiet and _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Locks an open file until it is closed; False if it is locked, or locks are not known."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_array(path: Path | str, array: np.ndarray) -> Path:
    """A `.npy` file, whole or absent."""
    return atomic_write(path, lambda file: write_npy(file, array))


def write_npy(file: BinaryIO, array: np.ndarray) -> None:
    """As `np.save`, which writes to a real file by C's stdio, and then does not notice when the
    disk is full at the end of it.
    """
    np.save(cast(BinaryIO, SimpleNamespace(write=file.write)), array)


def remove_tree(folder: Path | str) -> None:
    """Removes a folder so that a kill leaves all of it, or nothing, under its name."""
    finish_removal(folder)
    if Path(folder).exists():
        os.replace(folder, _aside(Path(folder)))
        finish_removal(folder)


def finish_removal(folder: Path | str) -> None:
    """Frees what a kill during `remove_tree` left of the folder that had this name."""
    shutil.rmtree(_aside(Path(folder)), ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.removed")


def write_text(path: Path | str, text: str) -> Path:
    return atomic_write(path, lambda file: file.write(text.encode()))


def write_json(path: Path | str, value: object) -> Path:
    """Strict JSON (no NaN), readable by a person."""
    return write_text(path, _json(value))


def read_json(path: Path | str) -> Any:
    """What a JSON file holds. Raises `UserError` if there is none, it is too large, or no JSON."""
    return parse_json(_json_bytes(path), path)


def read_json_object(path: Path | str) -> dict[str, Any]:
    """As `read_json`, of a file that must hold an object: {name: value}."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object but {type(value).__name__}; make it again.")
    return value


def parse_json(data: bytes, where: object) -> Any:
    """Strict JSON: no NaN, no infinity. Raises `UserError` about `where`."""
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # nested too deep, or numbers too long
        raise UserError(f"{where} is not valid JSON ({error}); make it again.") from None


def _json_bytes(path: Path | str) -> bytes:
    try:
        return read_bytes(path, LARGEST_JSON)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; it was expected to be a JSON file.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def write_sealed_json(path: Path | str, value: dict[str, Any]) -> Path:
    """JSON that carries the sha256 of its own content under `sha256`."""
    return write_json(path, {**value, "sha256": sha256_json(value)})


def read_sealed_json(path: Path | str) -> dict[str, Any]:
    """What `write_sealed_json` wrote. Raises `UserError` if a byte of the file has changed."""
    data = _json_bytes(path)
    value = parse_json(data, path)
    content = {k: v for k, v in value.items() if k != "sha256"} if isinstance(value, dict) else {}
    whole = {**content, "sha256": sha256_json(content)}
    if value != whole or data != _json(whole).encode():
        raise UserError(f"{path} is damaged: it does not have the SHA-256 that it carries.")
    return content


def _json(value: object) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def sha256_file(path: Path | str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Hash of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def sha256_tree(folder: Path | str, pattern: str = "**/*") -> str:
    """Hash of every file below `folder` that matches `pattern`: names and contents."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.glob(pattern) if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        digest.update(sha256_file(path).encode())
    return digest.hexdigest()


def human_bytes(size: float) -> str:
    """`1536` -> `"1.5 KB"` (powers of 1024)."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def require_free_space(folder: Path | str, needed: int, what: str) -> None:
    """Refuses, before any work, to start what the disk cannot hold (with 5 % to spare)."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed * 1.05 > free:
        raise UserError(
            f"{what} needs {human_bytes(needed)} in {folder}, where {human_bytes(free)} are free; "
            "ask for fewer tokens or sites, or choose another folder."
        )
