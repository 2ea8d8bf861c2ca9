"""Automatic labels without a language model: a baseline, with its score on held-out text.

A rule (see `rules`) is induced on train contexts; the label's score is the rule's F1 on contexts
of held-out documents, other than those that it was induced from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sae.features.contexts import RowsByToken, Sample, Text, draw_sample, strong_rows
from sae.features.label_text import describe, kind_of, listed
from sae.features.layout import OF_LABEL
from sae.features.rule_counts import HeldoutText, RuleCounts
from sae.features.rules import FEWEST_TO_HALVE, Condition, Rule, induce
from sae.features.token_classes import TokenFacts, token_facts
from sae.features.vocabulary import Vocabulary

FIRES_SHARE = 0.5
"""A feature counts as firing from this share of its largest activation on. Weaker firings are
neither positives nor negatives."""
POSITIVES = 96
STRONGEST = 48
"""Of the train positives, so many are the strongest there are; the others are random."""
FEWEST_TRAIN, FEWEST_HELDOUT = 4, 5
WORST_TRAIN_F1, WORST_OF_FEW = 0.6, 0.8
"""Under this the rule says too little, and the label speaks of the promoted tokens instead; of few
positives, where no half of the sample could check the other, more is asked."""
DENSE = 0.3
NO_COUNTS = RuleCounts()
RIVALS = 5
"""Nearest features by decoder cosine; where they fire at `FIRES_SHARE` are hard negatives."""


@dataclass(frozen=True)
class Label:
    """A label and, where held-out text allows it, its F1, precision, recall and AUC there: of
    `label_contexts` sampled contexts, in `label_positives` of which the feature fires strongly.
    """

    label: str
    label_kind: str
    label_score: float | None = None
    label_precision: float | None = None
    label_recall: float | None = None
    label_auc: float | None = None
    label_contexts: int = 0
    label_positives: int = 0
    counts: RuleCounts = NO_COUNTS

    @property
    def columns(self) -> dict[str, object]:
        """A row of the table."""
        return {k: v for k, v in vars(self).items() if k != "counts"} | vars(self.counts)


def label_features(
    indptr: np.ndarray,
    rows: np.ndarray,
    acts: np.ndarray,
    tokens_ST: np.ndarray,
    table: pd.DataFrame,
    vocabulary: Vocabulary,
    documents: pd.DataFrame,
    splits: dict[str, list[int]],
    neighbours_FN: np.ndarray | None = None,
) -> pd.DataFrame:
    """The fields of `Label` and `RuleCounts` as columns; one row per feature.

    Kinds: "token", "tokens", "class", "context" (a rule); "logits" (no rule was good enough; the
    score is that of "the next token is one of the promoted"); "dead". A score is null where the
    feature is dead or fires in fewer than `FEWEST_HELDOUT` distinct held-out contexts.
    """
    labeller = Labeller(tokens_ST, vocabulary, documents, splits)
    largest_F = table["max"].to_list()
    found: list[Label] = []

    def firings(feature: int) -> tuple[np.ndarray, np.ndarray]:
        start, stop = indptr[feature], indptr[feature + 1]
        return np.asarray(rows[start:stop]), np.asarray(acts[start:stop])

    def strong(feature: int) -> np.ndarray:
        return strong_rows(*firings(feature), FIRES_SHARE * largest_F[feature])

    for feature, (density, promoted) in enumerate(
        zip(table["density"], table["promoted_ids"], strict=True)
    ):
        own = firings(feature)
        if not len(own[0]):
            found.append(Label("dead", "dead"))
            continue
        near = () if neighbours_FN is None else neighbours_FN[feature, :RIVALS]
        rivals = [strong(int(one)) for one in near if one >= 0]
        largest = largest_F[feature]
        found.append(labeller.label(feature, *own, largest, density, promoted, rivals))
    columns = pd.DataFrame([label.columns for label in found])
    return columns.astype(dict.fromkeys(OF_LABEL, np.float64))


class Labeller:
    """Labels features (or anything else that fires at rows) of one indexed text."""

    def __init__(
        self,
        tokens_ST: np.ndarray,
        vocabulary: Vocabulary,
        documents: pd.DataFrame,
        splits: dict[str, list[int]],
    ):
        self.vocabulary = vocabulary
        self.facts = token_facts(vocabulary)
        self.text = Text(tokens_ST, self.facts, documents)
        self.train, self.heldout = (
            RowsByToken(tokens_ST, (splits[name][0], splits[name][1]), self.facts)
            if splits[name][1] > splits[name][0]
            else None
            for name in ("train", "heldout")
        )
        bounds = (splits["heldout"][0], splits["heldout"][1])
        self.whole = HeldoutText(self.text, bounds, self.facts) if self.heldout else None

    def _known(
        self, rows_N: np.ndarray, acts_N: np.ndarray, largest: float, density: float
    ) -> tuple[float, float]:
        """Largest activation and density on train text: held-out text has no part in a label.

        Those of all text where the feature never fires in train text, and so gets no rule.
        """
        if self.train is None:
            return largest, density
        inside = (rows_N >= self.train.first) & (rows_N < self.train.last)
        if not inside.any():
            return largest, density
        rows = self.train.last - self.train.first
        return float(acts_N[inside].max()), float(inside.sum() / rows)

    def label(
        self,
        seed: int,
        rows_N: np.ndarray,
        acts_N: np.ndarray,
        largest: float,
        density: float,
        promoted: Sequence[int] | np.ndarray,
        rivals: Sequence[np.ndarray],
    ) -> Label:
        """The label of one living feature; `seed` (its number) decides which contexts are drawn.

        `rivals`: rows at which each of its neighbours fires strongly.
        """
        rng = np.random.default_rng(seed)
        largest, density = self._known(rows_N, acts_N, largest, density)
        draw = (rows_N, acts_N, FIRES_SHARE * largest, POSITIVES)
        train = self.train and draw_sample(self.text, self.train, *draw, STRONGEST, rng, rivals)
        heldout = self.heldout and draw_sample(
            self.text, self.heldout, *draw, 0, rng, rivals, seen=train
        )
        rule, f1, wanted = None, 0.0, WORST_TRAIN_F1
        if train is not None and len(train.weights) >= FEWEST_TRAIN:
            rule, f1 = induce(train, self.facts, len(self.text.kinds), density > DENSE)
            wanted = WORST_OF_FEW if len(train.weights) < FEWEST_TO_HALVE else WORST_TRAIN_F1
        if rule is None or f1 < wanted:
            ids = [int(token) for token in promoted]
            name = f"promotes {listed(ids[:3], self.vocabulary)}"
            rule, kind = Rule(Condition("following", "tokens", tuple(ids))), "logits"
        else:
            name, kind = describe(rule, self.vocabulary, self.facts, self.text.kinds), kind_of(rule)
        found = score(rule, heldout, self.facts)
        counts = self.whole.count(rule, rows_N, acts_N) if self.whole else NO_COUNTS
        if heldout is None or found[0] is None:
            return Label(name, kind, counts=counts)
        sizes = len(heldout.contexts), len(heldout.weights)
        return Label(name, kind, *found, *sizes, counts)


def score(
    rule: Rule, sample: Sample | None, facts: TokenFacts
) -> tuple[float | None, float | None, float | None, float | None]:
    """(F1, precision, recall, AUC) of the rule on a sample, every context counted once.

    A rule that fires on nothing has precision 0. The AUC ranks contexts by how many of the rule's
    two conditions hold: the share of pairs (firing, silent) in which the firing has more, a tie
    counting half. None each if there are too few positives, the AUC also without negatives.
    """
    if sample is None or len(sample.weights) < FEWEST_HELDOUT:
        return None, None, None, None
    held, fires = rule.held(sample.contexts, facts), sample.fires
    says = held == 2
    hit = float((says & fires).sum())
    precision, recall = hit / max(float(says.sum()), 1.0), hit / float(fires.sum())
    f1 = 2 * hit / float(says.sum() + fires.sum())
    return f1, precision, recall, _auc(held[fires], held[~fires])


def _auc(firing: np.ndarray, silent: np.ndarray) -> float | None:
    if not len(silent):
        return None
    more = np.sign(firing[:, None] - silent[None, :])
    return float((1 + more.mean()) / 2)
