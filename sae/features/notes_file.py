"""The SQLite file of notes: opened for a moment, made when it is missing, moved while in use."""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path

from sae.base.errors import UserError
from sae.base.foreign import reading, require_file
from sae.base.locks import Lock

ADVICE = "move it aside to go on without its notes"
PASSING = (
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY),
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN),
)
"""SQLite's codes (the lowest byte of one) for what is wrong around a file, and not in it."""
LONGEST = 2**20
"""Bytes of any text in the file."""
_TABLE = """
CREATE TABLE IF NOT EXISTS changes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, coder TEXT NOT NULL, feature INTEGER NOT NULL,
    field TEXT NOT NULL, value TEXT NOT NULL, time TEXT NOT NULL, undone INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS by_feature ON changes (coder, feature, field, undone, id);
"""
_FILES = ("", "-wal", "-shm")
"""Ends of the names of a database's files while it is in use."""


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in a transaction: committed at the end, rolled back on an error.

    Raises:
        UserError: the file is damaged, or not one of notes; or it cannot be used just now.
    """
    with understood(path), closing(_connect(path)) as connection, connection:
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        if not _is_whole(connection):
            _make(connection, path)
        yield connection


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Within it, what SQLite raises is a `UserError`. Of what may pass, nobody is told to move
    the file aside."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING:
            raise UserError(
                f"{path} cannot be used now ({error}): it is in use, may not be written, or the "
                "disk is full; try again."
            ) from error
        raise UserError(f"{path} is damaged ({error}); {ADVICE}.") from error


def _connect(path: Path) -> sqlite3.Connection:
    with suppress(FileNotFoundError):
        require_file(path)
    return sqlite3.connect(path, timeout=10)


def _is_whole(connection: sqlite3.Connection) -> bool:
    """Whether table and index are there. Raises `DatabaseError` for a file of another make: views,
    triggers and computed columns of a stranger would run with every query, without bounds."""
    found, own = _schema(connection), _own_schema()
    if any(own.get(name) != sql for name, sql in found.items()):
        raise sqlite3.DatabaseError("it is no file of notes")
    return found == own


def _schema(connection: sqlite3.Connection) -> dict[str, str]:
    query = "SELECT name, substr(sql, 1, 1000) FROM sqlite_master WHERE name != 'sqlite_sequence'"
    return {name: " ".join(str(sql).split()) for name, sql in connection.execute(query)}


@cache
def _own_schema() -> dict[str, str]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_TABLE)
        return _schema(connection)


def _make(connection: sqlite3.Connection, path: Path) -> None:
    """One process at a time: SQLite does not wait where a file gets its log."""
    with Lock(f"{path}.lock", str(path), wait=True):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(f"BEGIN IMMEDIATE; {_TABLE} COMMIT;")


def make_notes(path: Path) -> None:
    """A file without notes, unless there is one."""
    with reading(path, ADVICE), opened(path):
        pass


def notes_problems(path: Path) -> list[str]:
    """What SQLite finds wrong with a notes file, and notes that cannot be read; [] if nothing.

    The notes change as people write, so no sum is kept of them: a flipped bit within a text that
    is still a text stays unseen.
    """
    if not path.exists():
        return []
    try:
        with reading(path, ADVICE), understood(path), closing(_connect(path)) as connection:
            _is_whole(connection)
            told = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
            values = [row[0] for row in connection.execute("SELECT value FROM changes")]
            for value in values if told == ["ok"] else ():
                json.loads(value)
    except UserError as error:
        return [str(error)]
    return [] if told == ["ok"] else [f"{path} is damaged ({told[0]}); {ADVICE}."]


@contextmanager
def moving_notes(source: Path, target: Path) -> Iterator[None]:
    """Gives a file that may be in use a second name; within it, that is put in the place of the
    first, with the folder that it lies in.

    It stays one file, so that what others write meanwhile is not lost. A connection is held, so
    that its log (-wal, -shm) neither comes nor goes. Where files have one name, it is copied.
    """
    with closing(_connect(source)) as holder:
        with reading(source, ADVICE), understood(source):
            _is_whole(holder)
            holder.execute("PRAGMA journal_mode=WAL")
            holder.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            try:
                for end in _FILES:
                    os.link(f"{source}{end}", f"{target}{end}")
            except OSError:
                _copy(source, target)
        yield


def _copy(source: Path, target: Path) -> None:
    for end in _FILES:
        Path(f"{target}{end}").unlink(missing_ok=True)
    with closing(_connect(source)) as old, closing(_connect(target)) as new:
        old.backup(new)
