"""What people write about features: labels, stars and tags, with history and undo (SQLite, WAL).

One append-only table of changes is the whole truth: the state of a field of a feature is the last
change of it that was not undone. Notes belong to a coder's hash, so that an index which is built
anew keeps them, and the notes of another coder never show.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sae.base.errors import UserError
from sae.base.foreign import reading
from sae.features.notes_file import ADVICE, LONGEST, opened

Field = Literal["label", "star", "tags"]
FORMS: dict[Field, tuple[type, ...]] = {
    "label": (str, type(None)),
    "star": (bool,),
    "tags": (list,),
}
NOTHING: dict[Field, Any] = {"label": None, "star": False, "tags": []}


@dataclass(frozen=True)
class Change:
    """One entry of the history; `value` is None for a label that was taken away."""

    feature: int
    field: Field
    value: str | bool | list[str] | None
    time: str
    undone: bool


class Notes:
    """Notes of one coder in the SQLite file `path`, which is made on the first write.

    Each call opens and closes its own connection, so one object serves many threads.
    """

    def __init__(self, path: Path | str, coder_hash: str, width: int | None = None):
        self.path, self.coder_hash, self.width = Path(path), coder_hash, width

    def set_label(self, feature: int, label: str | None) -> None:
        """Sets the user's label; None or blanks take it away, so that the automatic one shows."""
        self._change(feature, "label", lambda _: _trimmed(label))

    def label(self, feature: int) -> str | None:
        return self._state("label", feature).get(feature)

    def labels(self) -> dict[int, str]:
        """Feature -> the user's label, of those that have one."""
        return {f: value for f, value in self._state("label").items() if value is not None}

    def star(self, feature: int, on: bool = True) -> None:
        self._change(feature, "star", lambda _: on)

    def stars(self) -> set[int]:
        return {feature for feature, value in self._state("star").items() if value}

    def set_tags(self, feature: int, tags: list[str]) -> None:
        """Replaces the tags of a feature; they are kept trimmed, sorted, each once."""
        self._change(feature, "tags", lambda _: _tidy(tags))

    def tag(self, feature: int, *tags: str) -> None:
        self._change(feature, "tags", lambda old: _tidy([*old, *tags]))

    def untag(self, feature: int, *tags: str) -> None:
        self._change(feature, "tags", lambda old: [tag for tag in old if tag not in tags])

    def tags(self) -> dict[int, list[str]]:
        """Feature -> its tags, of those that have any."""
        return {feature: value for feature, value in self._state("tags").items() if value}

    def history(self, feature: int | None = None) -> list[Change]:
        """Every change, of one feature or of all, oldest first, the undone ones too."""
        where, values = ("", []) if feature is None else (" AND feature = ?", [feature])
        query = (
            f"SELECT feature, field, value, time, undone FROM changes WHERE coder = ?{where} "
            "ORDER BY id"
        )
        rows = self._read(query, [self.coder_hash, *values])
        with reading(self.path, ADVICE):
            return [
                Change(found, field, json.loads(value), time, bool(undone))
                for found, field, value, time, undone in rows
            ]

    def undo(self, feature: int | None = None) -> Change | None:
        """Takes back the last change (of one feature, or of all); None if there is none left."""
        where, values = ("", []) if feature is None else (" AND feature = ?", [feature])
        query = (
            "UPDATE changes SET undone = 1 WHERE id = (SELECT MAX(id) FROM changes WHERE coder = ? "
            f"AND undone = 0{where}) RETURNING feature, field, value, time"
        )
        if not self.path.exists():
            return None
        with opened(self.path) as connection:
            row = connection.execute(query, [self.coder_hash, *values]).fetchone()
        return None if row is None else Change(row[0], row[1], json.loads(row[2]), row[3], True)

    def export_json(self) -> dict[str, Any]:
        """The state (not the history) as `{"schema", "coder_hash", "features": {id: {…}}}`."""
        features: dict[str, dict[str, Any]] = {}
        for feature, label in sorted(self.labels().items()):
            features.setdefault(str(feature), {})["label"] = label
        for feature in sorted(self.stars()):
            features.setdefault(str(feature), {})["star"] = True
        for feature, tags in sorted(self.tags().items()):
            features.setdefault(str(feature), {})["tags"] = tags
        return {"schema": 1, "coder_hash": self.coder_hash, "features": features}

    def import_json(self, notes: dict[str, Any]) -> int:
        """Lays exported notes over the present ones; each is a change that can be undone.

        Returns:
            How many features the notes spoke of.

        Raises:
            UserError: notes of another coder, of another form, or of features that do not exist;
                then nothing is changed.
        """
        features = notes.get("features") if isinstance(notes, dict) else None
        if not isinstance(features, dict) or notes.get("schema") != 1:
            raise UserError(
                'These are no notes of Loupe; expected {"schema": 1, "coder_hash", "features"} as '
                "`export_json` writes."
            )
        if notes.get("coder_hash") != self.coder_hash:
            raise UserError(
                f"These notes belong to the coder {str(notes.get('coder_hash'))[:12]}…, this index "
                f"to {self.coder_hash[:12]}…; import them into the index of their own coder."
            )
        for feature, note in features.items():
            self._check(int(feature) if re.fullmatch("[0-9]{1,15}", str(feature)) else -1)
            _check_note(feature, note)
        if not any(features.values()):
            return len(features)
        with self._changing() as connection:
            for feature, note in features.items():
                for field, tidy in TIDY.items():
                    if field in note:
                        value = tidy(note[field])
                        self._append(connection, int(feature), field, lambda _, v=value: v)
        return len(features)

    def _check(self, feature: int) -> None:
        if feature < 0 or (self.width is not None and feature >= self.width):
            last = "" if self.width is None else f" (they end at {self.width - 1})"
            raise UserError(f"Feature {feature} does not exist; give one of this index's{last}.")

    def _change(self, feature: int, field: Field, new: Callable[[Any], Any]) -> None:
        """Makes one change."""
        self._check(feature)
        with self._changing() as connection:
            self._append(connection, feature, field, new)

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Nobody writes in between; an error takes back all that was written within."""
        with opened(self.path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def _append(
        self, connection: sqlite3.Connection, feature: int, field: Field, new: Callable[[Any], Any]
    ) -> None:
        """Appends `new(the present value)` unless it is the same."""
        rows = connection.execute(*self._query(field, feature)).fetchall()
        old = self._values(field, rows).get(feature, NOTHING[field])
        if (value := new(old)) == old:
            return
        if len(text := json.dumps(value)) > LONGEST // 2:
            raise UserError(f"The {field} of feature {feature} is too long; shorten it.")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        connection.execute(
            "INSERT INTO changes (coder, feature, field, value, time) VALUES (?, ?, ?, ?, ?)",
            (self.coder_hash, int(feature), field, text, now),
        )

    def _state(self, field: Field, feature: int | None = None) -> dict[int, Any]:
        return self._values(field, self._read(*self._query(field, feature)))

    def _query(self, field: Field, feature: int | None) -> tuple[str, list[Any]]:
        where, values = ("", []) if feature is None else (" AND feature = ?", [int(feature)])
        query = (
            "SELECT feature, value FROM changes WHERE id IN (SELECT MAX(id) FROM changes WHERE "
            f"coder = ? AND field = ? AND undone = 0{where} GROUP BY feature)"
        )
        return query, [self.coder_hash, field, *values]

    def _values(self, field: Field, rows: list[tuple]) -> dict[int, Any]:
        with reading(self.path, ADVICE):
            found = {int(feature): json.loads(value) for feature, value in rows}
            if not all(isinstance(value, FORMS[field]) for value in found.values()):
                raise ValueError(f"it holds a {field} of another form")
        if self.width is None:
            return found
        return {feature: value for feature, value in found.items() if 0 <= feature < self.width}

    def _read(self, query: str, values: list[Any]) -> list[tuple]:
        if not self.path.exists():
            return []
        with reading(self.path, ADVICE), opened(self.path) as connection:
            return connection.execute(query, values).fetchall()


def _trimmed(label: str | None) -> str | None:
    return (label or "").strip() or None


def _tidy(tags: Iterable[str]) -> list[str]:
    return sorted({tag.strip() for tag in tags if tag.strip()})


TIDY: dict[Field, Callable[[Any], Any]] = {"label": _trimmed, "star": bool, "tags": _tidy}
"""How what is given of a field is kept."""


def _check_note(feature: object, note: object) -> None:
    valid = isinstance(note, dict) and (
        isinstance(note.get("label", ""), str | None)
        and isinstance(note.get("star", False), bool)
        and isinstance(tags := note.get("tags", []), list)
        and all(isinstance(tag, str) for tag in tags)
    )
    if not valid:
        raise UserError(
            f"The note of feature {feature} is malformed; expected label (text), star (true or "
            "false) and tags (list of texts)."
        )
