"""Left third of the Feature page: numbers, histograms, logits, tokens, neighbours."""

from typing import Any

import numpy as np
import streamlit as st

from app import charts, component, data, feature_header, figures, pagekit, payload, scorecard, state
from app.visible import pieces

ENRICHED = 10
NEIGHBOURS = {
    "Decoder": ("decoder", "Cosine of the decoder directions: what is written is alike."),
    "Encoder": ("encoder", "Cosine of the encoder directions: what is looked for is alike."),
    "Co-active": ("coactivation", "Tokens on which both fire, of those on which either does."),
}


def draw(here: data.Here, feature: int, row: data.Row) -> None:
    """All panels, top to bottom."""
    statistics(row)
    if row["count"]:
        scorecard.panel(here, row)
        activations(here, feature)
    logits(here, feature, row)
    if row["count"]:
        enrichment(here, feature)
    neighbours(here, feature)


def statistics(row: data.Row) -> None:
    items = [
        ["density", figures.share(row["density"]), "Share of the indexed tokens that fire it"],
        ["fires on", figures.count(row["count"]), f"{row['count']:,} tokens"],
        ["max", figures.number(row["max"]), "Largest activation"],
        ["mean", figures.number(row["mean"]), "Mean of the nonzero activations"],
        ["median", figures.number(row["p50"]), "Of the nonzero activations"],
        ["p99", figures.number(row["p99"]), "Of the nonzero activations"],
        ["enc·dec", figures.number(row["enc_dec_cosine"]), "Cosine of encoder and decoder rows"],
        ["‖decoder‖", figures.number(row["decoder_norm"]), "Norm of the decoder row"],
        ["positions", figures.number(row["position_entropy"], 2), ENTROPY_HINT],
    ]
    component.view("facts", "facts", items=items)


LOGIT_HINT = (
    "What the decoder direction adds to the logits, through the final layer norm's weight, centred "
    "over the vocabulary; the histogram has a log scale."
)
ENTROPY_HINT = "Entropy of the positions it fires at, over the most it could be (0: always one)"


def activations(here: data.Here, feature: int) -> None:
    """Histogram of the nonzero activations; a click on a bin shows its examples."""
    key = f"histogram-{here.coder}-{feature}"

    def choose_bin() -> None:
        chosen = st.session_state[key].selection.get(charts.BIN_SELECTION) or []
        if chosen:
            state.put(bin=int(chosen[0]["bin"]), tab="bin")

    st.markdown(
        "##### Activations",
        help="Nonzero activations; counts on a log scale. Click a bar for its examples.",
    )
    st.vega_lite_chart(
        charts.activation_histogram(here.index.histogram(feature)),
        key=key,
        on_select=choose_bin,
        alt="Histogram of the nonzero activations; choose a bar to see its examples",
    )


def logits(here: data.Here, feature: int, row: data.Row) -> None:
    """The tokens whose logits the feature lowers and raises most, and all of them together."""
    st.markdown("##### Logit effects", help=LOGIT_HINT)
    sides = {"suppressed": "Lowers", "promoted": "Raises"}
    for column, (side, title) in zip(st.columns(2, gap="small"), sides.items(), strict=True):
        items = payload.logit_bars(here.index.vocabulary, row[f"{side}_ids"], row[f"{side}_logits"])
        with column:
            component.view("bars", f"{side}-logits", items=items, head=[title])
    st.vega_lite_chart(
        charts.logit_histogram(here.index.logit_histogram(feature)),
        alt="Histogram of the logit effects over the vocabulary",
    )


def enrichment(here: data.Here, feature: int) -> None:
    """On which tokens it fires: how reliably, and how much of its mass lies there."""
    st.markdown("##### Tokens")
    table = here.index.enrichment(feature, ENRICHED)
    items = [enriched(here, found) for found in table.to_dict("records")]
    component.view(
        "bars",
        "enrichment",
        items=items,
        largest=1.0,
        head=["fires on", "P(fires | token)", "share"],
    )


def enriched(here: data.Here, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "text": payload.token_name(here.index.vocabulary, found["token_id"]),
        "value": float(found["mass_share"]),
        "extra": [figures.percent(found["p_fires"])],
        "shown": figures.percent(found["mass_share"]),
        "note": f"fires on {found['count']:,} of {found['corpus_count']:,} occurrences; "
        f"{figures.number(found['lift'])} times its density",
    }


def on_neighbour(event: component.Event) -> None:
    feature_header.go(int(event["feature"]))


def neighbours(here: data.Here, feature: int) -> None:
    """Related features, by three measures; only the open tab is computed."""
    st.markdown("##### Neighbours")
    write_back = state.bound("near", "Decoder", state.one_of(list(NEIGHBOURS)))
    tabs = st.tabs(list(NEIGHBOURS), key="near", on_change=write_back)
    labels = here.table()["label"]
    for tab, (name, (kind, meaning)) in zip(tabs, NEIGHBOURS.items(), strict=True):
        if not tab.open:
            continue
        with tab:
            found = here.index.neighbours(feature, kind)  # pyright: ignore[reportArgumentType]
            items = [
                {
                    "feature": other.feature,
                    "text": pieces(str(labels.iloc[other.feature])),
                    "value": float(np.round(other.value, 4)),
                    "shown": f"{other.value:.2f}",
                }
                for other in found
            ]
            component.view(
                "bars",
                f"near-{kind}",
                on_neighbour,
                items=items,
                largest=1.0,
                empty="It never fires together with another." if name == "Co-active" else "None.",
                **pagekit.link_base(),
            )
            st.caption(meaning)
