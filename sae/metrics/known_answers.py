"""A predictor's scores as the evaluation computes them, and how far they are from known ones."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.base.errors import CheckFailure
from sae.metrics.bootstrap import entries
from sae.metrics.continuation import Replace
from sae.metrics.reconstruction import CoderLike, add_data, add_errors, reconstruct
from sae.metrics.registry import metrics_of
from sae.metrics.sample import Batch
from sae.metrics.sums import DocumentSums


class SelfTestFailure(CheckFailure):
    """A self-test of the evaluation failed: its numbers must not be used."""


@dataclass(frozen=True)
class SelfTest:
    """`value` is how far the measurement is from what it must be; None where nothing was asked.

    `note` says why nothing was; of a test that passed, what its reader must know all the same.
    """

    name: str
    value: float | None
    tolerance: float
    sentence: str
    note: str | None = None

    @property
    def passed(self) -> bool | None:
        """None: it was not asked, and says nothing either way."""
        if self.value is None:
            return None
        return bool(np.isfinite(self.value) and abs(self.value) <= self.tolerance)

    def to_json(self) -> dict[str, Any]:
        value = None if self.value is None or not np.isfinite(self.value) else self.value
        return {
            "passed": self.passed,
            "value": value,
            "tolerance": self.tolerance,
            "note": self.note,
        }


@torch.inference_mode()
def score(
    coder: CoderLike | Replace, batches: Iterable[Batch], centre_D: Tensor
) -> dict[str, float]:
    """The reconstruction metrics of a predictor, as the evaluation computes them."""
    sums = DocumentSums(1)
    for batch in batches:
        batch = replace(batch, unit_B=torch.zeros_like(batch.unit_B))
        add_data(sums, batch, centre_D)
        add_errors(sums, batch, reconstruct(coder, batch.given_BD)[0], centre_D)
    found = entries(sums.arrays(), metrics_of("reconstruction"))
    return {name: _number(entry["value"]) for name, entry in found.items()}


def explained(coder: CoderLike | Replace, batch: Batch) -> float:
    """EV of one batch, about its own mean."""
    return score(coder, [batch], batch.x_BD.mean(0))["ev"]


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
