"""Overview: how good the coder is, and some of its features to start with."""

from typing import Any

import numpy as np
import streamlit as st

from app import charts, component, data, figures, pagekit, payload, state
from app.visible import markdown, pieces

DENSE, VERY_DENSE = 0.01, 0.1
EV_MEANING = "EV = 1 − FVU on held-out text, without position 0."
L0_MEANING = "Features that fire on a token, on average."
RECOVERED_MEANING = (
    "Share of the model's loss, against mean-ablation of the site, that the reconstruction keeps."
)
ALIVE_MEANING = "Features that fired at least once in so many tokens."


def interval(metric: dict[str, Any], form: Any) -> str:
    """The bootstrap interval and token count of a metric, for a tooltip."""
    text = f"{form(metric['value'])}"
    if metric.get("low") is not None and metric.get("high") is not None:
        text += f", 95 % interval {form(metric['low'])} to {form(metric['high'])}"
    return f"{text} ({figures.count(metric.get('tokens') or 0)} tokens)"


def corpus_words(corpus: dict[str, Any] | str) -> str:
    """The description of a corpus as a sentence: "python (numpy 2.4.6, torch 2.13.0)"."""
    if isinstance(corpus, str):
        return corpus
    versions = corpus.get("versions", {})
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    rest = {
        key: value for key, value in corpus.items() if key not in ("source", "versions", "files")
    }
    others = ", ".join(f"{key} {value}" for key, value in rest.items() if value is not None)
    details = "; ".join(filter(None, [named, others]))
    source = str(corpus.get("source", "–"))
    return f"{source} ({details})" if details else source


def tile(name: str, metric: dict[str, Any] | None, form: Any, meaning: str) -> None:
    if metric is None or metric.get("value") is None:
        st.metric(name, "–", help=f"{meaning}\n\nNot in this evaluation.", border=True)
        return
    help = f"{meaning}\n\n{interval(metric, form)}"
    st.metric(name, form(metric["value"]), help=help, border=True)


def quality_tiles(here: data.Here) -> None:
    """EV, L0, ΔCE recovered, alive and dense, each with its interval in the tooltip."""
    evaluation = data.evaluation(here.run, here.coder)
    with st.grid(5, min_column_width=150):
        if evaluation.found is not None:
            evaluated_tiles(evaluation.found["metrics"])
        dense_tile(here)
    if evaluation.outdated:
        pagekit.tell_missing(
            "The evaluation that is here is of another coder of this name",
            "It was made with other weights than are here now. To measure these:",
            here.run.command("evaluate"),
        )
    elif evaluation.found is None:
        pagekit.tell_missing(
            "This coder has not been evaluated yet",
            "Explained variance, L0, ΔCE and the share of living features come from:",
            here.run.command("evaluate"),
        )


def evaluated_tiles(metrics: dict[str, Any]) -> None:
    ev, recovered = metrics.get("ev"), metrics.get("ce_recovered_mean")
    tile("Explained variance", ev, "{:.3f}".format, EV_MEANING)
    tile("L0", metrics.get("l0"), "{:.1f}".format, L0_MEANING)
    tile("ΔCE recovered", recovered, "{:.3f}".format, RECOVERED_MEANING)
    alive = metrics.get("alive")
    tile(alive_name(alive), alive, figures.share, ALIVE_MEANING)


def dense_tile(here: data.Here) -> None:
    density = here.table()["density"].to_numpy()
    very = figures.share(float((density > VERY_DENSE).mean()))
    st.metric(
        "Dense",
        figures.share(float((density > DENSE).mean())),
        help=f"Features that fire on more than {DENSE:.0%} of the tokens of the index; "
        f"{very} fire on more than {VERY_DENSE:.0%}.",
        border=True,
    )


def alive_name(metric: dict[str, Any] | None) -> str:
    return f"Alive ({figures.count(metric['tokens'])} tokens)" if metric else "Alive"


def density_panel(here: data.Here) -> None:
    density = here.table()["density"].to_numpy()
    dead = int((density == 0).sum())
    st.markdown("##### Features by density")
    st.vega_lite_chart(
        charts.density_histogram(density), alt="Number of features by the logarithm of density"
    )
    silent = f"{dead:,} of {len(density):,} features never fire here" if dead else "All fire here"
    st.caption(f"{silent} ({figures.count(here.index.tokens_indexed)} tokens indexed).")


def facts_panel(here: data.Here) -> None:
    meta = here.index.meta
    scores = here.table()["label_score"].to_numpy(np.float64)
    good = float((scores >= 0.8).mean())
    facts = [
        ["model", str(meta["model"]).rsplit("/", 1)[-1], str(meta["model"])],
        ["site", meta["site"], "Hook point, by TransformerLens's name"],
        ["coder", meta["architecture"], "Architecture"],
        ["features", f"{here.index.width:,}", "Width of the dictionary, F"],
        ["model width", f"{meta['d_in']:,}", "D"],
        ["tokens", figures.count(here.index.tokens_indexed), "Indexed, without position 0"],
        ["context", f"{here.index.context}", "Tokens per packed row, T"],
        [
            "well labelled",
            figures.share(good),
            "Automatic labels (a baseline) with an F1 of 0.8 or more on held-out text",
        ],
    ]
    st.markdown("##### What this is")
    component.view("facts", "overview-facts", items=facts, rows=True)
    st.caption(f"Corpus: {markdown(corpus_words(meta.get('corpus', {})))}")
    controls_table(here)


def controls_table(here: data.Here) -> None:
    """Explained variance beside that of the controls, as bars."""
    found = data.evaluation(here.run, here.coder).found
    if not found:
        return
    names = {"pca": "PCA of the same rank"}
    rows = [(f"{here.coder} (this coder)", found["metrics"].get("ev"))]
    rows += [
        (names.get(name, name.replace("_", " ").capitalize()), metrics.get("ev"))
        for name, metrics in found.get("controls", {}).items()
    ]
    items = [
        {"text": pieces(name), "value": max(ev["value"], 0.0), "shown": f"{ev['value']:.3f}"}
        for name, ev in rows
        if ev is not None and ev.get("value") is not None
    ]
    if len(items) > 1:
        st.markdown("##### Explained variance beside controls")
        component.view("bars", "overview-controls", items=items, largest=1.0, words=True)


def open_random() -> None:
    """Opens a feature that fires."""
    here = pagekit.here()
    alive = np.flatnonzero(here.table()["count"].to_numpy() > 0)
    if len(alive):
        state.open_feature(int(np.random.default_rng().choice(alive)))


here = pagekit.here()
with st.container(horizontal=True, vertical_alignment="center"):
    st.markdown(f"## {markdown(here.coder)}", width="stretch")
    st.button(
        "Random feature",
        icon=":material/casino:",
        on_click=open_random,
    )

quality_tiles(here)
left, right = st.columns([3, 2], gap="large")
with left:
    density_panel(here)
with right:
    facts_panel(here)

st.markdown("##### Features to start with")
component.view(
    "cards",
    "gallery",
    pagekit.open_on_click,
    items=[payload.card(here.index, here.row(f)) for f in here.gallery()],
    **pagekit.link_base(),
)
