"""How many files this process may have open at a time."""

import resource

from sae.base.errors import UserError

SPARE = 128
"""Beside those that are counted: shards of a store, pipes, what libraries hold open."""


def require_open_files(needed: int, what: str, advice: str) -> None:
    """Raises the process's own limit as far as `needed` files at once ask for.

    Raises:
        UserError: the system's limit is below that.
    """
    wanted = needed + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):  # above the hard limit; of macOS, also below one without end
        raise UserError(
            f"{what} needs about {wanted:,} files open at a time, and the system allows a process "
            f"{hard if hard != resource.RLIM_INFINITY else soft:,}; {advice}."
        ) from None
