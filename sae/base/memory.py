"""Main memory: refusing, before the start, what it cannot hold, and keeping what was freed."""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path, PurePosixPath

from sae.base.errors import UserError
from sae.base.files import human_bytes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 2**31 - 1
LARGEST_OF_OLD = 2**25  # block that older versions of glibc let its heap hold

OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
VERSION_2 = ("memory.max", "memory.current")
"""Limit and use, of containers and of jobs of a cluster, in both forms of Linux."""


def available_memory() -> int:
    """Bytes that a process can take without swapping (Linux), or all there are (elsewhere)."""
    return min(_of_machine(), _of_cgroups())


def _of_cgroups() -> int:
    """What the limits of this process's control group, and of those around it, leave."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        lines = []
    left = [_of_cgroup(CGROUPS, VERSION_2), _of_cgroup(CGROUPS / "memory", VERSION_1)]
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            left += _of_path(CGROUPS, path, VERSION_2)
        elif "memory" in controllers.split(","):
            left += _of_path(CGROUPS / "memory", path, VERSION_1)
    return min(left)


def _of_path(root: Path, path: str, files: tuple[str, str]) -> list[int]:
    """A container may not see the outer folders of its path: those that are not there set none."""
    own = PurePosixPath(path.lstrip("/"))
    if ".." in own.parts:  # outside what this process can see
        return []
    return [_of_cgroup(root / folder, files) for folder in (own, *own.parents)]


def _of_cgroup(folder: Path, files: tuple[str, str]) -> int:
    """What the limit leaves, where the cache of files, which is given back, counts as free."""
    try:
        limit, used = (int((folder / file).read_text()) for file in files)
    except (OSError, ValueError):  # there is none, or it says `max`
        return sys.maxsize
    return max(0, limit - max(0, used - _file_cache(folder)))


def _file_cache(folder: Path) -> int:
    """Bytes of files that a cgroup counts as in use; of version 1, with those of its children."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        found = {name: int(value) for name, value in map(str.split, lines)}
    except (OSError, ValueError):
        return 0
    names = ("inactive_file", "active_file")
    return sum(found.get(f"total_{name}", found.get(name, 0)) for name in names)


def _of_machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_memory(needed: int, what: str, advice: str, available: int | None = None) -> None:
    """Raises `UserError` with the estimate if `needed` bytes are more than there are: in main
    memory, or in another one of which `available` are free."""
    available = available_memory() if available is None else available
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
    the allocator took both settings (glibc only; older versions keep blocks of up to 32 MB).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    keeps = mallopt(M_TRIM_THRESHOLD, LARGEST)
    takes = mallopt(M_MMAP_THRESHOLD, LARGEST) or mallopt(M_MMAP_THRESHOLD, LARGEST_OF_OLD)
    return bool(keeps and takes)
