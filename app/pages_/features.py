"""Features: all of them in a table, to sort, filter, open and export."""

import json
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import component, data, figures, pagekit, payload, scorecard, state
from app.visible import markdown, pieces
from sae.base.errors import UserError
from sae.features.filters import terms_of
from sae.features.scorecard import COLUMNS as SCORECARD

PER_PAGE = 50
PRESETS = {
    "alive": "count>0",
    "not dense": "density<0.01",
    "well labelled": "label_score>=0.8",
    "single token": "single_token=1",
    "starred": "starred",
}
SYNTAX = """Terms, separated by spaces, must all hold:

- `density>1e-4`, `max<=20`, `label_score>=0.8`: any numeric column
- `specificity>0.9`, `sensitivity>0.5`, `ablation_kl>0.01`, `seed_replicated=1`: the scorecard's
- `label:verb`, `label:"two words"`: text in the label
- `token:" Paris"`: fires on the token
- `promotes:the`, `suppresses:the`: moves the token's logit
- `kind:class`, `tag:mine`, `starred`
- `3,17,40-60`: these numbers
"""
OF_LABEL = ("label_score", "specificity", "sensitivity")
MEASURED = ("seed_replicated", "ablation_kl", "ablation_delta_ce")
FIRST: list[dict[str, Any]] = [
    {"name": "id", "title": "Nº", "kind": "feature", "align": "right", "sortable": True},
    {"name": "label", "title": "Label", "kind": "label", "sortable": True},
]
LAST: list[dict[str, Any]] = [
    {
        "name": "density",
        "title": "Density",
        "align": "right",
        "sortable": True,
        "hint": "Share of tokens that fire the feature",
    },
    {"name": "mean", "title": "Mean", "align": "right", "sortable": True},
    {"name": "max", "title": "Max", "align": "right", "sortable": True},
    {"name": "spark", "title": "Activations", "kind": "spark"},
    {
        "name": "top_token",
        "title": "Top token",
        "kind": "token",
        "sortable": True,
        "hint": "The token that fires it most often",
    },
    {
        "name": "promoted_logit",
        "title": "Promotes",
        "kind": "token",
        "sortable": True,
        "hint": "The token whose logit it raises most; sorted by that logit",
    },
]
EXPORTED = ["id", "label", "label_kind", "label_score", "density", "count", "mean", "max"]
EXPORTED += ["std", "p50", "p90", "p99", "top_token", "promoted_logit", "star"]


def columns(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The table's columns; of the scorecard those that are there."""
    score, measured = (scorecard.table_columns(table, names) for names in (OF_LABEL, MEASURED))
    density, *last = LAST
    return [*FIRST, *score, density, *measured, *last]


def table_row(here: data.Here, row: data.Row) -> dict[str, Any]:
    """A row of the table as the component draws it."""
    vocabulary, tops, promoted = here.index.vocabulary, row["top_token_ids"], row["promoted_ids"]
    return {
        "id": int(row["id"]),
        "label": pieces(str(row["label"])),
        "star": bool(row["star"]),
        "tags": [pieces(tag) for tag in row["tags"]],
        **scorecard.cells(row),
        "density": figures.share(row["density"]),
        "mean": figures.number(row["mean"]),
        "max": figures.number(row["max"]),
        "spark": payload.sparkline(here.index.histogram(int(row["id"]))),
        "top_token": payload.token_name(vocabulary, tops[0]) if len(tops) else None,
        "promoted_logit": payload.token_name(vocabulary, promoted[0]) if len(promoted) else None,
    }


def on_table(event: component.Event) -> None:
    """A click on a heading sorts, on a row opens the feature."""
    if event["kind"] == "sort":
        column, down = data.sorting()
        name = event["column"]
        # Numbers are wanted largest first, texts from A.
        first_down = name not in ("id", "label", "top_token")
        new_down = not down if name == column else first_down
        state.put(
            sort=None if name == "id" else name, order="down" if new_down else None, page=None
        )
    else:
        pagekit.open_on_click(event)


def add_preset() -> None:
    """Adds the chosen term to the filter, or takes it out where it stands already."""
    term = PRESETS.get(st.session_state.get("preset") or "")
    st.session_state["preset"] = None
    if term is None:
        return
    terms = terms_of(state.value("filter", ""))
    terms = [t for t in terms if t != term] if term in terms else [*terms, term]
    state.put(filter=" ".join(terms) or None, page=None)


def filter_row() -> None:
    write_back = state.bound("filter", "", clears=("page",))
    st.text_input(
        "Filter",
        key="filter",
        on_change=write_back,
        placeholder='density>1e-4 label:"verb" token:" Paris"',
        type="search",
        help=SYNTAX,
    )
    st.pills(
        "Presets",
        list(PRESETS),
        key="preset",
        on_change=add_preset,
        label_visibility="collapsed",
    )


def csv(table: pd.DataFrame, ids: np.ndarray) -> bytes:
    names = [*EXPORTED, *(name for name in SCORECARD if name in table and name not in EXPORTED)]
    return table.loc[ids, names].to_csv(index=False).encode()


def downloads(here: data.Here, ids: np.ndarray) -> None:
    """The filter as a file for `sae export --features @FILE`, and the table as CSV."""
    expression = state.value("filter", "")
    saved = json.dumps({"filter": expression}, ensure_ascii=False) + "\n"
    st.download_button(
        "Save filter",
        saved,
        "filter.json",
        "application/json",
        icon=":material/filter_alt:",
        on_click="ignore",
        help="Saves the filter. `sae export RUN --features @filter.json` exports what it selects.",
    )
    st.download_button(
        "CSV",
        lambda: csv(here.table(), ids),
        f"{here.coder}-features.csv",
        "text/csv",
        icon=":material/download:",
        on_click="ignore",
        help="The table of all features that the filter lets through.",
    )


here = pagekit.here()
st.markdown("## Features")
filter_row()
try:
    ids = here.matches()
except UserError as error:
    st.error(markdown(str(error)), title="The filter cannot be read")
    st.stop()

pages = max(1, -(-len(ids) // PER_PAGE))
with st.container(horizontal=True, vertical_alignment="center"):
    total = here.index.width
    found = f"{len(ids):,} of {total:,} features" if len(ids) < total else f"{total:,} features"
    st.markdown(f"**{found}**", width="stretch")
    downloads(here, ids)
page = min(max(state.value("page", 1, int), 1), pages)
shown = here.table().loc[ids[(page - 1) * PER_PAGE : page * PER_PAGE]]
column, down = data.sorting()
if len(ids):
    component.view(
        "table",
        "table",
        on_table,
        columns=columns(here.table()),
        items=[table_row(here, row) for row in shown.to_dict("records")],
        sort=column,
        down=down,
        **pagekit.link_base(),
    )
else:
    st.caption("No feature satisfies every term of this filter.")
if pages > 1:
    key = f"page-{page}-of-{pages}"
    with st.container(horizontal_alignment="center"):
        st.pagination(
            pages,
            default=page,
            key=key,
            on_change=lambda: state.put(page=st.session_state[key]),
        )
scorecard.tell_missing(here)
