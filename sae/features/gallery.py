"""Which features to show first: well-explained, neither rare nor dense, and not alike."""

import numpy as np
import pandas as pd

from sae.features.index import FeatureIndex

RARE, DENSE = 20, 0.03
"""At least so many firings; at most this density."""
TELLING = 0.3
"""Worth of a rule about context or a class of tokens over one that lists tokens."""
ALIKE = 0.4
"""Decoder cosine from which two features count as near-duplicates."""


def candidates(table: pd.DataFrame) -> np.ndarray:
    """Features worth a look, best first: by label score, with firing often enough to judge.

    `table` is `FeatureIndex.view()`. A feature of a single token or of a position says little, so
    those come last; users' own labels and stars come first.
    """
    usable = (table["count"] >= RARE) & (table["density"] <= DENSE)
    merit = table["label_score"].fillna(0).to_numpy(np.float64).copy()
    merit += 2.0 * table["star"].to_numpy(bool)
    merit += 1.0 * (table["label_kind"] == "user").to_numpy(bool)
    merit += TELLING * table["label_kind"].isin(["context", "class"]).to_numpy(bool)
    for flag, cost in (("single_token", 0.5), ("position_only", 1.0)):
        if flag in table:
            merit -= cost * table[flag].to_numpy(bool)
    order = np.lexsort((table.index, -merit))
    return order[usable.to_numpy(bool)[order]]


def interesting(index: FeatureIndex, table: pd.DataFrame, n: int = 12) -> list[int]:
    """`n` features for the gallery, each unlike those before it.

    Alike are two features with the same label, the same favourite token, or decoder directions
    closer than `ALIKE`. If that leaves too few, the best of the rest fill up.
    """
    chosen: list[int] = []
    taken_labels: set[str] = set()
    taken_tokens: set[int] = set()
    near: set[int] = set()
    ranked = candidates(table)[: 50 * n].tolist()
    for feature in ranked:
        label, token_ids = table.at[feature, "label"], table.at[feature, "top_token_ids"]
        token = int(token_ids[0]) if len(token_ids) else -1
        if label in taken_labels or token in taken_tokens or feature in near:
            continue
        chosen.append(feature)
        taken_labels.add(label)
        taken_tokens.add(token)
        near.update(
            other.feature for other in index.neighbours(feature, "decoder") if other.value >= ALIKE
        )
        if len(chosen) == n:
            return chosen
    rest = [feature for feature in ranked if feature not in chosen]
    return chosen + rest[: n - len(chosen)]
