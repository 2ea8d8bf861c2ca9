"""What a store is made of, and how it is laid out on disk.

    activations.zarr/                     attributes: StoreSpec + schema + complete
      tokens                              (S, T) uint16 or uint32
      activations/<site>                  (S*T, D) float16; row r = (r // T, r % T)
      statistics/<site>/mean              (D,) float64, and scalars as attributes
      documents/{start,id_*,title_*}

      SHA256SUMS                          of every file, once the store is complete

A chunk holds whole sequences of about 2 Ki rows, a shard about 64 Ki rows; every chunk of every
array ends in a CRC-32C, which zarr-python's own codec pipeline checks whichever way it is read.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import zarr
from pydantic import TypeAdapter
from zarr.codecs import Crc32cCodec, ZstdCodec

from sae.base.errors import UserError
from sae.base.foreign import is_inside, reading

SCHEMA = 1
CHUNK_ROWS = 2048
SHARD_ROWS = 65_536
BYTES_PER_VALUE = 2  # float16

CHECKED: dict[str, Any] = {
    "compressors": [ZstdCodec(level=0), Crc32cCodec()],
    "config": {"write_empty_chunks": True},  # a chunk that is not there is lost, never nought
}
"""How every small array is made."""

Compression = Literal["none", "zstd"]


@dataclass(frozen=True)
class StoreSpec:
    """Everything that decides a store's content; two runs may share a store if these agree."""

    sites: dict[str, int]  # site -> width D
    context: int  # T
    sequences: int  # S
    splits: dict[str, tuple[int, int]]  # split -> [first, last) sequence
    model: dict[str, Any]  # name, hash, layers, d_model, vocab_size
    tokenizer_hash: str
    corpus: dict[str, Any]  # description, hash
    bos: int
    harvested_as: str = "float32"  # the model's dtype; storage is always float16
    compression: Compression = "none"
    code: str = ""  # hash of the source that harvests: shards of two versions are not mixed

    @property
    def rows(self) -> int:
        return self.sequences * self.context

    @property
    def chunk_sequences(self) -> int:
        return max(1, CHUNK_ROWS // self.context)

    @property
    def shard_sequences(self) -> int:
        return self.chunk_sequences * max(1, SHARD_ROWS // CHUNK_ROWS)

    @property
    def shards(self) -> int:
        return -(-self.sequences // self.shard_sequences)

    @property
    def bytes(self) -> int:
        """Size on disk before compression."""
        return self.rows * (sum(self.sites.values()) * BYTES_PER_VALUE + 4)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """[first, last) sequence of a shard."""
        first = shard * self.shard_sequences
        return first, min(first + self.shard_sequences, self.sequences)

    def attributes(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any], where: Path | str) -> "StoreSpec":
        if attributes.get("schema") != SCHEMA:
            raise UserError(
                f"{where} is no activation store of schema {SCHEMA} (it says "
                f"{attributes.get('schema')!r}); harvest again with this version of Loupe."
            )
        names = set(cls.__dataclass_fields__)
        with reading(f"What {where} says of itself", "harvest again"):
            spec = _FORM.validate_python({k: v for k, v in attributes.items() if k in names})
            spec.require_sound()
        return spec

    def require_sound(self) -> None:
        """Raises `ValueError` for attributes that no harvest writes."""
        counts = {"context": self.context, "sequences": self.sequences, **self.sites}
        if wrong := [name for name, count in counts.items() if not 1 <= count < 2**40]:
            raise ValueError(f"`{wrong[0]}` is {counts[wrong[0]]}")
        if wrong := [site for site in self.sites if not is_inside(site) or "/" in site]:
            raise ValueError(f"`{wrong[0]}` is no name of a site")
        for name, (first, last) in self.splits.items():
            if not 0 <= first <= last <= self.sequences:
                raise ValueError(f"split `{name}` is {first} to {last} of {self.sequences}")
        if not all(isinstance(self.model.get(name), str) for name in ("name", "hash")):
            raise ValueError("it does not name its model")
        if not self.sites or "train" not in self.splits:
            raise ValueError("it has no sites, or no split `train`")

    def differences(self, other: "StoreSpec") -> list[str]:
        """The names of the fields in which two harvests differ."""
        own, others = asdict(self), asdict(other)
        return [name for name, value in own.items() if _plain(value) != _plain(others[name])]


_FORM = TypeAdapter(StoreSpec)


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples as lists."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def shard_file(site: str, shard: int) -> str:
    """Where a shard of a site lies, relative to the store."""
    return f"activations/{site}/c/{shard}/0"


def array_of(group: zarr.Group, path: str) -> Any:
    """An array of the group. Zarr's types say only "array or group"; the schema says which."""
    return group[path]


def create_arrays(group: zarr.Group, spec: StoreSpec, tokens: np.ndarray) -> None:
    """Creates the token table (filled) and one empty activation array per site."""
    if spec.compression not in get_args(Compression):
        raise UserError(f"`compression` is {spec.compression!r}; it must be `none` or `zstd`.")
    chunks = (min(4096, max(1, len(tokens))), spec.context)
    group.create_array("tokens", data=tokens, chunks=chunks, **CHECKED)
    squeeze = [ZstdCodec(level=3)] if spec.compression == "zstd" else []
    for site, width in spec.sites.items():
        group.create_array(
            f"activations/{site}",
            shape=(spec.rows, width),
            dtype="float16",
            chunks=(spec.chunk_sequences * spec.context, width),
            shards=(spec.shard_sequences * spec.context, width),
            compressors=[*squeeze, Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},
        )
