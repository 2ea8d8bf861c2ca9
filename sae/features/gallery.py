"""Which features to show first: well-explained, of many sorts, neither rare nor dense."""

from itertools import zip_longest

import numpy as np
import pandas as pd

from sae.features.index import FeatureIndex

RARE, DENSE = 20, 0.03
"""At least so many firings; at most this density."""
TURNS = ("in context", "class", "tokens", "context")
"""Sorts of labels, which take turns: tokens after or amid others; a class of tokens; a list of
tokens; a context whatever the token. Others (one token, promoted tokens) come after."""
WORST = 0.8
"""Label score from which a feature is well-explained."""
CONTEXT_ALONE = ("what follows", "soon after", "in a line", "anything")
ALIKE = 0.4
"""Decoder cosine from which two features count as near-duplicates."""


def candidates(table: pd.DataFrame) -> np.ndarray:
    """Features worth a look, best first: by label score, and of equal ones the more frequent.

    `table` is `FeatureIndex.view()`. A feature of a single token or of a position says little, so
    those come last; users' own labels and stars come first.
    """
    usable = (table["count"] >= RARE) & (table["density"] <= DENSE)
    merit = table["label_score"].fillna(0).to_numpy(np.float64).copy()
    merit += 2.0 * table["star"].to_numpy(bool)
    merit += 1.0 * (table["label_kind"] == "user").to_numpy(bool)
    for flag, cost in (("single_token", 0.5), ("position_only", 1.0)):
        if flag in table:
            merit -= cost * table[flag].to_numpy(bool)
    order = np.lexsort((table.index, -table["count"], -merit))
    return order[usable.to_numpy(bool)[order]]


def interesting(index: FeatureIndex, table: pd.DataFrame, n: int = 12) -> list[int]:
    """`n` features for the gallery, each unlike those before it.

    Users' own come first, then the sorts of labels take turns. Alike are two features with the
    same label, the same favourite token, or decoder directions closer than `ALIKE`. If that
    leaves too few, the best of the rest fill up.
    """
    chosen: list[int] = []
    taken_labels: set[str] = set()
    taken_tokens: set[int] = set()
    near: set[int] = set()
    ranked = candidates(table)[: 50 * n].tolist()
    for feature in in_turns(table, ranked):
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


def in_turns(table: pd.DataFrame, ranked: list[int]) -> list[int]:
    """`ranked` anew: users' own, then one of each sort of label in turn, then the others."""
    own = table["star"].to_numpy(bool) | (table["label_kind"] == "user").to_numpy(bool)
    good = (table["label_score"] >= WORST).to_numpy(bool)
    queues: dict[str, list[int]] = {name: [] for name in ("own", *TURNS, "other")}
    for feature in ranked:
        sort = sort_of(table.at[feature, "label_kind"], table.at[feature, "label"])
        name = sort if good[feature] and sort in TURNS else "other"
        queues["own" if own[feature] else name].append(feature)
    turns = zip_longest(*(queues[name] for name in TURNS))
    in_turn = [feature for turn in turns for feature in turn if feature is not None]
    return [*queues["own"], *in_turn, *queues["other"]]


def sort_of(kind: str, label: str) -> str:
    """The kind of a label; rules about context are told apart by whether they name a token."""
    if kind != "context":
        return kind
    return "context" if label.startswith(CONTEXT_ALONE) else "in context"
