"""SIGINT and SIGTERM: stop at a good moment on the first, at once on the second."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], None]


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; the exit code of the program is `code` (128 + the signal)."""

    def __init__(self, number: int, sentence: str = "") -> None:
        super().__init__(sentence)
        self.number, self.sentence = number, sentence

    @property
    def code(self) -> int:
        return 128 + self.number

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name


@dataclass
class StopRequest:
    """Whether a signal asked to stop, and which one."""

    number: int | None = None


@contextmanager
def raised_signals() -> Iterator[None]:
    """Within it, the first SIGINT or SIGTERM raises `Interrupted`; a second ends the process."""
    request = StopRequest()

    def handler(number: int, _frame: FrameType | None) -> None:
        _at_once_if_asked_before(request, number)
        raise Interrupted(number)

    with _handled(handler):
        yield


@contextmanager
def noted_signals() -> Iterator[StopRequest]:
    """Within it, the first SIGINT or SIGTERM is only noted; a second ends the process at once.

    The work looks at `number` where it can stop without loss. Outside the main thread, where
    Python takes no handlers, nothing is noted.
    """
    request = StopRequest()
    with _handled(lambda number, _frame: _at_once_if_asked_before(request, number)):
        yield request


def _at_once_if_asked_before(request: StopRequest, number: int) -> None:
    if request.number is not None:
        os._exit(128 + number)
    request.number = number


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOPS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
