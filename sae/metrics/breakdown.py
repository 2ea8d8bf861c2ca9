"""Where the model loses: ΔCE and KL by position, by the next token's frequency, by repetition.

Beside them stands the share of what can be lost, to the mean in the place of x, that is kept: where
the clean model has more to lose, an error of the same kind costs more.

A mean over tokens hides that a coder may be faultless on common words and lose what the model
copies from its context. Groups are of the predictions; each is scored like all tokens together.

That a token follows the one before it for the second time is no sign of copying where it mostly
does ("of the"): such pairs are a group of their own, by how often the second follows the first in
the train split (as Arora et al. 2023, "Zoology", set apart n-grams that are frequent in training).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae.metrics.bootstrap import MIN_UNITS, entries
from sae.metrics.fidelity import GROUPED, Closely
from sae.metrics.registry import REGISTRY
from sae.metrics.sample import Sample, evenly
from sae.store import ActivationStore

SHOWN = ("delta_ce", "kl", "ce_clean", "ce_recovered_mean")
RARE = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)  # lower ends of shares of the train split's tokens
FREQUENCY = ("not in the train split", "below 1e-5", "1e-5 to 1e-4", "1e-4 to 1e-3",
             "1e-3 to 1e-2", "above 1e-2")  # fmt: skip
REPETITION = ("new in this context", "seen, after another token",
              "seen after the same token, a usual pair",
              "seen after the same token, an unusual pair")  # fmt: skip
USUAL = 0.05  # share of a token's occurrences in the train split that are followed by the other
PAIR_TOKENS = 1 << 21  # train tokens in which pairs are counted, at most
BLOCK = 1 << 17  # of them that are read at a time


def closely(method: str, by_sequence: str, sample: Sample, counts_V: np.ndarray) -> Closely:
    """The groups of a sample; `counts_V` says how often each token occurs in the train split."""
    groups = {
        "position": _positions(sample.tokens_ST),
        "frequency": _frequencies(sample.tokens_ST, counts_V),
        "repetition": _repetitions(sample.tokens_ST, sample.store),
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
            if units < MIN_UNITS:
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


def _repetitions(tokens_ST: np.ndarray, store: ActivationStore) -> np.ndarray:
    """0: the next token is new in its row; 1: it was there; it followed this token before, and 2:
    is usual after it, 3: is not.
    """
    width = int(tokens_ST.max(initial=0)) + 1
    seen_ST = ~_first(tokens_ST)
    pairs_ST = tokens_ST[:, :-1] * width + tokens_ST[:, 1:]
    repeated_ST = ~_first(pairs_ST)
    again_ST = np.zeros(tokens_ST.shape, np.int64)
    again_ST[:, :-1] = np.where(repeated_ST, 2, seen_ST[:, 1:])
    known, place_N = np.unique(pairs_ST[repeated_ST], return_inverse=True)
    again_ST[:, :-1][repeated_ST] += ~_usual(known // width, known % width, store)[place_N]
    return again_ST


def _usual(first_P: np.ndarray, second_P: np.ndarray, store: ActivationStore) -> np.ndarray:
    """(P,) whether more than `USUAL` of the occurrences of the first token of a pair are followed
    by the second, in an even part of the train split's tokens.
    """
    train = store.rows_of("train")
    last, size = train.stop // store.context, max(1, BLOCK // store.context)
    starts = np.arange(train.start // store.context, last, size)
    width = 1 + int(max(first_P.max(initial=0), second_P.max(initial=0)))
    wanted_P = first_P * width + second_P  # ascending, as `np.unique` gives them
    pairs_P, firsts = np.zeros(len(wanted_P)), np.zeros(width)
    for start in starts[evenly(len(starts), PAIR_TOKENS // BLOCK)].tolist():
        tokens_ST = store.tokens(start, min(start + size, last)).astype(np.int64)
        before, after = tokens_ST[:, :-1].ravel(), tokens_ST[:, 1:].ravel()
        within = np.maximum(before, after) < width
        found, count = np.unique(before[within] * width + after[within], return_counts=True)
        known = np.isin(found, wanted_P)
        pairs_P[np.searchsorted(wanted_P, found[known])] += count[known]
        firsts += np.bincount(before[before < width], minlength=width)
    return pairs_P > USUAL * firsts[first_P]


def _first(values_ST: np.ndarray) -> np.ndarray:
    """Where a value occurs for the first time in its row."""
    found = np.zeros(values_ST.shape, bool)
    for row, values in enumerate(values_ST):
        found[row, np.unique(values, return_index=True)[1]] = True
    return found


def _next(tokens_ST: np.ndarray) -> np.ndarray:
    return np.concatenate([tokens_ST[:, 1:], tokens_ST[:, :1]], axis=1)
