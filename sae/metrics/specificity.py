"""How specific and how sensitive a concept's best latent is: Towards Monosemanticity's proxies.

Bricken et al. 2023, "Towards Monosemanticity", section "Detailed investigations of individual
features": for a property s that a script can tell (Arabic script, base64, hexadecimal …), how
often it holds where the latent fires, by decile of its activation, and how often the latent
fires where it holds. There the property's proxy was log P(s | tokens) / P(s); here it is a rule.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from sae.metrics.concept_data import Examples
from sae.metrics.concepts import UNKNOWN, YES
from sae.metrics.estimate import estimate, estimate_ratio
from sae.metrics.paired import PairedEntry
from sae.metrics.sums import Sums

DECILES = 10


def concept_latents(
    train: Examples, held: Examples, concepts: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Of each concept, the latent whose firing has the best F1 on `train`, measured on `held`.

    {concept: {"latent", "train_f1", "base_rate", "density", "specificity", "sensitivity", "f1",
    "log_likelihood_ratio", "activation_share": Entry, "deciles": [specificity, lowest tenth of
    the activations first]}}; `deciles` is None where the latent fires on fewer than ten tokens.
    """
    found = {}
    for concept in concepts:
        f1_F = firing_f1(train.codes_EF, train.labels[concept])
        latent = int(f1_F.argmax())
        found[concept] = {
            "latent": latent,
            "train_f1": float(f1_F[latent]),
            **_measure(held, concept, latent, seed),
        }
    return found


def firing_f1(codes_EF: sp.csr_matrix, label_E: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
    """(F,) F1 of "the latent fires" as a detector of the concept, where its label is known."""
    known = np.flatnonzero(label_E != UNKNOWN)
    fires_EF = codes_EF[known] > 0
    yes_E = (label_E[known] == YES).astype(np.float64)
    hits_F = np.asarray(fires_EF.T @ yes_E).ravel()
    fires_F = np.asarray(fires_EF.sum(0)).ravel()
    return np.asarray(2 * hits_F / np.maximum(1, fires_F + yes_E.sum()), np.float64)


def _measure(held: Examples, concept: str, latent: int, seed: int) -> dict[str, Any]:
    known = np.flatnonzero(held.labels[concept] != UNKNOWN)
    yes_E = held.labels[concept][known] == YES
    act_E = np.asarray(held.codes_EF[known][:, [latent]].todense(), np.float64).ravel()
    fires_E = act_E > 0
    units, unit_E = np.unique(held.unit_E[known], return_inverse=True)

    def per_unit(values_E: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return np.asarray(np.bincount(unit_E, values_E * 1.0, len(units)), np.float64)

    table = {
        "tokens": per_unit(np.ones(len(known))),
        "yes": per_unit(yes_E),
        "fires": per_unit(fires_E),
        "both": per_unit(yes_E & fires_E),
    }

    def log_ratio(s: Sums) -> npt.NDArray[np.floating]:
        return np.log(s["both"] / s["fires"]) - np.log(s["yes"] / s["tokens"])

    count = len(known)
    return {
        "base_rate": estimate_ratio(table["yes"], table["tokens"], count, seed),
        "density": estimate_ratio(table["fires"], table["tokens"], count, seed),
        "specificity": estimate_ratio(table["both"], table["fires"], int(fires_E.sum()), seed),
        "sensitivity": estimate_ratio(table["both"], table["yes"], int(yes_E.sum()), seed),
        "f1": PairedEntry(
            lambda s: 2 * s["both"] / np.maximum(1, s["fires"] + s["yes"]), table, count, seed
        ),
        "log_likelihood_ratio": estimate(log_ratio, table, count, seed),
        "activation_share": estimate_ratio(
            per_unit(act_E * yes_E), per_unit(act_E), int(fires_E.sum()), seed
        ),
        "deciles": deciles(act_E, yes_E),
    }


def deciles(act_E: npt.NDArray[np.float64], yes_E: npt.NDArray[np.bool_]) -> list[float] | None:
    """Share of positives in each tenth of the activations above 0, by rank, the lowest first."""
    fires = np.flatnonzero(act_E > 0)
    if len(fires) < DECILES:
        return None
    ordered = fires[np.argsort(act_E[fires], kind="stable")]
    return [float(yes_E[part].mean()) for part in np.array_split(ordered, DECILES)]
