"""The scorecard on the pages: its columns of the table, and the numbers of one feature."""

from collections.abc import Callable
from typing import Any

import numpy as np
import streamlit as st

from app import component, data, figures, pagekit
from sae.features.scorecard import COLUMNS as MEANINGS

TITLES = {
    "label_score": "F1",
    "specificity": "Spec.",
    "sensitivity": "Sens.",
    "seed_replicated": "Seeds",
    "ablation_kl": "Abl. KL",
    "ablation_delta_ce": "Abl. ΔCE",
}
"""Headings of the table of features."""
FACTS = {
    "label_score": "F1",
    "label_precision": "precision",
    "label_recall": "recall",
    "specificity": "specificity",
    "specificity_mass": "spec. mass",
    "sensitivity": "sensitivity",
    "seed_replicated": "other seeds",
    "seed_decoder_cosine": "seed dec·dec",
    "seed_encoder_cosine": "seed enc·enc",
    "ablation_kl": "ablation KL",
    "ablation_delta_ce": "ablation ΔCE",
}
"""Names on the page of a feature, where there is room for more of them."""
SEED_COSINES = ("seed_decoder_cosine", "seed_encoder_cosine")
"""Left out where there is no other seed: one dash says it."""
HELP = (
    "What the feature is worth, on held-out text. F1, specificity and sensitivity are of the rule "
    "that is its automatic label; a dash where there is no telling. Hover over a number for its "
    "meaning and for how much text it rests on."
)


def yes_or_no(value: float) -> str:
    return "–" if not np.isfinite(value) else "yes" if value else "no"


def signed(value: float) -> str:
    """Nats with their sign, which is the point of them."""
    return f"+{figures.number(value, 2)}" if value > 0 else figures.number(value, 2)


FORMS: dict[str, Callable[[float], str]] = {
    "seed_replicated": yes_or_no,
    "ablation_kl": lambda value: figures.number(value, 2),
    "ablation_delta_ce": signed,
}


def shown(name: str, value: float) -> str:
    """A number of the scorecard as people read it: shares and cosines with two decimals."""
    return FORMS.get(name, figures.score)(value)


def table_columns(table: Any, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Columns for the table view: those that the table has and that hold any number."""
    return [
        {
            "name": name,
            "title": TITLES[name],
            "align": "right",
            "sortable": True,
            "hint": f"{MEANINGS[name].meaning} ({MEANINGS[name].unit})",
        }
        for name in names
        if name in table and table[name].notna().any()
    ]


def cells(row: data.Row) -> dict[str, str]:
    """The row's cells of all those columns."""
    return {name: shown(name, row[name]) for name in TITLES if name in row}


def hint(name: str, row: data.Row) -> str:
    """What a number means, its error, and how many it rests on."""
    column = MEANINGS[name]
    parts = [column.meaning]
    error = row.get(f"{name}_error", np.nan)
    if np.isfinite(error):
        parts.append(f"Standard error {figures.number(error, 2)} {column.unit}.")
    if column.rests_on in row:
        count = row[column.rests_on]
        parts.append(f"Rests on {int(count):,} {MEANINGS[column.rests_on].unit}.")
    return " ".join(parts)


def panel(here: data.Here, row: data.Row) -> None:
    """The numbers of one feature; what is not measured yet names the command."""
    st.markdown("##### Scorecard", help=HELP)
    items = [
        [title, shown(name, row[name]), hint(name, row)]
        for name, title in FACTS.items()
        if name in row and (row.get("seed_coders") or name not in SEED_COSINES)
    ]
    component.view("facts", "scorecard", items=items)
    tell_missing(here)


def tell_missing(here: data.Here) -> None:
    """Says which command makes the scorecard, where there is none."""
    if not here.has_scorecard:
        pagekit.tell_missing(
            "There is no scorecard yet",
            "Whether other seeds have a feature, and what the model loses without it, come from:",
            here.run.command("scorecard"),
        )
