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
from app.run_folder import WEIGHTS, Run
from sae.explain.report import Explanation, read_explanations, report_path
from sae.features import FeatureIndex, gallery, select
from sae.features import layout as index_files
from sae.features.scorecard import scored_view

SORTS = {
    "id": "Number",
    "label": "Label",
    "label_score": "Score",
    "specificity": "Specificity",
    "sensitivity": "Sensitivity",
    "density": "Density",
    "max": "Max",
    "mean": "Mean",
    "top_token": "Top token",
    "promoted_logit": "Top promoted logit",
    "seed_replicated": "Found by other seeds",
    "ablation_kl": "Ablation KL",
    "ablation_delta_ce": "Ablation ΔCE",
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
        return str(folder), _index_stamp(folder), _notes_stamp(folder)

    @property
    def has_scorecard(self) -> bool:
        """Whether the table has the columns that `sae scorecard` measures."""
        return (self.index.folder / index_files.SCORECARD).is_file()

    def table(self) -> pd.DataFrame:
        """`scored_view` of the index with what the pages sort by."""
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
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # not made yet; or SQLite has just removed its log
        return 0


def _index_stamp(folder: Path) -> int:
    """Of the index and of the scorecard, which is made after it."""
    return max(_stamp(folder / index_files.META), _stamp(folder / index_files.SCORECARD))


def _notes_stamp(folder: Path) -> int:
    notes = folder / index_files.NOTES
    return max(_stamp(notes), _stamp(notes.with_name(notes.name + "-wal")))


def open_index(run: Run, coder: str) -> FeatureIndex:
    folder = run.index(coder)
    return _index(str(folder), _index_stamp(folder))


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
    return scored_view(_index(folder, stamp)).assign(**_tops(folder, stamp))


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
    if sort == "id" or sort not in table:  # of a scorecard that is not there
        return ids[::-1] if down else ids
    ordered = table.iloc[ids].sort_values(sort, ascending=not down, kind="stable")
    return ordered["id"].to_numpy()


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a coder's name: `found` where there is one, and it is of the weights that
    are there; `outdated` where it is of others."""

    found: dict[str, Any] | None
    outdated: bool


def evaluation(run: Run, coder: str) -> Evaluation:
    path = run.folder / "evaluation" / f"{coder}.json"
    weights = (run.coder(coder) / WEIGHTS, run.index(coder) / index_files.META)
    return _evaluation(run, coder, _stamp(path), *map(_stamp, weights))


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs={Run: lambda run: str(run.folder)})
def _evaluation(run: Run, coder: str, *stamps: int) -> Evaluation:
    found = run.evaluation(coder)
    if found is None:
        return Evaluation(None, outdated=False)
    measured = found.get("provenance", {}).get("coder", {}).get("hash")
    outdated = measured != run.weights(coder)
    return Evaluation(None if outdated else found, outdated)


def explanation(here: Here, feature: int) -> Explanation | None:
    """What a language model said of a feature (`sae explain`), if one was asked."""
    path = report_path(here.run.folder, here.coder)
    return _explanations(str(path), _stamp(path), here.index.meta["coder_hash"]).get(feature)


@st.cache_resource(max_entries=8, show_spinner=False)
def _explanations(path: str, stamp: int, coder_hash: str) -> dict[int, Explanation]:
    return read_explanations(path, coder_hash)
