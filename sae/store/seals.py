"""Sums of a store's files, each taken when the file was written and is on the disk.

Those of small files (tokens, documents, metadata of arrays) lie in `progress/` while the store is
made, beside those of finished shards: what damages a file meanwhile must not get into the seal.
"""

from pathlib import Path

from sae.base.errors import UserError
from sae.base.files import sha256_file, sync_file, sync_folder
from sae.base.sums import SUMS, read_sums, write_sums

PROGRESS = "progress"
ROOT = "zarr.json"
"""Of the store itself. It is written again at the end, and read field by field until then."""


def seal_small_files(store: Path) -> None:
    """To be called when they were written, before any shard is."""
    sums = sums_of_others(store, {})
    sums.pop(ROOT)
    (store / PROGRESS).mkdir(exist_ok=True)
    write_sums(store / PROGRESS, sums)


def sums_of_small_files(store: Path) -> dict[str, str]:
    """As they were taken. Raises `UserError` if one of the files is not what was written."""
    sums = read_sums(store / PROGRESS)
    for name, digest in sums.items():
        path = store / name
        if not path.is_file() or sha256_file(path) != digest:
            raise UserError(
                f"{path} is not what was written when the harvest began; remove {store}, and "
                "harvest again."
            )
    return sums


def sums_of_others(store: Path, known: dict[str, str]) -> dict[str, str]:
    """{name: sum} of the files that `known` lacks; they and all folders are on the disk then."""
    sums: dict[str, str] = {}
    for path in sorted(store.rglob("*")):
        name = path.relative_to(store).as_posix()
        if path.suffix == ".partial":
            path.unlink()  # zarr's, of a process that was killed
        elif path.is_file() and name not in known and not name.startswith((PROGRESS, SUMS)):
            sync_file(path)
            sums[name] = sha256_file(path)
        elif path.is_dir():
            sync_folder(path)
    sync_folder(store)
    sync_folder(store.parent)
    return sums
