"""Prompt: which features fire on each token of a typed text."""

from typing import Any

import numpy as np
import streamlit as st

from app import component, data, figures, live, pagekit, payload, state
from app.visible import markdown, pieces
from sae.base.errors import UserError

EXAMPLES = {
    "A docstring": 'def mean(values):\n    """Return the mean of a list of numbers.\n\n    '
    'Raises ValueError if the list is empty.\n    """\n',
    "A dialogue": "“I have seen him before,” said Holmes, and he closed the door quietly.",
    "An error": "TypeError: unsupported operand type(s) for +: 'int' and 'str'",
}
DENSITIES = {"1": "all", "0.1": "≤ 10 %", "0.01": "≤ 1 %"}
COUNTS = ["10", "20", "40"]
TOP_IN_TIP = 3
DENSITY_HINT = "Hides features that fire on more tokens of the index than this."
MEANINGS = {
    "activation": "The raw activation.",
    "percentile": "How much of the feature's own activations in the index are not larger.",
    "surprise": "Activation over density: large for features that seldom fire.",
}


def text_input() -> str:
    """The text, from the URL or typed."""
    write_back = state.bound("text", "", clears=("token",))
    text = st.text_area(
        "Text",
        key="text",
        height=110,
        on_change=write_back,
        placeholder="Type a text, then press Ctrl+Enter",
        label_visibility="collapsed",
        max_chars=live.MOST_CHARACTERS,
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Read", type="primary", icon=":material/visibility:")
        for name, example in EXAMPLES.items():
            st.button(name, type="tertiary", on_click=use_example, args=(example,))
    return text or ""


def use_example(text: str) -> None:
    state.put(text=text, token=None)


def choose(name: str, label: str, options: list[str], default: str, names: Any, help: str) -> str:
    write_back = state.bound(name, default, state.one_of(options))
    st.segmented_control(
        label,
        options,
        key=name,
        format_func=names,
        on_change=write_back,
        required=True,
        help=help,
    )
    return state.value(name, default, state.one_of(options))


def on_token(event: component.Event) -> None:
    if event["kind"] == "token":
        state.put(token=int(event["token"]))
    else:
        pagekit.open_on_click(event)


def shown_value(value: float, rank: str) -> str:
    return figures.percent(value) if rank == "percentile" else figures.number(value)


def strip(here: data.Here, reading: live.Reading, found: live.Firings, selected: int) -> None:
    """The tokens, coloured by what the reconstruction misses."""
    tokens = payload.tokens(here.index.vocabulary, reading.token_ids, reading.error)
    labels = here.table()["label"]
    tokens["selected"] = selected
    tokens["notes"] = {
        str(position): [
            [f"feature {found.features[i]}", short_label(labels.iloc[found.features[i]])]
            for i in found.at(position, rank)[:TOP_IN_TIP]
        ]
        for position in range(1, len(reading.token_ids))
    }
    component.view(
        "text",
        "strip",
        on_token,
        tokens=tokens,
        high=max(0.3, float(reading.error.max(initial=0.0))),
        valueName="error",
        share=True,
        breaks=True,
        pick=True,
        first=1,
    )


def short_label(label: str, most: int = 28) -> str:
    text = pieces(str(label))
    plain = text if isinstance(text, str) else "".join(text)
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def token_features(here: data.Here, found: live.Firings, position: int) -> None:
    """The features of the chosen token, best by the chosen rank first."""
    labels, values = here.table()["label"], found.by(rank)
    items = [
        {
            "feature": int(found.features[i]),
            "text": pieces(str(labels.iloc[found.features[i]])),
            "value": float(f"{values[i]:.5g}"),
            "extra": [figures.number(float(found.acts[i]))] if rank != "activation" else [],
            "shown": shown_value(float(values[i]), rank),
            "note": f"activation {found.acts[i]:.3g}, percentile {found.percentile[i]:.1%}, "
            f"density {figures.share(float(found.density[i]))}",
        }
        for i in found.at(position, rank)
    ]
    head = ["feature", *(["activation"] if rank != "activation" else []), rank]
    with st.container(height=680, border=False):
        component.view(
            "bars",
            "token-features",
            on_token,
            items=items,
            head=head,
            empty="No feature that is shown fires here.",
            **pagekit.link_base(),
        )


def heat_map(here: data.Here, reading: live.Reading, found: live.Firings, n: int) -> None:
    """The top features by the tokens."""
    labels, values = here.table()["label"], found.by(rank)
    scaled = np.log1p(values) if rank == "surprise" else values
    scaled = scaled / max(float(scaled.max(initial=0.0)), 1e-30)
    items = []
    for feature in found.top_features(rank, n).tolist():
        own = np.flatnonzero(found.features == feature)
        cells = {
            str(found.positions[i]): [
                float(f"{found.acts[i]:.4g}"),
                round(float(scaled[i]), 3),
                [
                    ["percentile", f"{found.percentile[i]:.1%}"],
                    ["density", figures.share(float(found.density[i]))],
                ],
            ]
            for i in own
        }
        items.append({"feature": feature, "text": pieces(str(labels.iloc[feature])), "at": cells})
    component.view(
        "heat",
        "heat",
        on_token,
        tokens=payload.tokens(
            here.index.vocabulary, reading.token_ids, np.zeros(len(reading.token_ids))
        ),
        items=items,
        selected=selected,
        first=1,
        **pagekit.link_base(),
    )


here = pagekit.here()
st.markdown("## Prompt")
text = text_input()
if not text.strip():
    st.caption("The model is loaded when there is a text to read.")
    st.stop()
try:
    reading = live.read(here, text)
except UserError as error:
    st.error(markdown(str(error)), title="The text cannot be read")
    st.stop()

with st.container(horizontal=True, vertical_alignment="bottom"):
    rank = choose(
        "rank",
        "Rank by",
        list(live.RANKS),
        "activation",
        live.RANKS.__getitem__,
        "\n".join(f"- {live.RANKS[name]}: {meaning}" for name, meaning in MEANINGS.items()),
    )
    densest = choose(
        "density", "Density", list(DENSITIES), "1", DENSITIES.__getitem__, DENSITY_HINT
    )
    n = int(choose("n", "Features", COUNTS, "20", str, "Rows of the heat map."))

found = live.firings(here.index, reading, float(densest))
last = len(reading.token_ids) - 1
selected = min(max(state.value("token", last, int), 1), last)
left, right = st.columns([3, 2], gap="large")
with left:
    st.markdown("##### Tokens")
    strip(here, reading, found, selected)
    missed = float(reading.error[1:].mean())
    cut = " The text was cut to the model's context." if reading.cut else ""
    st.caption(
        "Colour: the share of a token's squared norm that the reconstruction misses, "
        f"{figures.share(missed)} on average. Click a token for its features.{cut}"
    )
    st.markdown("##### Features by tokens")
    heat_map(here, reading, found, n)
with right:
    name = payload.token_name(here.index.vocabulary, int(reading.token_ids[selected]))
    name = name if isinstance(name, str) else "".join(name)
    st.markdown(f"##### Features on `{name.replace('`', 'ˋ')}` · {selected}")
    token_features(here, found, selected)
