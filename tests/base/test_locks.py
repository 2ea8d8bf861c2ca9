"""One owner at a time, who is named; what a dead one left is taken over."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sae.base.errors import UserError
from sae.base.locks import Lock

HOLD = """
import sys, time
from sae.base.locks import Lock
with Lock(sys.argv[1], "The thing"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_and_told_whose_it_is_until_the_first_dies(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with holder(path) as process:
        said = rf"The thing is in use by process {process.pid} on .+ since 20\d\d-.+; wait"
        with pytest.raises(UserError, match=said):
            Lock(path, "The thing")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.exists()  # what the dead process left
    with Lock(path, "The thing"):
        pass
    assert not path.exists()


def test_one_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with Lock(tmp_path / "a", "It"), pytest.raises(UserError, match="It is in use"):
        Lock(tmp_path / "a", "It")


def test_those_who_wait_take_turns(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with Lock(tmp_path / "a", "It", wait=True):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not (tmp_path / "a").exists()
