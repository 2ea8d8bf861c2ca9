"""Head of the Feature page: which feature, its label, star and tags; previous and next."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import numpy as np
import streamlit as st

from app import data, state
from app.visible import markdown
from sae.base.errors import UserError
from sae.explain.report import Explanation

OF_ONE_FEATURE = ("bin", "seed")
"""Parameters that mean something for one feature only."""


def go(feature: int) -> None:
    """Shows another feature on this page."""
    state.put(**dict.fromkeys(OF_ONE_FEATURE), feature=feature)


def neighbour_in(order: np.ndarray, feature: int, step: int) -> int | None:
    """The feature `step` places on in `order`, going round at its ends; None if it is empty.

    From a feature that is not in `order`, the way leads to its first, or back to its last.
    """
    if not len(order):
        return None
    at = np.flatnonzero(order == feature)
    if not len(at):
        return int(order[0 if step > 0 else -1])
    return int(order[(at[0] + step) % len(order)])


def draw(here: data.Here, feature: int, row: data.Row) -> None:
    """The whole head."""
    order = here.matches()
    with st.container(horizontal=True, vertical_alignment="center"):
        step_button("Previous", ":material/chevron_left:", "Left", order, feature, -1)
        st.session_state["feature"] = feature
        st.number_input(
            "Feature",
            min_value=0,
            max_value=here.index.width - 1,
            step=1,
            key="feature",
            on_change=lambda: go(st.session_state["feature"] or 0),
            label_visibility="collapsed",
            width=130,
        )
        step_button("Next", ":material/chevron_right:", "Right", order, feature, 1)
        st.caption(place_in(order, feature), width="stretch")
        star_button(here, feature, bool(row["star"]))
        note_popover(here, feature, row)
        link_popover(feature)
    st.markdown(f"## {markdown(str(row['label']))}")
    st.markdown(badges(row))
    told = data.explanation(here, feature)
    if told is not None:
        st.markdown(explained(told))


def step_button(name: str, icon: str, key: str, order: np.ndarray, feature: int, step: int) -> None:
    to = neighbour_in(order, feature, step)
    st.button(
        name,
        key=f"step-{key}",
        icon=icon,
        icon_position="left" if step < 0 else "right",
        shortcut=key,
        on_click=go,
        args=(to,),
        disabled=to is None or to == feature,
    )


def place_in(order: np.ndarray, feature: int) -> str:
    """Where the feature stands in what the filter lets through, in the table's order."""
    at = np.flatnonzero(order == feature)
    column, down = data.sorting()
    parts = [f"{at[0] + 1:,} of {len(order):,}" if len(at) else f"not among {len(order):,}"]
    if expression := state.value("filter", ""):
        parts.append(f"filter {markdown(expression)}")
    if column != "id" or down:
        parts.append(f"by {data.SORTS[column].lower()} {'↓' if down else '↑'}")
    return " · ".join(parts)


def badges(row: data.Row) -> str:
    """Kind and score of the label, what is remarkable about the feature, and its tags."""
    score = row["label_score"]
    parts = [f":gray-badge[{kind_name(str(row['label_kind']))}]"]
    if np.isfinite(score):
        colour = "green" if score >= 0.8 else "orange" if score >= 0.5 else "gray"
        parts.append(f":{colour}-badge[F1 {score:.2f} held-out]")
    flags = {
        "dead": (row["count"] == 0, "red"),
        "dense": (row["density"] > 0.1, "red"),
        "position only": (row["position_only"], "violet"),
        "single token": (row["single_token"], "blue"),
    }
    parts += [f":{colour}-badge[{name}]" for name, (on, colour) in flags.items() if on]
    parts += [f":blue-badge[{markdown(tag)}]" for tag in row["tags"]]
    return " ".join(parts)


def explained(told: Explanation) -> str:
    """What a language model said, and how well that, and what it said of another feature, tells
    held-out contexts apart."""
    parts = [markdown(told.text), f":gray-badge[LLM: {markdown(told.model)}]"]
    for name, own, other in (
        ("detection", told.detection, told.shuffled_detection),
        ("fuzzing", told.fuzzing, told.shuffled_fuzzing),
    ):
        if own is not None:
            beside = "" if other is None else f", another's {other:.2f}"
            parts.append(f":violet-badge[{name} {own:.2f}{beside}]")
    return " ".join(parts)


def kind_name(kind: str) -> str:
    return "your label" if kind == "user" else f"automatic label: {markdown(kind)}"


def star_button(here: data.Here, feature: int, starred: bool) -> None:
    st.button(
        "Starred" if starred else "Star",
        key="star",
        icon=":material/star:" if starred else ":material/star_border:",
        type="primary" if starred else "secondary",
        on_click=write_note,
        args=(lambda: here.index.notes.star(feature, not starred),),
    )


def write_note(write: Callable[[], Any]) -> None:
    """Runs a change of the notes; a file that cannot be written is told, not raised."""
    try:
        write()
    except UserError as error:
        st.toast(f"The note could not be saved: {markdown(str(error))}", icon=":material/error:")


def note_popover(here: data.Here, feature: int, row: data.Row) -> None:
    """The user's own label and tags."""
    notes = here.index.notes
    label, tags = f"label-{feature}", f"tags-{feature}"
    with st.popover("Label", icon=":material/edit:"):
        own = str(row["label"]) if row["label_kind"] == "user" else ""
        st.text_input(
            "Your label",
            own,
            key=label,
            placeholder="What does it stand for?",
            on_change=lambda: write_note(lambda: notes.set_label(feature, st.session_state[label])),
        )
        known = sorted({tag for found in notes.tags().values() for tag in found})
        st.multiselect(
            "Tags",
            known,
            list(row["tags"]),
            key=tags,
            accept_new_options=True,
            on_change=lambda: write_note(lambda: notes.set_tags(feature, st.session_state[tags])),
        )
        st.caption("Kept beside the index. Empty the label to get the automatic one back.")
        history = [change for change in notes.history(feature) if not change.undone]
        st.button(
            "Undo the last change",
            key="undo",
            icon=":material/undo:",
            disabled=not history,
            on_click=undo,
            args=(here, feature),
        )


def undo(here: data.Here, feature: int) -> None:
    """Takes the last change back, and makes the fields show what then holds."""
    write_note(lambda: here.index.notes.undo(feature))
    for name in ("label", "tags"):
        st.session_state.pop(f"{name}-{feature}", None)


def link_popover(feature: int) -> None:
    """The address of what is shown, to copy."""
    with st.popover("Link", icon=":material/link:"):
        address = str(st.context.url or "").split("?", 1)[0]
        shown = st.query_params.to_dict() | {"feature": str(feature)}
        st.code(f"{address}?{urlencode(shown)}", language=None, wrap_lines=True)
