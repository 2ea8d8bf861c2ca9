"""Charts as Vega-Lite specifications (plain dicts: building Altair objects costs ten times more).

Colours are the theme's: a nominal scale with a fixed order picks the categorical colour.
"""

from typing import Any

import numpy as np

from sae.features import Histogram

Spec = dict[str, Any]
_FLOOR = 0.7
"""Foot of bars on a log axis: a count of one is still a bar."""
BIN_SELECTION = "bin"


def _colour(name: str) -> Spec:
    """The theme's colour for logits (its first) or for activations (its second)."""
    scale = {"domain": ["logits", "activations", "other"]}
    return {"datum": name, "type": "nominal", "scale": scale, "legend": None}


def _rows(histogram: Histogram) -> list[dict[str, float]]:
    edges, counts = histogram.edges, histogram.counts
    bars = zip(edges[:-1], edges[1:], counts, strict=True)
    return [
        {"bin": i, "low": float(low), "high": float(high), "count": int(count)}
        for i, (low, high, count) in enumerate(bars)
        if count > 0
    ]


def _tooltip(what: str) -> list[Spec]:
    return [
        {"field": "low", "type": "quantitative", "format": ".3~g", "title": "from"},
        {"field": "high", "type": "quantitative", "format": ".3~g", "title": "to"},
        {"field": "count", "type": "quantitative", "format": ",", "title": what},
    ]


def _bars(edges: np.ndarray, counts: np.ndarray, *, log: bool) -> Spec:
    """Encoding of bars from `low` to `high`. The domains are given, not left to the renderer: it
    draws once before it has the data, and would warn of empty ones."""
    top = float(np.max(counts, initial=1))
    scale = {"type": "log", "domain": [_FLOOR, 1.3 * top]} if log else {"domain": [0, 1.05 * top]}
    powers = [10**i for i in range(12) if 10**i <= top]
    low, high = float(edges[0]), float(edges[-1])
    return {
        "x": {
            "field": "low",
            "bin": "binned",
            "type": "quantitative",
            "title": None,
            "scale": {"domain": [low, high if high > low else low + 1], "nice": False},
            "axis": {"tickCount": 6, "grid": False, "format": ".3~r"},
        },
        "x2": {"field": "high"},
        "y": {
            "field": "count",
            "type": "quantitative",
            "title": None,
            "scale": scale | {"nice": False},
            "axis": {"format": "~s"} | ({"values": powers} if log else {"tickCount": 4}),
        },
        "y2": {"datum": _FLOOR if log else 0},
    }


def activation_histogram(histogram: Histogram) -> Spec:
    """Nonzero activations of a feature, log counts; a click selects the bin `BIN_SELECTION`."""
    chosen = {"param": BIN_SELECTION, "value": 1}
    return {
        "data": {"values": _rows(histogram)},
        "height": 170,
        "params": [{"name": BIN_SELECTION, "select": {"type": "point", "fields": ["bin"]}}],
        "mark": {"type": "bar", "cursor": "pointer", "binSpacing": 1},
        "encoding": _bars(histogram.edges, histogram.counts, log=True)
        | {
            "color": _colour("activations"),
            "opacity": {"condition": chosen, "value": 0.3},
            "tooltip": _tooltip("tokens"),
        },
    }


def logit_histogram(histogram: Histogram) -> Spec:
    """The feature's logit effects over the vocabulary, log counts."""
    return {
        "data": {"values": _rows(histogram)},
        "height": 130,
        "mark": {"type": "bar", "binSpacing": 1},
        "encoding": _bars(histogram.edges, histogram.counts, log=True)
        | {"color": _colour("logits"), "tooltip": _tooltip("tokens of the vocabulary")},
    }


def density_histogram(density_F: np.ndarray, bins: int = 48) -> Spec:
    """Features by log10 of their density; the dead ones have no place on a log axis."""
    alive = np.log10(density_F[density_F > 0].astype(np.float64))
    lowest = np.floor(alive.min(initial=-1.0))
    counts, edges = np.histogram(alive, bins=bins, range=(lowest, 0.0))
    rows = [
        {"low": float(a), "high": float(b), "count": int(n)} | _densities(a, b)
        for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
        if n > 0
    ]
    encoding = _bars(edges, counts, log=False)
    encoding["x"]["axis"] |= {"values": list(range(int(lowest), 1)), "labelExpr": _POWER}
    return {
        "data": {"values": rows},
        "height": 260,
        "mark": {"type": "bar", "binSpacing": 1},
        "encoding": encoding
        | {
            "color": _colour("logits"),
            "tooltip": [
                {"field": "from", "type": "nominal"},
                {"field": "to", "type": "nominal"},
                {"field": "count", "type": "quantitative", "format": ",", "title": "features"},
            ],
        },
    }


_POWER = (
    "datum.value == 0 ? '1' : '10⁻' + slice('⁰¹²³⁴⁵⁶⁷⁸⁹', abs(datum.value), abs(datum.value) + 1)"
)


def _densities(low: float, high: float) -> dict[str, str]:
    return {"from": f"{10**low:.2e}", "to": f"{10**high:.2e}"}
