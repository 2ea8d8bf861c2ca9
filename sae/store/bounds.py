"""Whether a store is laid out as its attributes say, and unfolds to no more than lies there.

A store may come from anybody. What Zarr's own metadata promise (shapes, types, chunks, codecs) is
held against the schema before anything is read, so that a few bytes cannot ask for all memory.
"""

import math
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import zarr

from sae.base.errors import UserError
from sae.base.files import LARGEST_JSON
from sae.base.foreign import require_file, require_plain_files
from sae.store.frames import require_chunk, require_shard
from sae.store.schema import BYTES_PER_VALUE, CHUNK_ROWS, SHARD_ROWS, StoreSpec

METADATA = "zarr.json"
MOST_UNFOLDED = 64
"""Times the bytes of the whole store that a table beside the activations may unfold to."""
SMALLEST = 2**20
LARGER = 16
"""Times the rows of a chunk or shard, of this version, that another version may write."""
KEYS = {"name": "default", "configuration": {"separator": "/"}}
"""How chunks are named: their files lie below `c`, where their heads are looked at."""
PLAIN, SQUEEZED = ["bytes", "crc32c"], ["bytes", "zstd", "crc32c"]


class Local(NamedTuple):
    """The folder of a store, and the bytes of its files."""

    folder: Path
    bytes: int

    @classmethod
    def of(cls, folder: Path) -> "Local":
        """Before Zarr opens it. Raises `UserError` unless all in it is plain files and folders,
        and its metadata are of a size that can be read."""
        if not folder.is_dir():
            raise UserError(
                f"There is no activation store at {folder}, which is no folder of this machine; "
                "make one with `sae harvest`."
            )
        size = require_plain_files(folder)
        for inner, folders, files in os.walk(folder):
            for name in folders:
                if (link := Path(inner, name)).is_symlink():
                    raise UserError(f"{link} leads out of the store; put the folder itself there.")
            if METADATA in files:
                require_file(Path(inner, METADATA), LARGEST_JSON)
        return cls(folder, size)

    def group(self, mode: Literal["r", "r+"]) -> zarr.Group:
        """The store as Zarr's version 3 reads it: the older one has metadata of other names."""
        return zarr.open_group(self.folder, mode=mode, zarr_format=3)


def require_layout(group: zarr.Group, spec: StoreSpec, local: Local) -> None:
    """Raises `ValueError` for an array that is missing, or of another shape, type or layout."""
    _require(group, "tokens", (spec.sequences, spec.context), "u", local)
    for site, width in spec.sites.items():
        array = _expected(group, f"activations/{site}", (spec.rows, width), "f")
        if array.dtype.itemsize != BYTES_PER_VALUE:
            raise ValueError(f"`activations/{site}` is of {array.dtype}, not float16")
        _require_pieces(array, spec)
    starts = _require(group, "documents/start", (None,), "i", local)
    for name in ("id", "title"):
        _require(group, f"documents/{name}_offsets", (starts.shape[0] + 1,), "i", local)
        _require(group, f"documents/{name}_utf8", (None,), "u", local)


def require_statistics(group: zarr.Group, site: str, width: int, local: Local) -> None:
    """As `require_layout`, for the statistics, which are written last."""
    _require(group, f"statistics/{site}/mean", (width,), "f", local)


def require_shard_of(array: Any, path: Path) -> None:
    """Raises `ValueError` if a chunk of a shard would unfold to more than a chunk."""
    if SQUEEZED in _codecs(array):
        size = math.prod(array.chunks) * array.dtype.itemsize
        require_shard(path, array.shards[0] // array.chunks[0], size)


def _require(
    group: zarr.Group, name: str, shape: tuple[int | None, ...], kind: str, local: Local
) -> Any:
    """A table that is read whole, as it is expected, and no larger than its files may make it."""
    array = _expected(group, name, shape, kind)
    if _codecs(array) != [SQUEEZED]:
        raise ValueError(f"`{name}` is coded as no table of Loupe is")
    counts = (-(-side // chunk) for side, chunk in zip(array.shape, array.chunks, strict=True))
    size = math.prod(array.chunks) * array.dtype.itemsize
    if math.prod(counts) * size > SMALLEST + MOST_UNFOLDED * local.bytes:
        raise ValueError(f"`{name}` would unfold to much more than the store")
    for path in (local.folder / name / "c").rglob("*"):
        if path.is_file():
            require_chunk(path, size)
    return array


def _expected(group: zarr.Group, name: str, shape: tuple[int | None, ...], kind: str) -> Any:
    """The array; `None` in `shape` stands for any length."""
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise ValueError(f"it has no array `{name}`")
    pairs = zip(array.shape, shape, strict=False)
    fits = len(array.shape) == len(shape) and all(b in (None, a) for a, b in pairs)
    if not fits or array.dtype.kind != kind:
        raise ValueError(f"`{name}` has {array.shape} values of {array.dtype}")
    metadata: dict[str, Any] = array.metadata.to_dict()
    if metadata["chunk_key_encoding"] != KEYS:
        raise ValueError(f"the chunks of `{name}` are named as none of Loupe are")
    return array


def _codecs(array: Any) -> list[list[str]]:
    """The names of an array's codecs; of shards, those of their chunks and of their index."""
    found = array.metadata.to_dict()["codecs"]
    if [codec["name"] for codec in found] != ["sharding_indexed"]:
        return [[codec["name"] for codec in found]]
    inner = found[0]["configuration"]
    parts = (inner["codecs"], inner["index_codecs"], [{"name": str(inner["index_location"])}])
    return [[codec["name"] for codec in part] for part in parts]


def _require_pieces(array: Any, spec: StoreSpec) -> None:
    """Activations are read some chunks at a time, so it is a chunk that must not be too large."""
    at_end = ["end"]
    if _codecs(array) not in ([PLAIN, PLAIN, at_end], [SQUEEZED, PLAIN, at_end]):
        raise ValueError(f"`{array.name}` is coded as no activations of Loupe are")
    for pieces, rows in ((array.chunks, CHUNK_ROWS), (array.shards, SHARD_ROWS)):
        if pieces[1] != array.shape[1] or pieces[0] > LARGER * max(rows, spec.context):
            raise ValueError(f"`{array.name}` is in pieces of {pieces}")
