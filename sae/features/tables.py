"""The parquet files of an index, read within bounds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sae.base.foreign import reading, require_file

BYTES_PER_ROW = 2**14
"""Far more than a row of any of these tables takes, decompressed, on average."""
VALUES_PER_ROW = 64
SMALLEST = 2**20
ROWS_AT_ONCE = 4096


def read_table(path: Path, most_rows: int, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table of at most so many rows. Raises `UserError` for a file that is not one.

    The file's own promises are read first, and texts before they are repeated, so that what a few
    bytes unfold to stays bounded.
    """
    with reading(path):
        require_file(path)
        with pq.ParquetFile(path) as file:
            texts = _texts(file)
            _require_openable(file)
            _require_modest(file.metadata, most_rows)
            names = file.schema_arrow.names
        if missing := [name for name in columns or () if name not in names]:
            raise ValueError(f"it lacks the column {missing[0]}")
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            return _table(file, list(columns or names)).to_pandas(ignore_metadata=True)


def _texts(file: pq.ParquetFile) -> list[str]:
    """The columns of texts; none of Loupe's tables has lists of them."""
    schema = file.schema
    found = [schema.column(i) for i in range(len(schema.names))]
    texts = [column.path for column in found if column.physical_type == "BYTE_ARRAY"]
    if nested := [path for path in texts if path not in file.schema_arrow.names]:
        raise ValueError(f"its `{nested[0]}` holds lists of texts")
    return texts


def _require_openable(file: pq.ParquetFile) -> None:
    """Lets every column chunk be opened, and nothing of it read, where an error can be caught.

    A column's own record that contradicts the schema makes pyarrow (26.0) end the whole process
    when Python asks for that record first.
    """
    for group in range(file.metadata.num_row_groups):
        for _ in file.reader.iter_batches(0, row_groups=[group]):
            break


def _require_modest(promised: pq.FileMetaData, most_rows: int) -> None:
    if not 0 <= promised.num_rows <= most_rows:
        raise ValueError(f"it has {promised.num_rows:,} rows, at most {most_rows:,} fit")
    groups = [promised.row_group(i) for i in range(promised.num_row_groups)]
    size = sum(group.total_byte_size for group in groups)
    if size > SMALLEST + BYTES_PER_ROW * promised.num_rows:
        raise ValueError(f"it would unfold to {size:,} bytes")
    for column in range(promised.num_columns):
        values = sum(group.column(column).num_values for group in groups)
        if values > VALUES_PER_ROW * (promised.num_rows + 1):
            raise ValueError(f"it promises {values:,} values in {promised.num_rows:,} rows")


def _table(file: pq.ParquetFile, columns: list[str]) -> pa.Table:
    parts: list[pa.Table] = []
    size = rows = 0
    for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
        part = pa.Table.from_batches([batch])
        size, rows = size + sum(map(_unfolded, part.columns)), rows + part.num_rows
        if size > SMALLEST + BYTES_PER_ROW * rows:
            raise ValueError(f"{rows:,} of its rows would unfold to {size:,} bytes")
        parts.append(_plain(part))
    return pa.concat_tables(parts) if parts else _plain(file.read(columns=columns))


def _unfolded(column: pa.ChunkedArray) -> int:
    """Bytes of a column once each text stands where it is repeated."""
    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    total = 0
    for chunk in column.chunks:
        lengths = pc.call_function("binary_length", [chunk.dictionary]).take(chunk.indices)
        total += int(np.nansum(lengths.to_numpy(zero_copy_only=False)))
    return total


def _plain(part: pa.Table) -> pa.Table:
    """The texts of a part, each where it stands."""
    kinds = [
        pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type)
        for f in part.schema
    ]
    return part.cast(pa.schema(kinds))
