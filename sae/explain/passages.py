"""What an explainer is shown of a feature, and the held-out passages on which it is tested.

A passage is a window of text as one string, in which chosen tokens stand between `OPEN` and
`CLOSE`. Shown passages come from the train split, tested ones from documents held out from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sae.base.errors import UserError
from sae.explain.rivals import rivals_of
from sae.features.contexts import silent_rows
from sae.features.examples import strongest
from sae.features.index import FeatureIndex
from sae.features.labels import FEWEST_HELDOUT, Labeller
from sae.features.windows import Window, fold

OPEN, CLOSE = "⟦", "⟧"
"""Rare in text and code, unlike << and >>; where a text has them, it is shown with [ and ]."""
NEW_TEXT = " [new text] "
REACH = 12
"""Tokens of a passage on either side of the one that it is about."""
SHOWN = 20
MARKED_SHARE = 0.3
"""A token of a passage is marked if it has this share of the passage's largest activation."""
STRENGTHS = 5
"""Firings are drawn from so many intervals of activation, as many from each."""
_PLAIN = str.maketrans({OPEN: "[", CLOSE: "]"})


@dataclass(frozen=True)
class Passage:
    """`truth`: whether the feature fires in it, or is what the marks say. `strength`: its largest
    activation in tenths of the feature's maximum."""

    text: str
    truth: bool = True
    strength: int = 0


@dataclass(frozen=True)
class Material:
    """Of one feature: train passages with marks; held-out ones without, and with right and wrong
    marks, half of each true, in random order."""

    feature: int
    shown: list[Passage]
    detection: list[Passage]
    fuzzing: list[Passage]


class Gatherer:
    """Draws the material of features of one index; the same for the same `seed`.

    Args:
        passages: of each test at most, half of them true.

    Raises:
        UserError: the index has no held-out text.
    """

    def __init__(self, index: FeatureIndex, passages: int = 40, seed: int = 0) -> None:
        self.index, self.half, self.seed = index, passages // 2, seed
        text = (index.tokens_ST, index.vocabulary, index.documents, index.meta["splits"])
        labeller = Labeller(*text)
        if labeller.train is None or labeller.heldout is None:
            raise UserError(
                f"{index.folder} holds text of one split alone; explanations are made on one and "
                "tested on the other: index more tokens."
            )
        self.text, self.train, self.heldout = labeller.text, labeller.train, labeller.heldout

    def material(self, feature: int) -> Material | None:
        """None where held-out text has too few contexts that fire the feature, or leave it be."""
        rng = np.random.default_rng((self.seed, feature))
        rows, acts = self.index.slices(feature)
        begin, end = np.searchsorted(rows, [self.heldout.first, self.heldout.last])
        if not begin or end - begin < FEWEST_HELDOUT:  # the train split comes first
            return None
        shown = self._shown(feature, rows[:begin], acts[:begin], rng)
        fired = rows[begin:end]
        positive = fired[_of_every_strength(acts[begin:end], 4 * self.half, rng)].astype(np.int64)
        positive = positive[fold(self.index.tokens_ST, positive)[0]][: 2 * self.half]
        negative = self._silent_windows(feature, fired, positive, rng)
        n = min(self.half, len(positive), len(negative))
        if n < FEWEST_HELDOUT:
            return None
        windows = self._windows(positive, feature)
        told = [Passage(self._text(window)) for window in windows[:n]]
        told += [Passage(self._text(window), False) for window in negative[:n]]
        fuzzing = self._fuzzing(windows, rng)
        return Material(feature, shown, _shuffled(told, rng), _shuffled(fuzzing, rng))

    def _shown(
        self, feature: int, rows: np.ndarray, acts: np.ndarray, rng: np.random.Generator
    ) -> list[Passage]:
        """The strongest contexts and some of every strength, half and half, strongest first."""
        top = strongest(acts.view(np.uint16), SHOWN)
        others = _of_every_strength(acts, 2 * SHOWN, rng)
        top = top[fold(self.index.tokens_ST, rows[top])[0]][: SHOWN // 2]
        chosen = np.concatenate([top, others])
        chosen = chosen[fold(self.index.tokens_ST, rows[chosen])[0]][:SHOWN]
        scale = 10 / float(self.index.table["max"].iloc[feature])
        found = [
            Passage(self._text(one, _active(one)), True, int(np.ceil(scale * one.acts.max())))
            for one in self._windows(rows[chosen], feature)
        ]
        return sorted(found, key=lambda passage: -passage.strength)

    def _silent_windows(
        self, feature: int, fired: np.ndarray, positive: np.ndarray, rng: np.random.Generator
    ) -> list[Window]:
        """Windows in which the feature fires nowhere, about rows of the sorts of `silent_rows`."""
        rivals = rivals_of(self.index, feature)
        rows = silent_rows(self.text, self.heldout, fired, positive, rng, rivals)
        rows = rng.permutation(rows)
        rows = rows[fold(self.index.tokens_ST, rows)[0]]
        return [window for window in self._windows(rows, feature) if not window.acts.any()]

    def _fuzzing(self, windows: Sequence[Window], rng: np.random.Generator) -> list[Passage]:
        """As many passages with its own tokens marked as with the marks moved to silent ones.

        They are of different contexts, unless the feature has too few. All of them fire it, so that
        nothing but the marks tells.
        """
        n = min(self.half, len(windows))
        right = [Passage(self._text(window, _active(window))) for window in windows[:n]]
        wrong = []
        for window in windows[-n:]:
            moved = _moved(_active(window), window.acts, rng)
            if moved is not None:
                wrong.append(Passage(self._text(window, moved), False))
        n = min(len(right), len(wrong))
        return right[:n] + wrong[:n]

    def _windows(self, rows: np.ndarray, feature: int) -> list[Window]:
        """About each row; without BOS, which is not text."""
        if not len(rows):
            return []
        found = self.index.windows(rows.astype(np.int64), feature, REACH)
        context = self.index.context
        return [_from(window, int(window.start_row % context == 0)) for window in found]

    def _text(self, window: Window, marked: np.ndarray | None = None) -> str:
        ids = window.token_ids
        pieces = [
            NEW_TEXT if token == self.index.meta.get("bos_id") else piece.translate(_PLAIN)
            for token, piece in zip(ids, self.index.vocabulary.display(ids), strict=True)
        ]
        return _with_marks(pieces, np.zeros(len(ids), bool) if marked is None else marked)


def _from(window: Window, first: int) -> Window:
    """The window from an offset on."""
    ids, acts = window.token_ids[first:], window.acts[first:]
    return Window(ids, acts, window.start_row + first, window.focus - first)


def _active(window: Window) -> np.ndarray:
    return window.acts >= max(MARKED_SHARE * float(window.acts.max()), 1e-12)


def _moved(marked: np.ndarray, acts: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """The pattern of marks shifted, round the ends, to where every token is silent; None if it fits
    nowhere. Runs of marks stay runs, so that their form gives nothing away."""
    for shift in rng.permutation(np.arange(1, len(marked))):
        moved = np.roll(marked, shift)
        if not acts[moved].any():
            return moved
    return None


def _of_every_strength(acts: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Offsets of about `n` firings, strengths taking turns."""
    order = np.argsort(acts.view(np.uint16), kind="stable")
    parts = [rng.permutation(part) for part in np.array_split(order, STRENGTHS)]
    turn = np.concatenate([np.arange(len(part)) for part in parts])
    return np.concatenate(parts)[np.argsort(turn, kind="stable")][:n]


def _shuffled(passages: list[Passage], rng: np.random.Generator) -> list[Passage]:
    return [passages[at] for at in rng.permutation(len(passages))]


def _with_marks(pieces: Sequence[str], marked: np.ndarray) -> str:
    parts: list[str] = []
    inside = False
    for piece, mark in zip(pieces, marked, strict=True):
        if mark != inside:
            parts.append(OPEN if mark else CLOSE)
        inside = bool(mark)
        parts.append(piece)
    return "".join(parts) + (CLOSE if inside else "")
