"""Is an index whole and consistent?"""

from pathlib import Path

import numpy as np

from sae.base.errors import UserError
from sae.base.sums import problems_of
from sae.features import layout
from sae.features.index import FeatureIndex
from sae.features.notes_file import notes_problems
from sae.features.scorecard import read_scorecard
from sae.features.statistics import feature_blocks
from sae.features.tables import read_table


def verify_index(folder: Path | str) -> list[str]:
    """Problems of the index in `folder`, one sentence each; empty if it is sound.

    Checks that every file is what was written (`SHA256SUMS`), that the index opens, and that the
    arrays agree with each other. The user's notes may change; they must be readable.
    """
    folder = Path(folder)
    if (folder / layout.META).is_file() and (
        problems := problems_of(folder, ignored=[f"{layout.NOTES}*"])
    ):
        return problems
    try:
        index = FeatureIndex.open(folder)
    except (UserError, OSError, ValueError) as error:
        return [str(error)]
    except Exception as error:  # a broken parquet file raises errors of its own
        return [f"{folder} cannot be read: {error}"]
    try:
        found = [*_arrays(index), *_table(index)]
        read_scorecard(index)
    except UserError as error:
        found = [str(error)]
    return [*found, *notes_problems(folder / layout.NOTES)]


def _arrays(index: FeatureIndex) -> list[str]:
    problems: list[str] = []
    indptr = index.indptr
    for start, stop in feature_blocks(indptr):
        low, high = indptr[start], indptr[stop]
        rows, acts = index.rows[low:high].astype(np.int64), index.acts[low:high]
        inner = np.ones(len(rows), bool)
        firsts = indptr[start:stop] - low
        inner[firsts[firsts < len(rows)]] = False
        where = f"features {start} to {stop - 1}"
        if len(rows) and rows.max() >= index.tokens_ST.size:
            problems.append(f"Firings of {where} lie beyond the last row.")
        if (np.diff(rows, prepend=-1)[inner] <= 0).any():
            problems.append(f"Rows of {where} do not ascend.")
        if (rows % index.context == 0).any():
            problems.append(f"Firings of {where} lie at position 0.")
        if not (acts > 0).all() or not np.isfinite(acts).all():
            problems.append(f"Activations of {where} are not all positive and finite.")
    return problems


def _table(index: FeatureIndex) -> list[str]:
    problems: list[str] = []
    table, meta = index.table, index.meta
    if len(table) != index.width:
        return [f"features.parquet has {len(table)} rows for {index.width} features."]
    counts = np.diff(index.indptr)
    if not np.array_equal(table["count"], counts):
        problems.append("The counts of features.parquet are not those of indptr.npy.")
    if not np.allclose(table["density"], counts / max(index.tokens_indexed, 1)):
        problems.append("The densities of features.parquet are not counts over indexed tokens.")
    if not np.array_equal(index.counts_at(None), counts):
        problems.append("The codes by row and the codes by feature differ.")
    expected = {"d_sae": index.width, "context": index.context, "sequences": index.sequences}
    problems += [
        f"index.json says {name} {meta.get(name)}, the arrays say {value}."
        for name, value in expected.items()
        if meta.get(name) != value
    ]
    if index.tokens_ST.size and index.tokens_ST.max() >= len(index.vocabulary):
        problems.append("tokens.npy holds tokens that vocabulary.parquet does not know.")
    starts = read_table(index.folder / layout.DOCUMENTS, index.tokens_ST.size)["start"].to_numpy()
    if (np.diff(starts) <= 0).any():
        problems.append("The starts of documents.parquet do not ascend.")
    return problems
