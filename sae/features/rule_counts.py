"""How specific and how sensitive a feature is to the rule of its own label, on held-out text.

Bricken et al. 2023, "Towards Monosemanticity", ask it of properties that a script can tell: how
often the property holds where the feature fires, and how often the feature fires where it holds.
Here the property is the rule, and the text every held-out row that is indexed (or an even part of
many): no balanced sample, unlike that of the label's score.
"""

from dataclasses import dataclass

import numpy as np

from sae.features.contexts import Text
from sae.features.rules import Rule
from sae.features.token_classes import TokenFacts

MOST_ROWS = 2**18
"""Held-out rows on which rules are tried; of more, whole sequences spread evenly over them."""


@dataclass(frozen=True)
class RuleCounts:
    """Shares are None where nothing fires, or the rule holds nowhere.

    Attributes:
        specificity: rows that fire the feature and satisfy the rule / rows that fire it.
        specificity_mass: the same of activations: their sum where the rule holds / their sum.
        heldout_firings: rows that fire it: what the two rest on.
        sensitivity: rows that fire it and satisfy the rule / rows that satisfy it.
        rule_tokens: rows that satisfy the rule: what that rests on.
    """

    specificity: float | None = None
    specificity_mass: float | None = None
    heldout_firings: int = 0
    sensitivity: float | None = None
    rule_tokens: int = 0


class HeldoutText:
    """The held-out rows, position 0 left out, ready for any rule to be tried on."""

    def __init__(self, text: Text, sequences: tuple[int, int], facts: TokenFacts) -> None:
        self.facts = facts
        self.first, self.last = (end * text.context for end in sequences)
        wanted = max(1, MOST_ROWS // (text.context - 1))
        chosen = np.arange(*sequences)
        if len(chosen) > wanted:
            chosen = chosen[np.linspace(0, len(chosen) - 1, wanted).round().astype(int)]
        rows = (chosen[:, None] * text.context + np.arange(1, text.context)).reshape(-1)
        self.contexts = text.at(rows)
        self.place_R = np.full(self.last - self.first, -1, np.int64)  # of each row among `rows`
        self.place_R[rows - self.first] = np.arange(len(rows))

    def count(self, rule: Rule, rows_N: np.ndarray, acts_N: np.ndarray) -> RuleCounts:
        """Of a feature that fires at `rows_N` (ascending, of the whole index)."""
        begin, end = np.searchsorted(rows_N, [self.first, self.last])
        place_N = self.place_R[rows_N[begin:end].astype(np.int64) - self.first]
        known = place_N >= 0
        acts = acts_N[begin:end][known].astype(np.float64)
        holds = rule.test(self.contexts, self.facts)
        hit = holds[place_N[known]]
        fires, satisfied, both = len(hit), int(holds.sum()), int(hit.sum())
        return RuleCounts(
            specificity=both / fires if fires else None,
            specificity_mass=float(acts[hit].sum() / acts.sum()) if fires else None,
            heldout_firings=fires,
            sensitivity=both / satisfied if satisfied else None,
            rule_tokens=satisfied,
        )
