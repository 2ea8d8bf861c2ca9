"""The two passes of an evaluation: over stored activations, and through the language model.

Coder and controls go through both side by side, so that every comparison is of the same tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sae.coders import Coder
from sae.metrics import fidelity
from sae.metrics.controls import CONTROLS, TrainData, matched_l0
from sae.metrics.reconstruction import CoderLike, add_data, add_errors, reconstruct
from sae.metrics.sample import Sample
from sae.metrics.sparsity import Firings
from sae.metrics.sums import DocumentSums

if TYPE_CHECKING:
    from sae.lm import LanguageModel

CODER = "coder"


@dataclass
class Part:
    """Sums over a part of the tokens: of the data, and of each method that was scored on it."""

    units: int
    data: DocumentSums = field(init=False)
    methods: dict[str, DocumentSums] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data = DocumentSums(self.units)

    def of(self, method: str) -> DocumentSums:
        return self.methods.setdefault(method, DocumentSums(self.units))


@dataclass
class Scored:
    """One pass over the activations. The controls are scored on the `shared` part alone."""

    shared: Part
    rest: Part
    firings: Firings


def fit_controls(
    coder: Coder, train: TrainData, controls: Sequence[str], seed: int
) -> dict[str, CoderLike]:
    with torch.inference_mode():
        active = matched_l0(coder, train) if controls else 0
        return {name: CONTROLS[name](coder, train, active, seed) for name in controls}


@torch.inference_mode()
def score_activations(
    coder: Coder,
    controls: Mapping[str, CoderLike],
    held: Sample,
    site: str,
    mean_D: Tensor,
    control_tokens: int,
    tell: Callable[[int, int], None],
    source: str | None = None,
) -> Scored:
    """Coder and controls on stored activations; they read `source`, if that is not `site`."""
    norms = {n: c.W_dec_FD.norm(dim=1) for n, c in {CODER: coder, **controls}.items()}
    counts = {n: Firings(len(norm), held.units, norm) for n, norm in norms.items()}
    scored = Scored(Part(held.units), Part(held.units), counts[CODER])
    blocks = max(1, round(len(held.runs) * min(1.0, control_tokens / max(1, held.tokens))))
    shared = set(np.linspace(0, len(held.runs) - 1, blocks).round().astype(int).tolist())
    for number, batch in enumerate(held.batches(site, mean_D.device, source)):
        part = scored.shared if number in shared else scored.rest
        methods = {CODER: coder, **(controls if number in shared else {})}
        add_data(part.data, batch, mean_D)
        for name, method in methods.items():
            x_hat_BD, codes = reconstruct(method, batch.given_BD)
            sums = part.of(name)
            add_errors(sums, batch, x_hat_BD, mean_D)
            terms = counts[name].add(codes, batch.unit_B, batch.scored_B)
            sums.add(batch.unit_B[batch.scored_B], **terms)
        tell(counts[CODER].tokens, held.tokens)
    return scored


def score_losses(
    coder: Coder,
    controls: Mapping[str, CoderLike],
    lm: "LanguageModel",
    site: str,
    heard: Sample,
    mean_D: Tensor,
    control_tokens: int,
    tell: Callable[[int, int], None],
    source: str | None = None,
) -> dict[str, DocumentSums]:
    """Losses of the coder on all of the sample, of the controls on an even part of it."""
    context = heard.store.context
    turns = max(1, -(-heard.tokens // control_tokens))
    return fidelity.language_model_sums(
        lm,
        site,
        {CODER: coder, **controls},
        {"zero": torch.zeros_like(mean_D), "mean": mean_D},
        heard,
        lambda sequences: tell(sequences * context, heard.tokens_ST.size),
        dict.fromkeys(controls, turns),
        source,
    )
