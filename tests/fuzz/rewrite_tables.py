"""Well-formed tables, databases and chunks that say or hold something odd."""

import io
import json
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz.odd import INTS, mutate_bytes, odd_int, odd_text, odd_value
from tests.fuzz.rewrite_arrays import BOMB


def parquet(data: bytes, rng: Random) -> bytes:
    """A table with a column of another type, other values, other rows, or that unfolds to much."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    rows = table.num_rows
    how = rng.randrange(9)
    if how == 0:
        table = table.remove_column(at)
    elif how == 1:
        table = table.rename_columns(
            [odd_text(rng, n) if n == name else n for n in table.column_names]
        )
    elif how == 2:
        table = table.slice(0, rng.choice((0, 1, rows // 2)))
    elif how == 3:
        table = pa.concat_tables([table] * rng.choice((2, 50)))
    elif how == 4:
        text = pa.array(["x" * rng.choice((10, 2**20))]).dictionary_encode()
        repeated = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), text.dictionary)
        table = table.set_column(at, name, repeated)
    else:
        values = column.to_pylist()
        for _ in range(rng.choice((1, 3, rows)) if rows else 0):
            spot = rng.randrange(rows)
            values[spot] = _odd_cell(values[spot], rng)
        same = column.type if rng.random() < 0.6 else None
        table = table.set_column(at, name, _array_of(values, same, rng))
    file = io.BytesIO()
    pq.write_table(table, file, compression=rng.choice(("snappy", "gzip", "zstd", "none")))
    return file.getvalue()


def _odd_cell(value: Any, rng: Random) -> Any:
    if isinstance(value, list) and value and rng.random() < 0.7:
        return [odd_value(rng, v) if rng.random() < 0.3 else v for v in value]
    return value if isinstance(value, bytes) and rng.random() < 0.3 else odd_value(rng, value)


def _array_of(values: list[Any], kind: Any, rng: Random) -> Any:
    import pyarrow as pa

    for wanted in (kind, None):
        try:
            return pa.array(values, wanted)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            continue
    makers: tuple[Callable[[], Any], ...] = (
        lambda: pa.array([str(v)[:50].encode("utf-8", "replace").decode() for v in values]),
        lambda: pa.nulls(len(values)),
        lambda: pa.array([[i] for i in range(len(values))]),
        lambda: pa.array([float("nan")] * len(values)),
        lambda: pa.array([rng.choice(INTS[:8])] * len(values)),
        lambda: pa.array([{"a": 1}] * len(values)),
        lambda: pa.array([b"\xff"] * len(values)),
        lambda: pa.array([True] * len(values)),
    )
    return rng.choice(makers)()


SQL = (
    "UPDATE changes SET value = ?",
    "UPDATE changes SET feature = ?",
    "UPDATE changes SET field = ?",
    "UPDATE changes SET coder = coder, time = ?",
    "UPDATE changes SET undone = ?",
    "UPDATE changes SET id = ? WHERE id = 1",
    "INSERT INTO changes (coder, feature, field, value, time) SELECT coder, feature, field, ?, "
    "time FROM changes",
    "DROP TABLE changes",
    "ALTER TABLE changes RENAME COLUMN value TO worth",
    "ALTER TABLE changes ADD COLUMN more AS (hex(zeroblob(600000000)))",
    "CREATE TRIGGER t AFTER INSERT ON changes BEGIN DELETE FROM changes; END",
    "DROP TABLE changes; CREATE VIEW changes AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT "
    "n + 1 FROM c) SELECT n AS id, '@coder@' AS coder, n AS feature, 'label' AS field, "
    "'\"x\"' AS value, '' AS time, 0 AS undone FROM c",
    "DROP TABLE changes; CREATE VIEW changes AS SELECT 1 AS id, '@coder@' AS coder, 1 AS feature, "
    "'label' AS field, hex(zeroblob(400000000)) AS value, '' AS time, 0 AS undone",
    "DROP TABLE changes; CREATE TABLE changes (id INTEGER PRIMARY KEY, coder TEXT, feature INT, "
    "field TEXT, value TEXT AS (hex(zeroblob(400000000))), time TEXT, undone INT); INSERT INTO "
    "changes (id, coder, feature, field, time, undone) VALUES (1, '@coder@', 1, 'label', '', 0)",
    "CREATE TABLE other (a); PRAGMA user_version = 77; PRAGMA application_id = 9",
    "PRAGMA journal_mode = DELETE; PRAGMA page_size = 65536; VACUUM",
)


def notes(data: bytes, rng: Random, coder: str) -> bytes:
    """A database of notes with other values, another schema, or a query that never ends."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "n.sqlite3"
        path.write_bytes(data)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            sql = rng.choice(SQL).replace("@coder@", coder)
            if "?" in sql:
                value = odd_value(rng, rng.choice((1, '"x"', "label", "[]", "true")))
                fits = not isinstance(value, int) or abs(value) < 2**63
                plain = value if isinstance(value, str | float | None) or fits else str(value)
                text = json.dumps(value) if isinstance(plain, list | dict) else plain
                text = rng.choice((text, b"\xff\x00", json.dumps(value)))
                some = " WHERE id % 2 = 0" if sql.startswith("UPDATE") and "id =" not in sql else ""
                connection.execute(sql + some, [_utf8(text)])
            else:
                connection.executescript(sql)
            connection.commit()
        return path.read_bytes()


def _utf8(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def hdf5(data: bytes, rng: Random) -> bytes:
    """A file of HDF5 whose attributes are of other types."""
    import h5py

    file = io.BytesIO(data)
    with h5py.File(file, "r+") as opened:
        for _ in range(rng.choice((1, 3))):
            name = rng.choice(list(opened.attrs))
            makers: tuple[Callable[[], Any], ...] = (
                lambda: odd_int(rng) % 2**63,
                lambda: h5py.Empty("f"),
                lambda: np.zeros((3, 0)),
                lambda: np.array(["a", "b"], dtype=h5py.string_dtype()),
                lambda: np.bytes_(b"\xff\xfe"),
                lambda: opened.ref,
                lambda: np.arange(6000, dtype="i8"),
                lambda: np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
                lambda: odd_text(rng).replace("\0", "").encode("utf-8", "replace").decode()[:5000],
                lambda: np.nan,
            )
            opened.attrs[name] = rng.choice(makers)()
            if rng.random() < 0.2:
                del opened.attrs[rng.choice(list(opened.attrs))]
    return file.getvalue()


def chunk(data: bytes, rng: Random) -> bytes:
    """A chunk of a Zarr array with a right sum: other bytes, or noughts that unfold to much."""
    import google_crc32c
    import numcodecs

    body = data[:-4]
    how = rng.randrange(4)
    if how == 0:
        body = mutate_bytes(body, rng)
    elif how == 1:
        size = rng.choice((0, 1, 100, 2**20, BOMB))
        body = bytes(numcodecs.Zstd(level=1).encode(np.zeros(size, np.uint8)))
    elif how == 2 and body[:4] == b"\x28\xb5\x2f\xfd":
        content = numcodecs.Zstd().decode(body)
        body = bytes(numcodecs.Zstd().encode(mutate_bytes(bytes(content), rng)))
    else:
        number = rng.choice(INTS) % 2**64  # of a shard, where its last chunk lies
        body = body[:-8] + number.to_bytes(8, "little")
    return body + int(google_crc32c.value(body)).to_bytes(4, "little")
