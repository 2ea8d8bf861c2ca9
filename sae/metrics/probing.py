"""Sparse probing: how well k latents alone tell whether a concept is there.

Gurnee et al. 2023, "Finding Neurons in a Haystack: Case Studies with Sparse Probing". The k
latents of largest |mean of the positives − mean of the negatives| are chosen, and a logistic
probe of them fitted, on train documents; it is scored on held-out documents, with as many
positives as negatives, so that guessing has an accuracy of 1/2. Beside it stand the same with k
dimensions of the activation itself, and a probe of the whole activation, which says how much of
the concept can be read there at all.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sae.metrics.bootstrap import Entry
from sae.metrics.concept_data import Examples
from sae.metrics.concepts import YES
from sae.metrics.estimate import estimate_ratio
from sae.metrics.steps import Step, no_step

KS = (1, 2, 5)
MOST = 1500  # positives, and as many negatives, on which a probe is fitted
FEWEST = 40  # positives and negatives, in train and held-out text each, for a concept to count
FEWEST_UNITS = 5  # documents that hold positives, likewise


class Probe:
    """A logistic probe of standardised columns: `fit(X_EC, y_E)`, `score(X_EC)` log-odds (E,)."""

    def __init__(self, strength: float = 1.0) -> None:
        self.scaler = StandardScaler()
        self.model = LogisticRegression(C=strength, max_iter=300)

    def fit(self, X_EC: npt.NDArray[np.floating], y_E: npt.NDArray[Any]) -> "Probe":
        self.model.fit(self.scaler.fit_transform(np.asarray(X_EC, np.float64)), y_E)
        return self

    def score(self, X_EC: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        return self.model.decision_function(self.scaler.transform(np.asarray(X_EC, np.float64)))

    @property
    def direction_C(self) -> npt.NDArray[np.float64]:
        """The gradient of the log-odds by the columns."""
        return self.model.coef_[0] / self.scaler.scale_


def usable(concept: str, train: Examples, held: Examples) -> bool:
    """Whether there are enough positives and negatives, of enough documents, on both sides."""
    for side in (train, held):
        label_E = side.labels.get(concept)
        if label_E is None or min((label_E == YES).sum(), (label_E == 0).sum()) < FEWEST:
            return False
        if len(np.unique(side.unit_E[label_E == YES])) < FEWEST_UNITS:
            return False
    return True


def sparse_probing(
    train: Examples,
    held: Examples,
    concepts: Sequence[str],
    ks: Sequence[int] = KS,
    seed: int = 0,
    step: Step = no_step,
) -> dict[str, Any]:
    """{concept: {"positives", "latents", "coder": {"k1": Entry, ...}, "dimensions": the same with
    dimensions of the activation, "whole": Entry}}, accuracies on balanced held-out examples.
    """
    found = {}
    for number, concept in enumerate(concepts):
        rng = np.random.default_rng([seed, number])
        fit, test = (side.take(side.balanced(concept, MOST, rng)) for side in (train, held))
        found[concept] = _probe_concept(concept, fit, test, ks, seed)
        step()
    return found


def mean_difference(
    codes_EC: sp.csr_matrix | npt.NDArray[np.floating], yes_E: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """(C,) mean of the positives − mean of the negatives, per column."""
    weight_E = np.where(yes_E, 1 / max(1, yes_E.sum()), -1 / max(1, (~yes_E).sum()))
    return np.asarray(codes_EC.T @ weight_E, np.float64).ravel()


def columns(codes_EF: sp.csr_matrix, latents: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(E, n) dense activations of a few latents."""
    return np.asarray(codes_EF[:, latents].todense(), np.float64)


def accuracy(log_odds_E: npt.NDArray[np.float64], test: Examples, concept: str, seed: int) -> Entry:
    """Share of examples on the right side, with the interval of resampled documents."""
    right_E = (log_odds_E > 0) == (test.labels[concept] == YES)
    units, unit_E = np.unique(test.unit_E, return_inverse=True)
    right_U = np.bincount(unit_E, right_E * 1.0, len(units)) * 1.0
    return estimate_ratio(right_U, np.bincount(unit_E, minlength=len(units)) * 1.0, len(test), seed)


def _probe_concept(
    concept: str, fit: Examples, test: Examples, ks: Sequence[int], seed: int
) -> dict[str, Any]:
    yes_E = fit.labels[concept] == YES
    by_latent = np.argsort(-np.abs(mean_difference(fit.codes_EF, yes_E)), kind="stable")
    by_dimension = np.argsort(-np.abs(mean_difference(fit.x_ED, yes_E)), kind="stable")
    found: dict[str, Any] = {
        "positives": int(yes_E.sum()),
        "latents": by_latent[: max(ks)].tolist(),
        "coder": {},
        "dimensions": {},
    }
    for k in ks:
        top = by_latent[:k]
        probe = Probe().fit(columns(fit.codes_EF, top), yes_E)
        odds_E = probe.score(columns(test.codes_EF, top))
        found["coder"][f"k{k}"] = accuracy(odds_E, test, concept, seed)
        top = by_dimension[:k]
        odds_E = Probe().fit(fit.x_ED[:, top], yes_E).score(test.x_ED[:, top])
        found["dimensions"][f"k{k}"] = accuracy(odds_E, test, concept, seed)
    whole = Probe(strength=0.1).fit(fit.x_ED, yes_E)
    found["whole"] = accuracy(whole.score(test.x_ED), test, concept, seed)
    return found
