"""The small language of automatic labels: a condition on the token and one on what is around it.

A rule is induced by trying every pair of conditions on a sample and taking the best F1, weighted
by activation, less a price for complexity. It is a baseline: it sees tokens, not meaning.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sae.features.contexts import NONE, Contexts, Sample
from sae.features.token_classes import TokenFacts

Where = Literal[
    "current", "previous", "before", "recent", "line", "kind", "first", "following", "any"
]
What = Literal["tokens", "sequence", "stem", "class", "number", "any"]
SET_SIZES = (1, 2, 3, 4, 6, 8, 12)
CONJUNCTION_PRICE = 0.03
TYPICAL_POSITIVES = 96
FEWEST_TO_HALVE = 16
SUPPORT = 3
"""Contexts that half a sample must have for each member of a set."""
NEARBY_PRICE = 0.02
"""Of looking further back than the last token."""
SEQUENCE_LENGTHS = (2, 3)
"""Of tokens just before: with the token itself, n-grams of three and of four."""
SEQUENCES = 4


@dataclass(frozen=True)
class Condition:
    """`what` stands `where`; `values`: token ids (of a sequence in reading order), a stem's number,
    a class's number, a kind's."""

    where: Where
    what: What
    values: tuple[int, ...] = ()

    def test(self, contexts: Contexts, facts: TokenFacts) -> np.ndarray:
        """(M,) bool."""
        if self.where == "any":
            return np.ones(len(contexts), bool)
        if self.where == "first":
            return np.asarray(contexts.position == 1)
        if self.what == "sequence":
            before = contexts.recent[:, : len(self.values)]
            return (before == np.array(self.values[::-1])).all(axis=1)
        seen = getattr(contexts, self.where)
        if self.what == "number":
            return np.asarray(np.isin(seen, self.values))
        if self.what == "tokens":
            # looked up, since rules are tried on every held-out row; `NONE` is the last entry
            wanted_V = np.zeros(len(facts.stems_V) + 1, bool)
            wanted_V[[value for value in self.values if value != NONE]] = True
            hit = wanted_V[seen]
            return np.asarray(hit.any(axis=1) if hit.ndim == 2 else hit)
        if self.what == "class":
            hit = facts.classes_CV[self.values[0]][seen]
        else:
            hit = np.equal(facts.stems_V[seen], self.values[0])
        return np.asarray(hit & (seen != NONE))


ANY = Condition("any", "any")


@dataclass(frozen=True)
class Rule:
    """Both conditions hold."""

    token: Condition
    around: Condition = ANY

    def test(self, contexts: Contexts, facts: TokenFacts) -> np.ndarray:
        return self.held(contexts, facts) == 2

    def held(self, contexts: Contexts, facts: TokenFacts) -> np.ndarray:
        """How many of the two conditions hold, (M,) int; "any" always does."""
        token, around = (one.test(contexts, facts) for one in (self.token, self.around))
        return token.astype(np.int64) + around


@dataclass
class Candidates:
    """Conditions with their prices and, in the same order, their truth (n, M) on a sample."""

    conditions: list[Condition]
    prices: list[float]
    truth: list[np.ndarray]

    def add(self, conditions: list[Condition], prices: list[float], truth_nM: np.ndarray) -> None:
        self.conditions += conditions
        self.prices += prices
        self.truth.append(truth_nM)

    def matrix(self) -> np.ndarray:
        return np.concatenate(self.truth).astype(np.float32)


def induce(sample: Sample, facts: TokenFacts, kinds: int, dense: bool) -> tuple[Rule, float]:
    """The best rule, and its F1 (positives weighted by activation).

    Conditions are made from one half of the sample; a rule is worth the lower of its F1 on the
    two halves, less its price, so that a long list of tokens which fits one half by chance does
    not win. With few positives both halves are the whole sample.

    Args:
        kinds: how many kinds of documents there are.
        dense: whether "any token" alone may be a label.
    """
    halves = _halves(sample)
    learn = sample.take(halves[0])
    token = _token_candidates(sample.contexts, learn, facts)
    around = _around_candidates(sample.contexts, learn, facts, kinds)
    f1 = np.minimum(*(_f1(token.matrix(), around.matrix(), sample, half) for half in halves))
    both = np.full_like(f1, CONJUNCTION_PRICE)
    both[0], both[:, 0] = 0, 0  # "any" comes first in both lists
    # of few contexts, a complicated rule fits too easily
    scale = max(1.0, np.sqrt(TYPICAL_POSITIVES / len(sample.weights)))
    worth = f1 - scale * (both + np.add.outer(np.array(token.prices), np.array(around.prices)))
    if not dense:
        worth[0, 0] = -np.inf
    best_token, best_around = np.unravel_index(int(np.argmax(worth)), worth.shape)
    rule = Rule(token.conditions[best_token], around.conditions[best_around])
    return _narrowed(rule, sample, facts), float(f1[best_token, best_around])


def _halves(sample: Sample) -> list[np.ndarray]:
    """Every other positive and every other negative, and the rest; (M,) bool each."""
    positives, size = len(sample.weights), len(sample.contexts)
    if positives < FEWEST_TO_HALVE:
        return [np.ones(size, bool)] * 2
    even = np.concatenate([np.arange(positives), np.arange(size - positives)]) % 2 == 0
    return [even, ~even]


def _f1(token_nM: np.ndarray, around_mM: np.ndarray, sample: Sample, half: np.ndarray):
    """F1 (n, m) of every pair on a half of the sample."""
    positives = len(sample.weights)
    fires, silent = np.flatnonzero(half[:positives]), positives + np.flatnonzero(half[positives:])
    weights = sample.weights[fires].astype(np.float32)
    hit = (token_nM[:, fires] * weights) @ around_mM[:, fires].T
    wrong = token_nM[:, silent] @ around_mM[:, silent].T
    return 2 * hit / np.maximum(hit + wrong + weights.sum(), 1e-9)


def _narrowed(rule: Rule, sample: Sample, facts: TokenFacts) -> Rule:
    """A stem of which only one token was seen is that token."""
    if rule.token.what != "stem":
        return rule
    seen = np.unique(sample.contexts.current[: len(sample.weights)])
    own = seen[facts.stems_V[seen] == rule.token.values[0]]
    if len(own) != 1:
        return rule
    return Rule(Condition("current", "tokens", (int(own[0]),)), rule.around)


def _token_candidates(contexts: Contexts, learn: Sample, facts: TokenFacts) -> Candidates:
    current = contexts.current
    found = Candidates([ANY], [0.0], [np.ones((1, len(current)), bool)])
    _add_sets(found, "current", contexts, learn)
    _add_classes(found, "current", current, facts)
    learnt = learn.contexts.current[: len(learn.weights)]
    stems = _heaviest(facts.stems_V[learnt], learn.weights, 3)
    conditions = [Condition("current", "stem", (int(stem),)) for stem in stems]
    found.add(conditions, [0.005] * len(stems), facts.stems_V[current] == stems[:, None])
    return found


def _around_candidates(
    contexts: Contexts, learn: Sample, facts: TokenFacts, kinds: int
) -> Candidates:
    found = Candidates([ANY], [0.0], [np.ones((1, len(contexts)), bool)])
    _add_sets(found, "previous", contexts, learn)
    _add_classes(found, "previous", contexts.previous, facts)
    for length in SEQUENCE_LENGTHS:
        _add_sequences(found, length, contexts, learn)
    lines = _heaviest(learn.contexts.line[: len(learn.weights)], learn.weights, 4)
    lines = lines[lines != NONE]
    conditions = [Condition("line", "tokens", (int(line),)) for line in lines]
    found.add(conditions, [NEARBY_PRICE] * len(lines), contexts.line == lines[:, None])
    near = _telling(learn.contexts.recent, len(learn.weights), 6)
    truth = (contexts.recent[None] == near[:, None, None]).any(axis=2)
    conditions = [Condition("recent", "tokens", (int(one),)) for one in near]
    found.add(conditions, [NEARBY_PRICE] * len(near), truth)
    conditions = [Condition("kind", "number", (kind,)) for kind in range(kinds)]
    found.add(conditions, [0.0] * kinds, contexts.kind == np.arange(kinds)[:, None])
    found.add([Condition("first", "any")], [0.0], (contexts.position == 1)[None])
    return found


def _add_sets(found: Candidates, where: Where, contexts: Contexts, learn: Sample) -> None:
    """The heaviest tokens one by one, and sets of the 2, 3, … that gain most."""
    positives = len(learn.weights)
    learnt = getattr(learn.contexts, where)
    ids = _heaviest(learnt[:positives], learn.weights, max(SET_SIZES))
    ids = ids[ids != NONE]
    single = learnt == ids[:, None]
    gain = single[:, :positives] @ learn.weights - single[:, positives:].sum(axis=1)
    ids = ids[np.argsort(-gain, kind="stable")]
    truth = getattr(contexts, where) == ids[:, None]
    found.add(
        [Condition(where, "tokens", (int(one),)) for one in ids[:4]],
        [0.0] * len(ids[:4]),
        truth[:4],
    )
    sizes = [size for size in SET_SIZES if 1 < size <= min(len(ids), positives // SUPPORT)]
    if sizes:
        conditions = [
            Condition(where, "tokens", tuple(int(one) for one in ids[:size])) for size in sizes
        ]
        prices = [0.01 * float(np.log2(size)) for size in sizes]
        unions = np.logical_or.accumulate(truth, axis=0)[[size - 1 for size in sizes]]
        found.add(conditions, prices, unions)


def _add_sequences(found: Candidates, length: int, contexts: Contexts, learn: Sample) -> None:
    """The heaviest sequences of so many tokens just before."""
    learnt = learn.contexts.recent[: len(learn.weights), :length]
    whole = (learnt != NONE).all(axis=1)
    if not whole.any():
        return
    nearest_first = _heaviest(learnt[whole], learn.weights[whole], SEQUENCES)
    conditions = [
        Condition("before", "sequence", tuple(int(one) for one in sequence[::-1]))
        for sequence in nearest_first
    ]
    truth = (contexts.recent[None, :, :length] == nearest_first[:, None]).all(axis=2)
    found.add(conditions, [NEARBY_PRICE] * len(conditions), truth)


def _add_classes(found: Candidates, where: Where, seen: np.ndarray, facts: TokenFacts) -> None:
    number = len(facts.names)
    conditions = [Condition(where, "class", (one,)) for one in range(number)]
    found.add(conditions, [0.0] * number, facts.classes_CV[:, seen] & (seen != NONE))


def _heaviest(values: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """The `n` values (or rows of values) with the largest sums of weights, heaviest first."""
    found, inverse = np.unique(values, axis=0, return_inverse=True)
    mass = np.bincount(inverse, weights)
    return found[np.argsort(-mass, kind="stable")[:n]]


def _telling(recent: np.ndarray, positives: int, n: int) -> np.ndarray:
    """Tokens that are more frequent before positives than before negatives, most telling first."""
    values, counts = np.unique(recent[:positives], return_counts=True)
    others = np.sort(recent[positives:], axis=None)
    silent = np.searchsorted(others, values, "right") - np.searchsorted(others, values, "left")
    gain = counts / positives - silent / max(len(recent) - positives, 1)
    order = np.argsort(-gain, kind="stable")
    order = order[(gain[order] > 0) & (values[order] != NONE)]
    return values[order[:n]]
