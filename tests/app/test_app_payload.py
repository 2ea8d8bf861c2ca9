"""What the token view is given, against the index and against plain counting."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app import charts, payload
from sae.features import FeatureIndex, gallery

HOSTILE_FEATURE = 7


@pytest.fixture(scope="module")
def index(hostile_run: Path) -> FeatureIndex:
    return FeatureIndex.open(hostile_run / "features" / "hostile")


def test_percentiles_are_shares_of_activations_not_larger() -> None:
    acts = np.array([0.5, 1.0, 1.0, 4.0], np.float16)
    ranks = payload.Percentiles(acts)
    given = np.array([0.25, 0.5, 1.0, 3.0, 4.0, 9.0], np.float32)
    assert ranks(given).tolist() == [(acts <= value).mean() for value in given]


def test_percentiles_of_a_dead_feature() -> None:
    assert payload.Percentiles(np.empty(0, np.float16))(np.array([1.0])).tolist() == [1.0]


def test_an_example_says_where_it_fires_and_how_strongly(index: FeatureIndex) -> None:
    ranks = payload.Percentiles(index.slices(HOSTILE_FEATURE)[1])
    for found in index.examples(HOSTILE_FEATURE, "top", n=8):
        shown = payload.example(index, found, ranks)
        tokens = shown["tokens"]
        assert tokens["focus"] == found.window.focus
        assert tokens["position"] + tokens["focus"] == found.row % index.context
        activation, percentile = tokens["at"][str(found.window.focus)]
        assert activation == pytest.approx(found.activation, rel=1e-4)
        assert percentile == pytest.approx(found.percentile, abs=1e-4)
        assert {int(i) for i in tokens["at"]} == set(np.flatnonzero(found.window.acts).tolist())
        assert len(tokens["text"]) == len(tokens["id"]) == len(found.window)


def test_payloads_are_strict_json(index: FeatureIndex) -> None:
    ranks = payload.Percentiles(index.slices(HOSTILE_FEATURE)[1])
    examples = [payload.example(index, e, ranks) for e in index.examples(HOSTILE_FEATURE, "top")]
    view = index.view()
    cards = [payload.card(index, view.loc[f].to_dict()) for f in (0, HOSTILE_FEATURE)]
    specs = [
        charts.activation_histogram(index.histogram(0)),
        charts.logit_histogram(index.logit_histogram(0)),
        charts.density_histogram(view["density"].to_numpy()),
        charts.activation_histogram(index.histogram(4)),  # dead
    ]
    json.dumps([examples, cards, specs], allow_nan=False)


def test_charts_show_every_firing(index: FeatureIndex) -> None:
    spec = charts.activation_histogram(index.histogram(0))
    assert sum(bar["count"] for bar in spec["data"]["values"]) == len(index.slices(0)[0])
    density = charts.density_histogram(index.table["density"].to_numpy())
    alive = int((index.table["count"] > 0).sum())
    assert sum(bar["count"] for bar in density["data"]["values"]) == alive


def test_a_density_of_nothing_is_a_chart_too() -> None:
    assert charts.density_histogram(np.zeros(5))["data"]["values"] == []


def test_the_gallery_shows_no_dead_no_dense_and_no_twins(index: FeatureIndex) -> None:
    view = index.view()
    shown = gallery.interesting(index, view, n=8)
    assert len(set(shown)) == 8
    assert (view.loc[shown, "density"] <= gallery.DENSE).all()
    assert (view.loc[shown, "count"] >= gallery.RARE).all()
    assert view.loc[shown, "label"].is_unique
    for feature in shown:
        near = {n.feature for n in index.neighbours(feature) if n.value >= gallery.ALIKE}
        assert not near & set(shown)


def test_a_star_brings_a_feature_to_the_front(index: FeatureIndex) -> None:
    view = index.view()
    usable = gallery.candidates(view)
    view.loc[usable[-1], "star"] = True
    assert gallery.candidates(view)[0] == usable[-1]


def test_sorts_of_labels_take_turns() -> None:
    kinds = ["token", "context", "context", "tokens", "class", "class", "tokens", "user"]
    labels = ["a", "what follows b", "c after d", "e or f", "digits", "newlines", "g or h", "mine"]
    table = pd.DataFrame({"label_kind": kinds, "label": labels, "star": False})
    table["label_score"] = [1.0, 0.9, 0.9, 0.9, 1.0, 0.9, 0.5, None]
    assert gallery.in_turns(table, list(range(8))) == [7, 2, 4, 3, 1, 5, 0, 6]


def test_sparkline_is_log_and_normalised(index: FeatureIndex) -> None:
    heights = payload.sparkline(index.histogram(0))
    assert max(heights) == 1.0
    counts = index.histogram(0).counts
    assert heights[int(np.argmax(counts))] == 1.0
    assert payload.sparkline(index.histogram(4)) == []
