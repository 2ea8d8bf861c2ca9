"""Where the model loses: ΔCE and KL by position, by the next token's frequency, by repetition.

A mean over tokens hides that a coder may be faultless on common words and lose what the model
copies from its context. Groups are of the predictions; each is scored like all tokens together.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae.metrics.bootstrap import entries
from sae.metrics.fidelity import GROUPED, Closely
from sae.metrics.registry import REGISTRY
from sae.metrics.sample import MIN_DOCUMENTS, Sample

SHOWN = ("delta_ce", "kl", "ce_clean")
RARE = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)  # lower ends of shares of the train split's tokens
FREQUENCY = ("not in the train split", "below 1e-5", "1e-5 to 1e-4", "1e-4 to 1e-3",
             "1e-3 to 1e-2", "above 1e-2")  # fmt: skip
REPETITION = ("new in this context", "seen, after another token", "seen after the same token")


def closely(method: str, by_sequence: str, sample: Sample, counts_V: np.ndarray) -> Closely:
    """The groups of a sample; `counts_V` says how often each token occurs in the train split."""
    groups = {
        "position": _positions(sample.tokens_ST),
        "frequency": _frequencies(sample.tokens_ST, counts_V),
        "repetition": _repetitions(sample.tokens_ST),
    }
    sizes = {
        "position": int(groups["position"].max(initial=0)) + 1,
        "frequency": len(FREQUENCY),
        "repetition": len(REPETITION),
    }
    return Closely(method, by_sequence, groups, sizes)


def labels(group: str, size: int) -> list[str]:
    """What the groups are called: of positions, those of the token that is read."""
    if group == "position":
        return ["1", *(f"{2**i} to {2 ** (i + 1) - 1}" for i in range(1, size))]
    return list(FREQUENCY if group == "frequency" else REPETITION)


def breakdown(
    table: Mapping[str, np.ndarray], by_sequence: Mapping[str, np.ndarray], over: str, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """The `"breakdown"` key of an evaluation, from the sums of one method, without empty groups.

    `table` has a row per unit of the sample's intervals, of which `over` says what they are. Of
    groups whose tokens lie in a few documents, sequences are resampled, and the row says so.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name in [term.removeprefix("count@") for term in table if term.startswith("count@")]:
        whole = table[f"count@{name}"].sum()
        found[name] = []
        for column, label in enumerate(labels(name, table[f"count@{name}"].shape[1])):
            part, of = _column(table, name, column), over
            units = np.count_nonzero(part["count"])
            if units < MIN_DOCUMENTS:
                part, of = _column(by_sequence, name, column), "sequences"
                units = np.count_nonzero(part["count"])
            if units:
                share = float(part["count"].sum() / whole)
                row = {"group": label, "share": share, "over": of, "units": int(units)}
                found[name].append(row | entries(part, [REGISTRY[m] for m in SHOWN], seed))
    return found


def _column(table: Mapping[str, np.ndarray], name: str, column: int) -> dict[str, np.ndarray]:
    return {term: table[f"{term}@{name}"][:, column] for term in GROUPED}


def _positions(tokens_ST: np.ndarray) -> np.ndarray:
    """Whole part of log2 of the position, 0 at positions 0 and 1."""
    position_T = np.maximum(1, np.arange(tokens_ST.shape[1]))
    return np.broadcast_to(np.log2(position_T).astype(np.int64), tokens_ST.shape).copy()


def _frequencies(tokens_ST: np.ndarray, counts_V: np.ndarray) -> np.ndarray:
    """Of the token that is to be predicted, which is the next one."""
    share_V = counts_V / max(1, counts_V.sum())
    group_V = np.where(counts_V == 0, 0, np.searchsorted(RARE, share_V, side="right"))
    return group_V[_next(tokens_ST)]


def _repetitions(tokens_ST: np.ndarray) -> np.ndarray:
    """0: the next token is new in its row; 1: it was there; 2: it followed this token before."""
    width = int(tokens_ST.max(initial=0)) + 1
    seen_ST = ~_first(tokens_ST)
    pairs_ST = tokens_ST[:, :-1] * width + tokens_ST[:, 1:]
    again_ST = np.zeros(tokens_ST.shape, np.int64)
    again_ST[:, :-1] = np.where(~_first(pairs_ST), 2, seen_ST[:, 1:])
    return again_ST


def _first(values_ST: np.ndarray) -> np.ndarray:
    """Where a value occurs for the first time in its row."""
    found = np.zeros(values_ST.shape, bool)
    for row, values in enumerate(values_ST):
        found[row, np.unique(values, return_index=True)[1]] = True
    return found


def _next(tokens_ST: np.ndarray) -> np.ndarray:
    return np.concatenate([tokens_ST[:, 1:], tokens_ST[:, :1]], axis=1)
