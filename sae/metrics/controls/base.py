"""What a control is fitted from, and what all of them share."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sae.base.devices import in_float64
from sae.coders import Coder
from sae.metrics.controls.cache import Cache
from sae.metrics.reconstruction import CoderLike
from sae.metrics.sample import Sample

PROBE_ROWS = 8192  # on which the coder's L0 and a control's scale are found

Fit = Callable[[Coder, "TrainData", int, int], CoderLike]  # coder, data, L0, seed
Tell = Callable[[int, int], None]  # done, total


def _silent(_done: int, _total: int) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class TrainData:
    """What a control may learn from: a sample of the train split at the coder's site(s).

    `cache` keeps what takes long to fit; `tell` is told how far a long fit is.
    """

    sample: Sample
    site: str  # of what is to be predicted
    mean_D: Tensor  # (D,) float32, of the whole train split there
    device: torch.device
    source: str | None = None  # where the coder reads, if that is another site
    cache: Cache = field(default_factory=Cache)
    tell: Tell = _silent

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Scored rows, float32: what the coder is given, and what is to be predicted."""
        for batch in self.sample.batches(self.site, self.device, self.source):
            scored_B = batch.scored_B.to(self.device)
            yield batch.given_BD[scored_B], batch.x_BD[scored_B]

    def batches(self) -> Iterator[Tensor]:
        """Scored rows of what is to be predicted."""
        return (x_BD for _, x_BD in self.pairs())

    def some_pairs(self, rows: int = PROBE_ROWS) -> tuple[Tensor, Tensor]:
        """A few thousand rows from all over the sample: given ones, and what is to be predicted."""
        few = self.sample.some(max(1, rows // self.sample.store.context))
        given, wanted = zip(*replace(self, sample=few).pairs(), strict=True)
        return torch.cat(given), torch.cat(wanted)

    def some(self, rows: int = PROBE_ROWS) -> Tensor:
        """Those that the coder is given."""
        return self.some_pairs(rows)[0]

    def spread(self, rows: int, seed: int) -> Tensor:
        """About so many rows of what is to be predicted, drawn from the whole sample."""
        share = min(1.0, rows / max(1, self.sample.tokens))
        generator = torch.Generator().manual_seed(seed)
        kept = []
        for x_BD in self.batches():
            chosen = torch.rand(len(x_BD), generator=generator) < share
            kept.append(x_BD[chosen.to(x_BD.device)])
        return torch.cat(kept)


def matched_l0(coder: CoderLike, data: TrainData) -> int:
    """The coder's own mean L0 on train rows, rounded up: what every control is given."""
    mean = float(in_float64(coder.encode(data.some()).l0()).mean())
    return max(1, math.ceil(mean - 1e-6))


def best_scale(target_BD: Tensor, found_BD: Tensor) -> float:
    """The one number c that minimises Σ‖target − c · found‖²; 0 where nothing was found."""
    found_BD, target_BD = in_float64(found_BD), in_float64(target_BD)
    return float((target_BD * found_BD).sum() / found_BD.square().sum().clamp_min(1e-30))
