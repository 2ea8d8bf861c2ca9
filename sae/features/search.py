"""Finding features: by label, by the tokens that fire them, by the tokens they promote."""

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sae.features.filters import select as select  # one way in for callers

if TYPE_CHECKING:
    from sae.features.index import FeatureIndex

SAMPLED_ROWS = 50_000
"""A search by a more frequent token looks at that many of its rows."""


def by_label(index: "FeatureIndex", text: str) -> np.ndarray:
    """Features whose label (the user's, else the automatic one) holds every word of `text`, in
    any case; shorter labels first, as they are closer to the text."""
    labels = index.labels()
    lower = labels.str.lower()
    hit = np.ones(len(labels), bool)
    for word in text.lower().split():
        hit &= lower.str.contains(word, regex=False).to_numpy()
    found = np.flatnonzero(hit)
    return found[np.argsort(labels.str.len().to_numpy()[found], kind="stable")]


def matching_tokens(index: "FeatureIndex", text: str) -> np.ndarray:
    """Token ids for what a person typed, best way of reading it first: the token with exactly
    these bytes; else with white space around, in any case; else every token that holds the text."""
    vocabulary = index.vocabulary
    exact = [i for i, token in enumerate(vocabulary.tokens) if token == text.encode()]
    wanted = text.strip().lower()
    if exact or not wanted:
        return np.array(exact, np.int64)
    names = [name.strip().lower() for name in vocabulary.names]
    same = [i for i, name in enumerate(names) if name == wanted]
    return np.array(same or [i for i, name in enumerate(names) if wanted in name], np.int64)


def by_token(index: "FeatureIndex", text: str, n: int | None = 50) -> pd.DataFrame:
    """Features that fire on the tokens which match `text`, the most specific first.

    Columns: feature, count (firings on the tokens), p_fires = P(feature fires | token),
    share = P(token | feature fires), f1 (harmonic mean of the two, the order), lift = p_fires /
    density. Of a token with more than `SAMPLED_ROWS` rows, evenly spaced ones are looked at.
    """
    tokens = matching_tokens(index, text)
    wanted = np.zeros(len(index.vocabulary), bool)
    wanted[tokens] = True
    hit_ST = wanted[index.tokens_ST]
    hit_ST[:, 0] = False
    rows = np.flatnonzero(hit_ST)
    looked_at = rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED_ROWS)).astype(np.int64)]
    scale = len(rows) / max(len(looked_at), 1)
    together = index.counts_at(looked_at) * scale
    found = np.flatnonzero(together)
    fired = np.diff(index.indptr)[found]
    count = np.minimum(together[found], fired)
    p_fires, share = count / max(len(rows), 1), count / fired
    table = pd.DataFrame(
        {
            "feature": found,
            "count": np.rint(count).astype(np.int64),
            "p_fires": p_fires,
            "share": share,
            "f1": 2 * p_fires * share / (p_fires + share),
            "lift": p_fires / (fired / index.tokens_indexed),
        }
    )
    return table.sort_values("f1", ascending=False, kind="stable", ignore_index=True).iloc[:n]


def by_promoted(
    index: "FeatureIndex", text: str, *, suppressed: bool = False, n: int | None = 50
) -> pd.DataFrame:
    """Features that promote (or suppress) a token which matches `text`, strongest effect first.

    Looks at the ten tokens that each feature promotes or suppresses most. Columns: feature,
    token_id, token, logit.
    """
    name = "suppressed" if suppressed else "promoted"
    ids_FK = np.stack(index.table[f"{name}_ids"].to_list())
    logits_FK = np.stack(index.table[f"{name}_logits"].to_list())
    feature, place = np.nonzero(np.isin(ids_FK, matching_tokens(index, text)))
    ids, logits = ids_FK[feature, place], logits_FK[feature, place]
    order = np.argsort(-np.abs(logits), kind="stable")
    table = pd.DataFrame(
        {
            "feature": feature[order],
            "token_id": ids[order],
            "token": [index.vocabulary.name(token) for token in ids[order]],
            "logit": logits[order],
        }
    )
    return table.drop_duplicates("feature", ignore_index=True).iloc[:n]


def by_text(index: "FeatureIndex", text: str, n: int | None = 50) -> pd.DataFrame:
    """Features whose usual tokens are the words of `text`: a search that needs no model.

    For every word `by_token`; the best F1 of each feature counts.
    """
    words = re.findall(r"\s*\S+", text)
    found = [by_token(index, word, None).assign(token=word) for word in words]
    if not found:
        return pd.DataFrame(columns=["feature", "f1", "token"])
    table = pd.concat(found).sort_values("f1", ascending=False, kind="stable")
    return table.drop_duplicates("feature", ignore_index=True).iloc[:n]
