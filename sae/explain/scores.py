"""How well verdicts fit the truth."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

NUMBERS = ("balanced_accuracy", "low", "high", "f1", "precision", "recall")
Z = 1.959964  # of 95 %


def judged(answers: Sequence[tuple[Sequence[bool], Sequence[bool] | None]]) -> dict[str, Any]:
    """Scores of (truths, verdicts) of several answers; verdicts None: not scored, and counted.

    balanced accuracy = (share of the true passages that are called true + share of the false ones
    that are called false) / 2: 0.5 is guessing, and for verdicts of yes or no it is the AUC. Its
    interval is that of the difference of two shares (Agresti & Caffo 2000), which also holds where
    a share is 0 or 1.
    """
    truths = [t for own, verdicts in answers if verdicts is not None for t in own]
    said = [v for _, verdicts in answers if verdicts is not None for v in verdicts]
    unscored = sum(len(own) for own, verdicts in answers if verdicts is None)
    truth, says = np.array(truths, bool), np.array(said, bool)
    counts = {"scored": len(truth), "unscored": unscored}
    if not truth.any() or truth.all():
        return (
            dict.fromkeys(("balanced_accuracy", "low", "high", "f1", "precision", "recall"))
            | counts
        )
    hit, wrong = int((says & truth).sum()), int((says & ~truth).sum())
    true, false = int(truth.sum()), int((~truth).sum())
    low, high = _difference(hit, true, wrong, false)
    return {
        "balanced_accuracy": (1 + hit / true - wrong / false) / 2,
        "low": (1 + low) / 2,
        "high": (1 + high) / 2,
        "f1": 2 * hit / (true + hit + wrong),
        "precision": hit / max(hit + wrong, 1),
        "recall": hit / true,
        **counts,
    }


def _difference(hits: int, n: int, others: int, m: int) -> tuple[float, float]:
    """95 % interval of hits/n − others/m, within [-1, 1]."""
    p, q = (hits + 1) / (n + 2), (others + 1) / (m + 2)
    reach = Z * math.sqrt(p * (1 - p) / (n + 2) + q * (1 - q) / (m + 2))
    return max(p - q - reach, -1.0), min(p - q + reach, 1.0)
