"""What the token view is given: plain dicts and lists, made from the index.

The forms that `frontend/` draws are described where they are made. Texts are `visible.Pieces`;
nothing here is HTML.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from app import figures
from app.visible import Pieces, pieces
from sae.features import Example, FeatureIndex, Histogram, Vocabulary, Window

CARD_BEFORE = 4
"""Tokens before the focus on a card, whose lines are short and cut off on the right."""


class Percentiles:
    """Share of a feature's nonzero activations that are not larger than a given one, exactly; of a
    feature that has none, 1.

    Positive float16 sort as their bit patterns do, so one count of 16-bit integers answers all.
    """

    def __init__(self, acts_N: np.ndarray):
        bits = np.asarray(acts_N, np.float16).view(np.uint16)
        self.ranks = np.cumsum(np.bincount(bits, minlength=1))

    def __call__(self, acts: np.ndarray | float) -> np.ndarray:
        bits = np.asarray(acts, np.float16).view(np.uint16)
        if not self.ranks[-1]:
            return np.ones(bits.shape)
        return self.ranks[np.minimum(bits, len(self.ranks) - 1)] / self.ranks[-1]


def tokens(
    vocabulary: Vocabulary,
    token_ids: Sequence[int] | np.ndarray,
    values: np.ndarray,
    percentiles: np.ndarray | None = None,
    *,
    position: int = 0,
    focus: int | None = None,
) -> dict[str, Any]:
    """A run of tokens: `text` and `id` of each, `at` {offset: [value, percentile]} of those > 0.

    `position` is that of the first token in its packed row, `focus` an offset to underline.
    """
    values = np.asarray(values)
    at: dict[str, list[float | None]] = {}
    for offset in np.flatnonzero(values > 0).tolist():
        rank = None if percentiles is None else round(float(percentiles[offset]), 4)
        at[str(offset)] = [_short(values[offset]), rank]
    return {
        "text": [pieces(text) for text in vocabulary.display(token_ids)],
        "id": [int(token) for token in token_ids],
        "at": at,
        "position": position,
        "focus": focus,
    }


def window(index: FeatureIndex, shown: Window, ranks: Percentiles) -> dict[str, Any]:
    """A window of the index as `tokens`."""
    return tokens(
        index.vocabulary,
        shown.token_ids,
        shown.acts,
        ranks(shown.acts),
        position=shown.start_row % index.context,
        focus=shown.focus,
    )


def example(index: FeatureIndex, found: Example, ranks: Percentiles) -> dict[str, Any]:
    """An example: its tokens, `row` to open, and what its margin says."""
    return {
        "row": found.row,
        "tokens": window(index, found.window, ranks),
        "activation": _short(found.activation),
        "title": pieces(found.document.title or found.document.id),
        "split": found.document.split,
        "copies": found.copies,
        "group": _interval(found.interval),
    }


def _interval(interval: tuple[int, float, float] | None) -> list[Any] | None:
    if interval is None:
        return None
    number, low, high = interval
    return [number, _short(low), _short(high)]


def token_name(vocabulary: Vocabulary, token: int) -> Pieces:
    """A token that stands alone: the spaces at its ends are marked."""
    return pieces(vocabulary.name(int(token)), spaces=True)


def logit_bars(
    vocabulary: Vocabulary, ids: Iterable[int], logits: Iterable[float]
) -> list[dict[str, Any]]:
    """Bars of promoted or suppressed tokens."""
    return [
        {"text": token_name(vocabulary, token), "value": _short(logit), "note": f"id {int(token)}"}
        for token, logit in zip(ids, logits, strict=True)
    ]


def sparkline(histogram: Histogram) -> list[float]:
    """Heights in [0, 1] of a histogram on a log scale: log(1 + count), over the largest."""
    heights = np.log1p(np.asarray(histogram.counts, np.float64))
    top = heights.max(initial=0.0)
    return [round(float(h), 3) for h in heights / top] if top > 0 else []


def card(index: FeatureIndex, row: dict[str, Any], n: int = 2) -> dict[str, Any]:
    """A feature for the gallery: label, its strongest contexts, a sparkline, some numbers."""
    feature = int(row["id"])
    ranks = Percentiles(index.slices(feature)[1])
    runs = [
        window(index, _from(found.window, CARD_BEFORE), ranks)
        for found in index.examples(feature, "top", n=n, context=10)
    ]
    score = row["label_score"]
    return {
        "feature": feature,
        "label": pieces(str(row["label"])),
        "high": float(row["max"]),
        "runs": runs,
        "spark": sparkline(index.histogram(feature)),
        "foot": [
            f"density {figures.share(row['density'])}",
            f"max {figures.number(row['max'])}",
            *([f"F1 {score:.2f}"] if np.isfinite(score) else []),
        ],
    }


def _from(shown: Window, before: int) -> Window:
    """The window cut so that at most `before` tokens come before the focus."""
    cut = max(shown.focus - before, 0)
    return Window(shown.token_ids[cut:], shown.acts[cut:], shown.start_row + cut, shown.focus - cut)


def _short(value: float) -> float:
    """Five significant digits are all that anybody reads, and a third of the bytes."""
    return float(f"{float(value):.5g}")
