"""Signals: noted or raised once, at once the second time, and as before afterwards."""

import signal
import subprocess
import sys

import pytest

from sae.base.interrupts import Interrupted, noted_signals, raised_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with noted_signals() as stop:
        assert stop.number is None
        signal.raise_signal(number)
        assert stop.number == number
    assert signal.getsignal(number) is before


def test_a_signal_is_raised_with_its_exit_code() -> None:
    def work() -> None:
        with raised_signals():
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as raised:
        work()
    assert (raised.value.code, raised.value.name) == (143, "SIGTERM")


@pytest.mark.parametrize("kind", ["noted_signals", "raised_signals"])
def test_the_second_ends_the_process_at_once(kind: str) -> None:
    code = f"""
import signal
from sae.base.interrupts import Interrupted, {kind}
with {kind}():
    try:
        signal.raise_signal(signal.SIGINT)
    except Interrupted:
        pass
    signal.raise_signal(signal.SIGTERM)
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (143, "")
