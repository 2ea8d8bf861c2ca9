"""Labels of random directions, beside those of as many features that fire as often.

If a direction that nobody trained gets labels as good, the score says something of the text and of
the language of the rules, and nothing of the coder.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sae.base.errors import UserError
from sae.explain.directions import firings_of, random_directions
from sae.explain.rivals import rivals_of, strong_firings
from sae.features.index import FeatureIndex
from sae.features.labels import RIVALS, Label, Labeller
from sae.metrics.estimate import INTERVAL, estimate_mean

if TYPE_CHECKING:
    from sae.store import ActivationStore

SCHEMA = 1
NUMBERS = {
    "f1": "label_score",
    "precision": "label_precision",
    "recall": "label_recall",
    "auc": "label_auc",
}
"""What is compared -> the field of a `Label`."""


def label_control(
    index: FeatureIndex,
    store: "ActivationStore",
    rows_FD: np.ndarray,
    promoted: Callable[[np.ndarray], np.ndarray],
    n: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """The report of `sae mechanisms labels`; its keys are in docs/metrics.md.

    `n` features are drawn among those whose label has a score. Each lends its number of firings to
    a random direction; then both are labelled and scored by the code that labels an index.

    Args:
        rows_FD: the features' directions in the space of `index.meta["site"]`; those nearest to a
            direction are its neighbours, whose contexts are its hard negatives.
        promoted: ids (N, 10) of the tokens that directions (N, D) promote.

    Raises:
        UserError: no feature has a score.
    """
    scored = np.flatnonzero(index.table["label_score"].notna())
    if not len(scored):
        raise UserError(
            f"No label of {index.folder} has a score (features must fire in held-out text); index "
            "more tokens."
        )
    features = np.sort(np.random.default_rng(seed).permutation(scored)[:n])
    text = (index.tokens_ST, index.vocabulary, index.documents, index.meta["splits"])
    pair = _Pairs(index, Labeller(*text))
    unit_ND = random_directions(len(features), rows_FD.shape[1], seed)
    counts = index.table["count"].to_numpy()[features].tolist()
    found = firings_of(store, index.meta["site"], index.meta["rows"], unit_ND, counts)
    near_NR = _nearest(unit_ND, rows_FD)
    promoted_NK = promoted(unit_ND)
    own = [pair.feature(int(feature)) for feature in features]
    random = [
        pair.direction(number, *found[number], near_NR[number], promoted_NK[number])
        for number in range(len(features))
    ]
    return _report(index, features, own, random, seed)


class _Pairs:
    """Labels a feature or a direction of one index."""

    def __init__(self, index: FeatureIndex, labeller: Labeller) -> None:
        self.index, self.labeller = index, labeller

    def feature(self, feature: int) -> Label:
        row = self.index.table.loc[feature]
        return self.labeller.label(
            feature,
            *self.index.slices(feature),
            float(row["max"]),
            float(row["density"]),
            row["promoted_ids"],
            rivals_of(self.index, feature),
        )

    def direction(
        self,
        number: int,
        rows: np.ndarray,
        acts: np.ndarray,
        near: np.ndarray,
        promoted: np.ndarray,
    ) -> Label:
        rivals = [strong_firings(self.index, int(one)) for one in near]
        density = len(rows) / self.index.tokens_indexed
        seed = self.index.width + number
        return self.labeller.label(seed, rows, acts, float(acts.max()), density, promoted, rivals)


def _nearest(unit_ND: np.ndarray, rows_FD: np.ndarray) -> np.ndarray:
    """(N, RIVALS): the features whose directions are nearest by cosine."""
    norms_F = np.maximum(np.linalg.norm(rows_FD, axis=1), 1e-12)
    return np.argsort(-(unit_ND @ rows_FD.T) / norms_F, axis=1)[:, :RIVALS]


def _report(
    index: FeatureIndex, features: np.ndarray, own: list[Label], random: list[Label], seed: int
) -> dict[str, Any]:
    scores = index.table["label_score"].dropna().to_numpy()
    density_F = index.table["density"].to_numpy()
    return {
        "schema": SCHEMA,
        "coder": index.meta["coder"],
        "site": index.meta["site"],
        "tokens": index.tokens_indexed,
        "seed": seed,
        "interval": INTERVAL,
        **_compared(own, random, index.tokens_indexed, seed),
        "all_features": {
            "scored": len(scores),
            "f1_mean": float(scores.mean()),
            "f1_median": float(np.median(scores)),
        },
        "pairs": [
            {
                "feature": int(feature),
                "density": float(density_F[feature]),
                "of_feature": _described(mine),
                "of_direction": _described(theirs),
            }
            for feature, mine, theirs in zip(features, own, random, strict=True)
        ],
    }


def _compared(own: list[Label], random: list[Label], tokens: int, seed: int) -> dict[str, Any]:
    """Means over the pairs of which both have the number; intervals resample pairs."""
    found: dict[str, Any] = {"features": {}, "random_directions": {}, "difference": {}}
    for name, field in NUMBERS.items():
        mine, theirs = (
            np.array([getattr(label, field) for label in labels], np.float64)
            for labels in (own, random)
        )
        both = np.isfinite(mine) & np.isfinite(theirs)
        sides = {"features": mine, "random_directions": theirs, "difference": mine - theirs}
        for side, values in sides.items():
            median = float(np.median(values[both])) if both.any() else None
            entry = estimate_mean(values[both], tokens, seed)
            found[side][name] = {**entry, "median": median, "pairs": int(both.sum())}
    for side, labels in (("features", own), ("random_directions", random)):
        ruled = np.array([label.label_kind != "logits" for label in labels], np.float64)
        found[side]["has_rule"] = estimate_mean(ruled, tokens, seed)
    return found


def _described(label: Label) -> dict[str, Any]:
    numbers = {name: getattr(label, field) for name, field in NUMBERS.items()}
    return {"label": label.label, "kind": label.label_kind, **numbers}
