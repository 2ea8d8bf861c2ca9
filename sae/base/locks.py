"""One process at a time: a lock that ends with the process that holds it, and says who that is."""

import errno
import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from sae.base.errors import UserError

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems


class Lock:
    """Holds the file `path` for this process until `release`, or until the process ends.

    The kernel keeps the lock (flock), so what a dead process left is taken over by whoever comes
    next, without a guess about its age. The file says who holds it, for the sentence that others
    get; it is removed on release. A file system that knows no locks is used without.

    Args:
        path: the lock's own file, beside what it guards.
        what: what is guarded, at the head of the sentence ("The activation store runs/a …").
        wait: stand in line instead of refusing; for moments, not for hours.

    Raises:
        UserError: another process (or another part of this one) holds it.
    """

    def __init__(self, path: Path | str, what: str, *, wait: bool = False) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._file: TextIO | None = self.path.open("a+")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                owner = _owner(self._file)
                self._file.close()
                raise UserError(
                    f"{what} is in use by {owner}; wait until that has ended, or stop it."
                ) from None
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    self._file.close()
                    raise
            if _is(self._file, self.path):
                break
            self._file.close()  # its owner removed it between our two calls
        self._sign()

    def release(self) -> None:
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _sign(self) -> None:
        if self._file is None:
            return
        since = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        try:
            self._file.truncate(0)
            self._file.write(json.dumps(owner) + "\n")
            self._file.flush()
        except OSError:
            self.release()
            raise


def _is(file: TextIO, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _owner(file: TextIO) -> str:
    try:
        file.seek(0)
        owner = json.loads(file.read())
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
