"""How a stage says that it is about to change what it has made before."""

from collections.abc import Callable

Begin = Callable[[], None]


def nothing() -> None:
    """Where nobody keeps a record: a stage that is called by itself."""
