"""How far a long measurement is, told to whoever asked for it."""

from collections.abc import Callable

Step = Callable[[], None]  # one more of the steps that were announced is done


def silent(_what: str, _done: int, _total: int) -> None:
    """Nobody is told."""


def no_step() -> None:
    """Nobody counts."""


def counted(tell: Callable[[int, int], None], total: int) -> Step:
    """Tells (steps done, total) now, and with each step."""
    done = 0
    tell(0, total)

    def step() -> None:
        nonlocal done
        done += 1
        tell(done, total)

    return step
