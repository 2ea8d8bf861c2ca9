"""Refusing, before the start, what main memory cannot hold."""

import os
from pathlib import Path

from sae.base.errors import UserError
from sae.base.files import human_bytes


def available_memory() -> int:
    """Bytes that a process can take without swapping (Linux), or all there are (elsewhere)."""
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
