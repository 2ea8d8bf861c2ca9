"""From the sums of an evaluation's passes to its numbers, each with its interval and its tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae.metrics import geometry, loss_metrics
from sae.metrics.bootstrap import Entry, entries
from sae.metrics.ladder import lifts
from sae.metrics.registry import REGISTRY, metrics_of
from sae.metrics.scoring import CODER, RANDOM_ERROR, Scored
from sae.metrics.sparsity import Firings
from sae.metrics.sums import DocumentSums

ENCODER_DECODER = geometry.encoder_decoder_cosine.__name__
LIFT = loss_metrics.delta_ce_lift.__name__
Table = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shared:
    """What coder and controls were scored on side by side: an even part of the sample.

    `losses` holds the random errors as well.
    """

    activations: Scored
    losses: Mapping[str, DocumentSums]

    def counted(self) -> dict[str, int]:
        return {
            "control_tokens": self.activations.sample.tokens,
            "control_loss_tokens": int(self.losses[CODER].total("count")),
        }

    def units(self) -> dict[str, int]:
        """What the lifts resample, by group of metrics: documents or sequences that have tokens."""
        groups = {"reconstruction": self.activations.data, "fidelity": self.losses[CODER]}
        return {group: sums.filled for group, sums in groups.items()}

    def own(self, seed: int) -> dict[str, Entry]:
        """The coder's own numbers on these tokens."""
        table, heard = self.activations.table(CODER), self.losses[CODER].arrays()
        return entries(table, metrics_of("reconstruction", "codes"), seed) | entries(
            heard, metrics_of("fidelity"), seed
        )

    def control(self, name: str, seed: int) -> dict[str, Entry]:
        table = self.activations.table(name)
        table["coder_e2"] = self.activations.table(CODER)["e2"]
        heard = self.losses[name].arrays() | {"coder_ce": self.losses[CODER].arrays()["ce"]}
        of_activations = metrics_of("reconstruction", "codes", "comparison")
        return entries(table, [m for m in of_activations if m.name != LIFT], seed) | entries(
            heard, [*metrics_of("fidelity"), REGISTRY[LIFT]], seed
        )

    def lifts(self, name: str, seed: int) -> dict[str, Entry]:
        """How much better than this control the coder is, paired."""
        own, other = (self.activations.table(method) for method in (CODER, name))
        heard, spliced = (self.losses[method].arrays() for method in (CODER, name))
        return lifts(own, other, "reconstruction", seed) | lifts(heard, spliced, "fidelity", seed)

    def error(self, seed: int) -> dict[str, Entry]:
        """The coder's error beside a random one, where that was scored."""
        if RANDOM_ERROR not in self.losses:
            return {}
        random = self.losses[RANDOM_ERROR].arrays()
        table = self.losses[CODER].arrays() | {f"random_{k}": random[k] for k in ("ce", "kl")}
        return entries(table, metrics_of("error"), seed)


def apart_numbers(scored: Scored, name: str, seed: int) -> dict[str, Entry]:
    """Those of a method that was scored on activations of its own: nothing pairs it with others."""
    return entries(scored.table(name), metrics_of("reconstruction", "codes"), seed)


def coder_metrics(
    whole: Scored, losses: DocumentSums, shape: DocumentSums, seed: int
) -> dict[str, Entry]:
    """The coder's numbers on all of both samples, and its geometry."""
    found = entries(whole.table(CODER), metrics_of("reconstruction", "codes"), seed)
    found |= entries(whole.firings[CODER].table(), metrics_of("sparsity"), seed)
    found |= entries(losses.arrays(), metrics_of("fidelity"), seed)
    if shape.table:
        one_space = "encoder_decoder" in shape.table
        known = [m for m in metrics_of("geometry") if one_space or m.name != ENCODER_DECODER]
        found |= entries(shape.arrays(), known, seed)
    return found


def histograms(firings: Firings, angles: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "log_density": firings.density_histogram(),
        "l0": firings.l0_histogram(),
    }
    for name, values in angles.items():
        found[name] = geometry.histogram(values, -1.0 if name == "encoder_decoder" else 0.0, 1.0)
    return found
