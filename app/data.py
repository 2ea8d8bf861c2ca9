"""Cached access to a run: indexes, tables, evaluations. Nothing here imports torch.

Every cache key holds the time stamp of the files behind it, so that what was made anew is read
anew without a restart.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import state
from app.run_folder import Run
from sae.features import FeatureIndex, gallery, select
from sae.features import layout as index_files

SORTS = {
    "id": "Number",
    "label": "Label",
    "label_score": "Score",
    "density": "Density",
    "max": "Max",
    "mean": "Mean",
    "top_token": "Top token",
    "promoted_logit": "Top promoted logit",
}

Row = dict[str, Any]
"""A feature's row of the table, by column."""


@dataclass(frozen=True)
class Here:
    """What the page is about: a coder of a run, and its index."""

    run: Run
    coder: str
    index: FeatureIndex

    @property
    def stamps(self) -> tuple[str, int, int]:
        folder = self.index.folder
        return str(folder), _stamp(folder / index_files.META), _notes_stamp(folder)

    def table(self) -> pd.DataFrame:
        """`FeatureIndex.view()` with what the pages sort by."""
        return _table(*self.stamps)

    def row(self, feature: int) -> Row:
        """One feature's row of the table."""
        return self.table().loc[feature].to_dict()

    def matches(self) -> np.ndarray:
        """Ids of the features that the URL's filter lets through, in the URL's order."""
        return matches(self, state.value("filter", ""), *sorting())

    def gallery(self) -> list[int]:
        return _gallery(*self.stamps)


def sorting() -> tuple[str, bool]:
    """(column, largest first) that the URL asks for."""
    column = state.value("sort", "id", state.one_of(list(SORTS)))
    return column, state.value("order", "", state.one_of(["up", "down"])) == "down"


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _notes_stamp(folder: Path) -> int:
    notes = folder / index_files.NOTES
    return max(_stamp(notes), _stamp(notes.with_name(notes.name + "-wal")))


def open_index(run: Run, coder: str) -> FeatureIndex:
    folder = run.index(coder)
    return _index(str(folder), _stamp(folder / index_files.META))


@st.cache_resource(max_entries=8, show_spinner=False)
def _index(folder: str, stamp: int) -> FeatureIndex:
    return FeatureIndex.open(folder)


@st.cache_resource(max_entries=8, show_spinner=False)
def _tops(folder: str, stamp: int) -> dict[str, np.ndarray]:
    """Columns that notes never change: the top token's text, the largest promoted logit."""
    index = _index(folder, stamp)
    names, ids, logits = (
        index.vocabulary.names,
        index.table["top_token_ids"],
        index.table["promoted_logits"],
    )
    return {
        "top_token": np.array([names[found[0]] if len(found) else "" for found in ids], object),
        "promoted_logit": np.array([found[0] if len(found) else np.nan for found in logits]),
    }


@st.cache_resource(max_entries=8, show_spinner=False)
def _table(folder: str, stamp: int, notes: int) -> pd.DataFrame:
    return _index(folder, stamp).view().assign(**_tops(folder, stamp))


@st.cache_resource(max_entries=8, show_spinner=False)
def _gallery(folder: str, stamp: int, notes: int) -> list[int]:
    return gallery.interesting(_index(folder, stamp), _table(folder, stamp, notes))


def matches(here: Here, expression: str, sort: str = "id", down: bool = False) -> np.ndarray:
    """Ids that `expression` (see `sae.features.search`) selects, sorted by a column of the table.

    Raises:
        UserError: the expression is not valid.
    """
    return _matches(*here.stamps, expression.strip(), sort, down)


@st.cache_resource(max_entries=128, show_spinner=False)
def _matches(
    folder: str, stamp: int, notes: int, expression: str, sort: str, down: bool
) -> np.ndarray:
    table = _table(folder, stamp, notes)
    if expression:
        ids = np.asarray(select(_index(folder, stamp), expression, files=False), np.int64)
    else:
        ids = np.arange(len(table))
    if sort == "id":
        return ids[::-1] if down else ids
    ordered = table.iloc[ids].sort_values(sort, ascending=not down, kind="stable")
    return ordered["id"].to_numpy()


def evaluation(run: Run, coder: str) -> dict[str, Any] | None:
    """The evaluation of a coder, or None if there is none."""
    path = run.folder / "evaluation" / f"{coder}.json"
    return _evaluation(run, coder, _stamp(path))


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs={Run: lambda run: str(run.folder)})
def _evaluation(run: Run, coder: str, stamp: int) -> dict[str, Any] | None:
    return run.evaluation(coder)
