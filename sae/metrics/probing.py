"""Sparse probing: how well k latents alone tell whether a concept is there.

Gurnee et al. 2023, "Finding Neurons in a Haystack: Case Studies with Sparse Probing". The k
latents of largest |mean of the positives − mean of the negatives| are chosen, and a logistic
probe of them fitted, on train documents; it is scored on held-out documents, with as many
positives as negatives, so that guessing has an accuracy of 1/2. Beside it stand the same with k
dimensions of the activation itself, and a probe of the whole activation, which says how much of
the concept can be read there at all. A few dimensions of a language model are far larger than the
others, and would come first whatever they know: dimensions are ranked by difference over standard
deviation as well, and the ranking that fits better is taken.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sae.metrics.concept_data import Examples
from sae.metrics.concepts import NO, UNKNOWN, YES
from sae.metrics.paired import PairedEntry, paired_ratio
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


def unusable(concept: str, train: Examples, held: Examples) -> str | None:
    """Why a concept cannot be measured; None if either side has enough examples of it."""
    for split, side in (("train", train), ("held-out", held)):
        label_E = side.labels.get(concept, np.full(len(side), NO, np.int8))
        if (label_E == UNKNOWN).all():
            return f"of no {split} example it is known whether it has the concept"
        for what, label in (("positives", YES), ("negatives", NO)):
            if (found := int((label_E == label).sum())) < FEWEST:
                return f"{found} {split} {what}; it takes {FEWEST}"
        if (units := len(np.unique(side.unit_E[label_E == YES]))) < FEWEST_UNITS:
            return f"{split} positives of {units} documents; it takes {FEWEST_UNITS}"
    return None


def sparse_probing(
    train: Examples,
    held: Examples,
    concepts: Sequence[str],
    ks: Sequence[int] = KS,
    seed: int = 0,
    step: Step = no_step,
    activation: bool = True,
) -> dict[str, Any]:
    """{concept: {"positives", "latents", "coder": {"k1": Entry, ...}, "dimensions": the same with
    dimensions of the activation, "whole": Entry}}, accuracies on balanced held-out examples.

    Without `activation` the last two are left out: of a control they are those of the coder.
    """
    found = {}
    for number, concept in enumerate(concepts):
        rng = np.random.default_rng([seed, number])
        fit, test = (side.take(side.balanced(concept, MOST, rng)) for side in (train, held))
        found[concept] = _probe_latents(concept, fit, test, ks, seed)
        if activation:
            found[concept] |= _probe_activation(concept, fit, test, ks, seed)
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


def accuracy(
    log_odds_E: npt.NDArray[np.float64], test: Examples, concept: str, seed: int
) -> PairedEntry:
    """Share of examples on the right side, with the interval of resampled documents."""
    right_E = (log_odds_E > 0) == (test.labels[concept] == YES)
    units, unit_E = np.unique(test.unit_E, return_inverse=True)
    right_U = np.bincount(unit_E, right_E * 1.0, len(units)) * 1.0
    return paired_ratio(right_U, np.bincount(unit_E, minlength=len(units)) * 1.0, len(test), seed)


def dimension_rankings(
    x_ED: npt.NDArray[np.floating], yes_E: npt.NDArray[np.bool_]
) -> list[npt.NDArray[np.int64]]:
    """All dimensions, by |difference of means| and by that over the standard deviation."""
    difference_D = np.abs(mean_difference(x_ED, yes_E))
    deviation_D = np.maximum(x_ED.std(0, dtype=np.float64), 1e-12)
    scores = (difference_D, difference_D / deviation_D)
    return [np.argsort(-score_D, kind="stable") for score_D in scores]


def _best(
    choices: Sequence[npt.NDArray[np.int64]],
    x_ED: npt.NDArray[np.floating],
    yes_E: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], Probe]:
    """The dimensions whose probe is right most often on what it was fitted on."""
    probes = [Probe().fit(x_ED[:, chosen], yes_E) for chosen in choices]
    right = [
        ((probe.score(x_ED[:, chosen]) > 0) == yes_E).mean()
        for chosen, probe in zip(choices, probes, strict=True)
    ]
    best = int(np.argmax(right))
    return choices[best], probes[best]


def _probe_latents(
    concept: str, fit: Examples, test: Examples, ks: Sequence[int], seed: int
) -> dict[str, Any]:
    yes_E = fit.labels[concept] == YES
    ranking = np.argsort(-np.abs(mean_difference(fit.codes_EF, yes_E)), kind="stable")
    found: dict[str, Any] = {
        "positives": int(yes_E.sum()),
        "latents": ranking[: max(ks)].tolist(),
        "coder": {},
    }
    for k in ks:
        top = ranking[:k]
        probe = Probe().fit(columns(fit.codes_EF, top), yes_E)
        odds_E = probe.score(columns(test.codes_EF, top))
        found["coder"][f"k{k}"] = accuracy(odds_E, test, concept, seed)
    return found


def _probe_activation(
    concept: str, fit: Examples, test: Examples, ks: Sequence[int], seed: int
) -> dict[str, Any]:
    yes_E = fit.labels[concept] == YES
    rankings = dimension_rankings(fit.x_ED, yes_E)
    found: dict[str, Any] = {"dimensions": {}}
    for k in ks:
        top, probe = _best([ranking[:k] for ranking in rankings], fit.x_ED, yes_E)
        odds_E = probe.score(test.x_ED[:, top])
        found["dimensions"][f"k{k}"] = accuracy(odds_E, test, concept, seed)
    whole = Probe(strength=0.1).fit(fit.x_ED, yes_E)
    found["whole"] = accuracy(whole.score(test.x_ED), test, concept, seed)
    return found
