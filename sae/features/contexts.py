"""What stands around a row, for the rules of automatic labels; and fair samples of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from sae.features.token_classes import TokenFacts
from sae.features.windows import window_hashes

REACH = 12
"""How far "some tokens before" looks back."""
WINDOW = 4
"""Two contexts of a sample are the same if the tokens up to this far on either side are."""
MOST_KINDS = 8
NONE = -1


@dataclass(frozen=True)
class Contexts:
    """M rows as a rule sees them; token numbers int64, `NONE` beyond the packed row.

    `recent` (M, REACH): the tokens before, nearest first; `line`: first token of the current line
    that is not white space; `kind`: number of the document's kind.
    """

    current: np.ndarray
    following: np.ndarray
    recent: np.ndarray
    line: np.ndarray
    kind: np.ndarray
    position: np.ndarray

    @property
    def previous(self) -> np.ndarray:
        return self.recent[:, 0]

    def __len__(self) -> int:
        return len(self.current)

    def __getitem__(self, rows: np.ndarray | slice) -> "Contexts":
        return Contexts(*(getattr(self, field.name)[rows] for field in fields(self)))


class Text:
    """The indexed tokens, with what rules need to know of each row, and rows by token."""

    def __init__(self, tokens_ST: np.ndarray, facts: TokenFacts, documents: pd.DataFrame):
        self.tokens_ST = np.asarray(tokens_ST)
        self.facts = facts
        self.context = tokens_ST.shape[1]
        self.kinds, document_kinds = document_kind(documents)
        starts = documents["start"].to_numpy()
        lengths = np.diff(np.append(starts, tokens_ST.size))
        lengths[0] += starts[0]
        self.kind_R = np.repeat(document_kinds, lengths)
        self.line_R = line_starts(self.tokens_ST, facts).reshape(-1)

    def at(self, rows_M: np.ndarray) -> Contexts:
        """The contexts of any rows."""
        rows_M = np.asarray(rows_M, np.int64)
        position = rows_M % self.context
        flat = self.tokens_ST.reshape(-1)
        back = position[:, None] - np.arange(1, REACH + 1)
        recent = flat[np.maximum(rows_M[:, None] - np.arange(1, REACH + 1), 0)].astype(np.int64)
        following = flat[np.minimum(rows_M + 1, len(flat) - 1)].astype(np.int64)
        line_at = self.line_R[rows_M]
        return Contexts(
            flat[rows_M].astype(np.int64),
            np.where(position + 1 < self.context, following, NONE),
            np.where(back > 0, recent, NONE),  # BOS is not text
            np.where(line_at >= 0, flat[rows_M - position + line_at].astype(np.int64), NONE),
            self.kind_R[rows_M],
            position,
        )


class RowsByToken:
    """The rows of one split in which each token stands (position 0 left out)."""

    def __init__(self, tokens_ST: np.ndarray, sequences: tuple[int, int], facts: TokenFacts):
        start, stop = sequences
        self.classes_CV = facts.classes_CV
        self.context = tokens_ST.shape[1]
        flat = np.asarray(tokens_ST[start:stop]).reshape(-1)
        order = np.argsort(flat, kind="stable")
        order = order[order % self.context > 0]
        self.rows = order + start * self.context
        counts = np.bincount(flat[order], minlength=self.classes_CV.shape[1])
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.class_ends_CV = np.cumsum(np.where(self.classes_CV, counts, 0), axis=1)
        self.first, self.last = start * self.context, stop * self.context

    def draw_like(self, tokens_M: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each token a random row of the split in which it stands (none: left out)."""
        start, stop = self.starts[tokens_M], self.starts[tokens_M + 1]
        found = stop > start
        start, stop = start[found], stop[found]
        return self.rows[start + (rng.random(len(start)) * (stop - start)).astype(np.int64)]

    def draw_kin(self, tokens_M: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each token a random row with a token of a class that it is in (none: left out).

        Of several classes one is taken at random; within it, rows are equally likely.
        """
        lots = rng.random((len(self.classes_CV), len(tokens_M)))
        own_M = np.where(self.classes_CV[:, tokens_M], lots, -1.0).argmax(axis=0)
        own_M[~self.classes_CV[own_M, tokens_M]] = NONE
        draws = rng.random(len(tokens_M))
        rows = np.full(len(tokens_M), NONE)
        for kind in np.unique(own_M[own_M != NONE]):
            ends_V = self.class_ends_CV[kind]  # of each token's share of the class's rows
            nth = (draws[own_M == kind] * ends_V[-1]).astype(np.int64)
            if ends_V[-1]:
                tokens = np.searchsorted(ends_V, nth, "right")
                rows[own_M == kind] = self.rows[self.starts[tokens + 1] - (ends_V[tokens] - nth)]
        return rows[rows != NONE]

    def draw_of(
        self, rows_of: Sequence[np.ndarray], n: int, rng: np.random.Generator
    ) -> np.ndarray:
        """`n` rows of the split out of several sets (ascending), each set equally likely."""
        bounds = [np.searchsorted(rows, [self.first, self.last]) for rows in rows_of]
        cut = [rows[a:b] for rows, (a, b) in zip(rows_of, bounds, strict=True)]
        cut = [rows for rows in cut if len(rows)]
        if not cut:
            return np.empty(0, np.int64)
        lengths = np.array([len(rows) for rows in cut])
        which = rng.integers(0, len(cut), n)
        at = (np.cumsum(lengths) - lengths)[which] + (rng.random(n) * lengths[which]).astype(int)
        return np.concatenate(cut)[at].astype(np.int64)

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Random rows of the split."""
        return self.rows[rng.integers(0, len(self.rows), n)]


@dataclass(frozen=True)
class Sample:
    """Contexts in which a feature fires (the first `weights` of them) and in which it is silent.

    Of the positives, `weights` are their activations over the mean of the sample's, and `windows`
    hashes of the tokens about each, `WINDOW` on either side.
    """

    contexts: Contexts
    weights: np.ndarray
    windows: np.ndarray

    def take(self, chosen_M: np.ndarray) -> "Sample":
        """The sample of the chosen rows (M,) bool."""
        positives = chosen_M[: len(self.weights)]
        return Sample(self.contexts[chosen_M], self.weights[positives], self.windows[positives])

    @property
    def fires(self) -> np.ndarray:
        return np.arange(len(self.contexts)) < len(self.weights)


def draw_sample(
    text: Text,
    by_token: RowsByToken,
    rows_N: np.ndarray,
    acts_N: np.ndarray,
    threshold: float,
    n: int,
    strongest: int,
    rng: np.random.Generator,
    rivals: Sequence[np.ndarray] = (),
    seen: Sample | None = None,
) -> Sample | None:
    """A sample of one split; None if the feature never fires at or above `threshold` in it.

    Positives: the `strongest` of the firings at or above `threshold` and random others, duplicate
    contexts folded. Negatives: see `silent_rows`. Texts share licence headers and quotations, so
    that positives whose window is that of a positive of `seen` are left out.
    """
    known = np.empty(0, np.uint64) if seen is None else seen.windows
    begin, end = np.searchsorted(rows_N, [by_token.first, by_token.last])
    own_rows, own_acts = rows_N[begin:end], acts_N[begin:end]
    strong, windows = _positives(text, own_rows, own_acts, threshold, n, strongest, rng, known)
    if not len(strong):
        return None
    positive = own_rows[strong].astype(np.int64)
    silent = silent_rows(text, by_token, own_rows, positive, rng, rivals)
    weights = own_acts[strong].astype(np.float64)
    contexts = text.at(np.concatenate([positive, silent]))
    return Sample(contexts, weights / weights.mean(), windows)


def _positives(
    text: Text,
    rows: np.ndarray,
    acts: np.ndarray,
    threshold: float,
    n: int,
    strongest: int,
    rng: np.random.Generator,
    known: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of at most `n` firings at or above `threshold` in distinct contexts, none of which
    is `known`; and the hashes of these contexts."""
    strong = np.flatnonzero(acts >= threshold)
    if len(strong) > n:
        order = rng.permutation(strong)
        if strongest:
            top = strong[np.argpartition(acts[strong], -strongest)[-strongest:]]
            order = np.concatenate([top, order])
        strong = order[: 2 * n]
    hashes = window_hashes(text.tokens_ST, rows[strong], WINDOW)
    first = np.sort(np.unique(hashes, return_index=True)[1])
    kept = first[~np.isin(hashes[first], known)][:n]
    return strong[kept], hashes[kept]


def silent_rows(
    text: Text,
    by_token: RowsByToken,
    fired: np.ndarray,
    positive: np.ndarray,
    rng: np.random.Generator,
    rivals: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Rows of the split at which the feature is wholly silent (negatives).

    From as many draws as there are positives of each sort: any rows; rows with the positives'
    tokens; rows with tokens of the positives' classes, without which "capitalised words" would do
    for a feature of one such word; rows of the `rivals` (ascending, of each); and, half as many,
    rows after the tokens that stand before the positives. A draw in which the feature fires is
    dropped, not replaced, so that hard negatives are as frequent as the corpus has them; a row
    that is drawn twice is one row.

    Args:
        fired: ascending rows of the split at which the feature fires at all.
        positive: those that are positives.
    """
    flat = text.tokens_ST.reshape(-1)
    like = rng.permutation(positive)
    tokens = flat[like].astype(np.int64)
    draws = np.concatenate(
        [
            by_token.draw(len(positive), rng),
            by_token.draw_like(tokens, rng),
            by_token.draw_kin(tokens, rng),
            by_token.draw_like(flat[like[::2] - 1].astype(np.int64), rng) + 1,
            by_token.draw_of(rivals, len(positive), rng),
        ]
    )
    draws = np.unique(draws[(draws % text.context > 0) & (draws < by_token.last)])
    at = np.minimum(np.searchsorted(fired, draws), len(fired) - 1)
    return draws[fired[at] != draws]


def strong_rows(rows_N: np.ndarray, acts_N: np.ndarray, threshold: float) -> np.ndarray:
    """The rows at which the activation (positive float16) is at or above `threshold`."""
    # such numbers sort as their bit patterns do, and integers are compared far faster
    return rows_N[acts_N.view(np.uint16) >= np.float16(threshold).view(np.uint16)]


def document_kind(documents: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """(names of kinds, kind number of each document), from ids that end in `:kind`.

    A corpus with more than `MOST_KINDS` endings, or with none, has no kinds: all are `NONE`.
    """
    endings = [id_.rpartition(":")[2] if ":" in id_ else "" for id_ in documents["id"]]
    names = sorted(set(endings) - {""})
    if not 2 <= len(names) <= MOST_KINDS:
        return [], np.full(len(documents), NONE)
    numbers: Mapping[str, int] = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers.get(ending, NONE) for ending in endings])


def line_starts(tokens_ST: np.ndarray, facts: TokenFacts) -> np.ndarray:
    """Position (S, T) of the first token with text in the line so far; -1 where there is none.

    A token is in the line that the last newline before it began.
    """
    positions = np.arange(tokens_ST.shape[1])
    newline = facts.newline_V[tokens_ST]
    newline[:, 0] = True
    text = ~facts.blank_V[tokens_ST]
    text[:, 0] = False
    # the line of a position begins after the last newline strictly before it
    begun = np.maximum.accumulate(np.where(newline, positions, -1), axis=1)
    before = np.concatenate([np.full((len(tokens_ST), 1), -1), begun[:, :-1]], axis=1)
    last_text = np.maximum.accumulate(np.where(text, positions, -1), axis=1)
    earlier = np.concatenate([np.full((len(tokens_ST), 1), -1), last_text[:, :-1]], axis=1)
    first = text & (earlier <= before)
    found = np.maximum.accumulate(np.where(first, positions, -1), axis=1)
    return np.where(found > before, found, -1).astype(np.int32)
