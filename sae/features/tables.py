"""The parquet files of an index, read within bounds."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from sae.base.foreign import reading

BYTES_PER_ROW = 2**14
"""Far more than a row of any of these tables takes, decompressed, on average."""
SMALLEST = 2**20


def read_table(path: Path, most_rows: int, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table of at most so many rows. Raises `UserError` for a file that is not one.

    The file's own promises are read first, so that what a few bytes unfold to stays bounded.
    """
    with reading(path), pq.ParquetFile(path) as file:
        promised = file.metadata
        groups = [promised.row_group(i) for i in range(promised.num_row_groups)]
        if not 0 <= promised.num_rows <= most_rows:
            raise ValueError(f"it has {promised.num_rows:,} rows, at most {most_rows:,} fit")
        size = sum(group.total_byte_size for group in groups)
        if size > SMALLEST + BYTES_PER_ROW * promised.num_rows:
            raise ValueError(f"it would unfold to {size:,} bytes")
        names = file.schema_arrow.names
        if missing := [name for name in columns or () if name not in names]:
            raise ValueError(f"it lacks the column {missing[0]}")
        return file.read(columns=None if columns is None else list(columns)).to_pandas()
