"""What compressed chunks say that they unfold to, read before anything unfolds them.

numcodecs takes as much memory as the head of a Zstandard frame asks for, or, where that does not
say, as much as comes. Every chunk that Loupe writes says it, and it is the size of the chunk.
RFC 8878, "Zstandard Compression", section 3.1.1.1, has the layout of the head.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MAGIC = b"\x28\xb5\x2f\xfd"
LONGEST_HEAD = 18
CHECKSUM = 4
"""Bytes of the CRC-32C behind every chunk, and behind the index of a shard."""
_ABSENT = 2**64 - 1


def content_size(head: bytes) -> int:
    """Bytes that a frame unfolds to, of its first bytes. Raises `ValueError` if it does not say."""
    if head[:4] != MAGIC or len(head) < 6:
        raise ValueError("a chunk is no Zstandard frame")
    descriptor = head[4]
    is_single = descriptor >> 5 & 1
    field = (1 if is_single else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 + (0 if is_single else 1) + (0, 1, 2, 4)[descriptor & 3]
    if not field or len(head) < start + field:
        raise ValueError("a chunk does not say what it unfolds to")
    return int.from_bytes(head[start : start + field], "little") + (256 if field == 2 else 0)


def require_chunk(path: Path, size: int) -> None:
    """Raises `ValueError` unless a chunk in a file of its own unfolds to so many bytes."""
    with path.open("rb") as file:
        _require(file.read(LONGEST_HEAD), size)


def require_shard(path: Path, chunks: int, size: int) -> None:
    """Raises `ValueError` unless every chunk of a shard, whose index is at its end, does."""
    with path.open("rb") as file:
        for start, _ in _index(file, chunks):
            file.seek(start)
            _require(file.read(LONGEST_HEAD), size)


def _index(file: BinaryIO, chunks: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each chunk that is there."""
    length = 16 * chunks + CHECKSUM
    end = file.seek(0, 2)
    if end < length:
        raise ValueError("a shard is shorter than its index")
    file.seek(end - length)
    for start, taken in struct.iter_unpack("<QQ", file.read(16 * chunks)):
        if (start, taken) != (_ABSENT, _ABSENT):
            if start + taken > end:
                raise ValueError("the index of a shard leads out of it")
            yield start, taken


def _require(head: bytes, size: int) -> None:
    if (said := content_size(head)) != size:
        raise ValueError(f"a chunk unfolds to {said:,} bytes, not {size:,}")
