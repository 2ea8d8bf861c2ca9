"""A process that tries one loader on cases, one after the other, within limits.

    python -m tests.fuzz.worker LOADER WHOLE SCRATCH     a seed a line on stdin -> a verdict a line
    python -m tests.fuzz.worker LOADER FOLDER            loads a folder that was kept, for a person

A verdict is {"seed", "outcome", "key", "said"}; before it a line says that the case is made, so
that who waits can tell a hang of the loader from the making of its case.
"""

import json
import os
import resource
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sae.base.errors import CheckFailure, UserError
from tests.fuzz.cases import make_case
from tests.fuzz.loaders import LOADERS
from tests.fuzz.odd import OUTSIDE

ROOT = Path(__file__).parents[2]
MOST_MEMORY = 2**28
"""Bytes that a case may take beyond what the process has; the valid files have under 2 MB."""
MOST_ADDRESSES = 2**31
"""Beyond what the process has mapped: larger requests fail, and count as too much memory."""
LONGEST = 700
"""Characters of a sentence that a person reads."""
FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen"),
    *("socket.connect", "socket.getaddrinfo", "os.mkdir.pwned"),
)

HDF5 = "import h5py"
"""The one program that a loader starts."""


class Watch:
    """What a case does that no reader may do, by Python's audit events."""

    def __init__(self, scratch: Path) -> None:
        self.outside, self.on, self.seen = scratch / OUTSIDE, False, list[str]()
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if HDF5 in str(arguments):
            return
        if event in FORBIDDEN or (event == "os.mkdir" and "pwned" in str(arguments[0])):
            self.seen.append(f"{event} {str(arguments)[:100]}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = Path(os.path.normpath(os.path.abspath(os.fsdecode(arguments[0]))))
            if path.is_relative_to(self.outside):
                self.seen.append(f"open {path}")

    @contextmanager
    def looking(self) -> Iterator[None]:
        self.seen, self.on = [], True
        try:
            yield
        finally:
            self.on = False


def main(name: str, whole: Path, scratch: Path) -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    _silence(scratch / "said.txt")
    (scratch / OUTSIDE).mkdir(parents=True, exist_ok=True)
    (scratch / OUTSIDE / "secret").write_text("[1, 2, 3]")
    watch, loader = Watch(scratch), LOADERS[name]
    for variant in sorted(whole.iterdir()):  # imports, caches, and the samples themselves
        loader.load(make_whole(variant, scratch / "case"))
    _limit_addresses()
    replies.write("ready\n")
    for line in sys.stdin:
        seed = line.strip()
        folder = make_case(loader, whole, scratch / "case", f"{name}:{seed}")
        replies.write("made\n")
        verdict = judge(name, folder, watch)
        replies.write(json.dumps({"seed": seed, **verdict}) + "\n")


def make_whole(variant: Path, case: Path) -> Path:
    import shutil

    shutil.rmtree(case, ignore_errors=True)
    return Path(shutil.copytree(variant, case / variant.name))


def judge(name: str, folder: Path, watch: Watch) -> dict[str, str]:
    """Loads a case: `accepted`, `refused` with a sentence, or what else came of it."""
    before, found = _reset_peak(), {"outcome": "accepted", "key": "", "said": ""}
    try:
        with watch.looking():
            LOADERS[name].load(folder)
    except (UserError, CheckFailure) as error:
        found = _refusal(error)
    except BaseException as error:
        found = {"outcome": "error", "key": _key(error), "said": traceback.format_exc(limit=-6)}
    grown = _peak() - before
    if watch.seen:
        return {"outcome": "forbidden", "key": watch.seen[0].split()[0], "said": str(watch.seen)}
    if grown > MOST_MEMORY and found["outcome"] != "memory":
        said = f"{grown / 2**20:.0f} MiB; {found['said']}"
        return {"outcome": "memory", "key": found["key"] or "peak", "said": said}
    return found


def _refusal(error: BaseException) -> dict[str, str]:
    said, key = str(error), _key(error)
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, MemoryError) or "allocate" in str(chain):
            return {"outcome": "memory", "key": key, "said": traceback.format_exc(limit=-8)}
        chain = chain.__cause__ or chain.__context__
    if not said.strip() or "\n" in said or len(said) > LONGEST or not said.isprintable():
        return {"outcome": "no sentence", "key": key, "said": repr(said[:2000])}
    return {"outcome": "refused", "key": key, "said": said}


def _key(error: BaseException) -> str:
    """The kind of error and the innermost of our lines: failures of one key have one cause."""
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename
    ]
    inner = ours[-1]
    where = Path(inner.filename).relative_to(ROOT)
    return f"{type(error).__name__} {where}:{inner.name}:{inner.lineno}"


def _reset_peak() -> int:
    """Forgets the peak of memory; returns what is used now (0 where the system cannot say)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return 0


def _peak() -> int:
    return _status("VmHWM") if Path("/proc/self/clear_refs").exists() else 0


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _limit_addresses() -> None:
    if mapped := _status("VmSize"):
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_ADDRESSES,) * 2)


def _silence(log: Path) -> TextIO:
    """What loaders print is not a verdict; kept, for crashes of native code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.open("w")
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    return file


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(LOADERS[sys.argv[1]].load(Path(sys.argv[2])) or "accepted")
    else:
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
