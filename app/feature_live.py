"""Foot of the Feature page: a typed text, and how strongly this feature fires on its tokens."""

import streamlit as st

from app import component, data, figures, live, payload
from app.visible import markdown
from sae.base.errors import UserError


def draw(here: data.Here, feature: int, row: data.Row) -> None:
    """A closed section; the model is loaded when a text is read in it."""
    section = st.expander("Live test", icon=":material/edit_note:", key="live", on_change="rerun")
    if section.open:
        with section:
            test(here, feature, float(row["max"]))


@st.fragment
def test(here: data.Here, feature: int, largest: float) -> None:
    text = st.text_area(
        "Text",
        key="live-text",
        placeholder="Type a text to see where this feature fires, then press Ctrl+Enter",
        label_visibility="collapsed",
        persist_state="session",
    )
    if not text:
        st.caption("The model is loaded when there is a text to read.")
        return
    try:
        reading = live.read(here, text)
    except UserError as error:
        st.error(markdown(str(error)), title="The text cannot be read")
        return
    acts_T = reading.acts_of(feature)
    ranks = payload.Percentiles(here.index.slices(feature)[1])
    component.view(
        "text",
        "live-tokens",
        tokens=payload.tokens(here.index.vocabulary, reading.token_ids, acts_T, ranks(acts_T)),
        high=max(largest, float(acts_T.max(initial=0.0))),
        breaks=True,
    )
    fired = int((acts_T > 0).sum())
    strongest = figures.number(float(acts_T.max(initial=0.0)))
    st.caption(
        f"Fires on {fired} of {len(acts_T) - 1} tokens; strongest {strongest} "
        f"(in the index {figures.number(largest)})."
        + (" The text was cut to the model's context." if reading.cut else "")
    )
