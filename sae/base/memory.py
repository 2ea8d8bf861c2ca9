"""Main memory: refusing, before the start, what it cannot hold, and keeping what was freed."""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

from sae.base.errors import UserError
from sae.base.files import human_bytes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 2**31 - 1


CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
"""Limit and use, of containers and of jobs of a cluster, in both forms of Linux."""


def available_memory() -> int:
    """Bytes that a process can take without swapping (Linux), or all there are (elsewhere)."""
    return min(_of_machine(), *map(_of_cgroup, CGROUPS))


def _of_cgroup(files: tuple[str, str]) -> int:
    """What the limit leaves; page cache, which is given back, is counted as in use."""
    try:
        limit, used = (int(Path(file).read_text()) for file in files)
    except (OSError, ValueError):  # there is none, or it says `max`
        return sys.maxsize
    return max(0, limit - used)


def _of_machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_memory(needed: int, what: str, advice: str) -> None:
    """Raises `UserError` with the estimate if `needed` bytes are more than there are."""
    available = available_memory()
    if needed > available:
        raise UserError(
            f"{what} needs about {human_bytes(needed)} of memory, and {human_bytes(available)} "
            f"are available; {advice}."
        )


@cache
def keep_freed_memory() -> bool:
    """Tells the allocator of this process not to give freed memory back to the system.

    A training step frees and takes the same hundreds of megabytes again; with glibc's defaults,
    every page of them is mapped and zeroed anew, which took a third of the step. Returns whether
    the allocator could be told (glibc only).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, LARGEST))
