"""Right two thirds of the Feature page: contexts, and the document that one of them is from."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import component, data, figures, pagekit, payload, state
from app.visible import markdown, pieces

KINDS = {
    "top": "Top",
    "quantiles": "Quantiles",
    "bin": "Bin",
    "random": "Random",
    "near-miss": "Near-miss",
}
CONTEXTS = {"10": "10", "32": "32", "full": "Full"}
HINTS = {
    "top": "The strongest activations, duplicates folded.",
    "quantiles": "A sample from each tenth of the nonzero activations, strongest tenth first.",
    "bin": "A sample from one bar of the histogram.",
    "random": "A sample of all places where it fires.",
    "near-miss": "Its usual tokens, in places where it stays silent.",
}
ALSO_ACTIVE = 12


def draw(here: data.Here, feature: int, row: data.Row) -> None:
    """The bar of choices and the examples; then the document, if one was clicked."""
    ranks = payload.Percentiles(here.index.slices(feature)[1])
    with st.container(horizontal=True, vertical_alignment="center"):
        _choice("tab", "Examples", KINDS, "top")
        st.space("stretch")
        _choice("context", "Context", CONTEXTS, "10", help="Tokens on either side")
    kind = state.value("tab", "top", state.one_of(list(KINDS)))
    examples(here, feature, row, ranks, kind, choices(here, feature, kind))
    clicked = st.session_state.pop("clicked-row", None)
    if clicked is not None:
        document(here, feature, row, clicked)


def _choice(
    key: str, label: str, options: Mapping[str, str], default: str, help: str | None = None
) -> None:
    """Buttons of which one is always chosen; what they choose is `key` of the page's state."""
    st.segmented_control(
        label,
        list(options),
        key=key,
        format_func=options.__getitem__,
        on_change=state.bound(key, default, state.one_of(list(options))),
        label_visibility="collapsed",
        required=True,
        help=help,
    )


def choices(here: data.Here, feature: int, kind: str) -> dict[str, Any]:
    """Options of `FeatureIndex.examples` for this kind, with the widgets to set them."""
    if kind == "random":
        seed = state.value("seed", 0, int)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(HINTS[kind], width="stretch")
            st.button(
                "Draw again",
                icon=":material/refresh:",
                on_click=lambda: state.put(seed=seed + 1),
            )
        return {"seed": abs(seed)}
    st.caption(HINTS[kind])
    if kind != "bin":
        return {}
    histogram = here.index.histogram(feature)
    filled = [i for i, count in enumerate(histogram.counts) if count]
    if not filled:
        return {"low": 0.0, "high": 0.0}
    chosen = state.value("bin", filled[-1], int)
    names = {
        i: f"{figures.number(histogram.edges[i])} – {figures.number(histogram.edges[i + 1])}"
        f" ({int(histogram.counts[i]):,})"
        for i in filled
    }
    shown = chosen if chosen in names else filled[-1]
    st.session_state["bin"] = shown
    st.select_slider(
        "Bin",
        filled,
        key="bin",
        format_func=names.__getitem__,
        on_change=lambda: state.put(bin=st.session_state["bin"]),
    )
    return {"low": float(histogram.edges[shown]), "high": float(histogram.edges[shown + 1])}


def examples(
    here: data.Here,
    feature: int,
    row: data.Row,
    ranks: payload.Percentiles,
    kind: str,
    options: dict[str, Any],
) -> None:
    context = state.value("context", "10", state.one_of(list(CONTEXTS)))
    found = here.index.examples(
        feature, kind, context=None if context == "full" else int(context), **options
    )
    if not found:
        st.caption(
            "This feature never fires in the indexed text."
            if not row["count"]
            else "There are none."
        )
        return
    component.view(
        "examples",
        "examples",
        remember_row,
        items=[payload.example(here.index, one, ranks) for one in found],
        high=float(row["max"]),
        breaks=context == "full",
    )


def remember_row(event: component.Event) -> None:
    st.session_state["clicked-row"] = int(event["row"])


@st.dialog("Document", width="large", icon=":material/article:")
def document(here: data.Here, feature: int, row: data.Row, clicked: int) -> None:
    """The whole packed row that an example is from, and what else fires on its token."""
    index = here.index
    about = index.document_of(clicked)
    split = "held-out" if about.split == "heldout" else about.split
    st.markdown(f"**{markdown(about.title or about.id)}**")
    st.caption(
        f"{markdown(about.id)} · {split} · packed row {clicked // index.context}, "
        f"position {clicked % index.context} of {index.context}"
    )
    ranks = payload.Percentiles(index.slices(feature)[1])
    left, right = st.columns([2, 1], gap="medium")
    with left.container(height=460):
        component.view(
            "text",
            "document",
            tokens=payload.window(index, index.window(clicked, feature, None), ranks),
            high=float(row["max"]),
            breaks=True,
            scroll=True,
        )
    labels = here.table()["label"]
    with right:
        st.markdown("**Also active on this token**")
        items = [
            {"feature": other, "text": pieces(str(labels.iloc[other])), "value": round(act, 4)}
            for other, act in index.active_at(clicked)
            if other != feature
        ]
        component.view(
            "bars",
            "also-active",
            pagekit.open_on_click,
            items=items[:ALSO_ACTIVE],
            **pagekit.link_base(),
        )
