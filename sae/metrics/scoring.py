"""The two passes of an evaluation: over stored activations, and through the language model.

Each is made twice: of the coder on the whole sample, then of the coder and its controls side by
side on an even part of it, so that every comparison is of the same tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sae.coders import Coder
from sae.metrics import fidelity
from sae.metrics.breakdown import closely
from sae.metrics.continuation import Replace
from sae.metrics.controls import CONTROLS, RANDOM_MODEL, TrainData
from sae.metrics.controls.random_model import (
    activations,
    random_model,
    random_model_coder,
)
from sae.metrics.reconstruction import CoderLike, add_data, add_errors, reconstruct
from sae.metrics.sample import Batch, Sample
from sae.metrics.sparsity import Firings
from sae.metrics.sums import DocumentSums
from sae.store import ActivationStore

if TYPE_CHECKING:
    from sae.lm import LanguageModel

CODER, RANDOM_ERROR = "coder", "random error"
BY_SEQUENCE = "coder by sequence"
SEQUENCES_AT_A_TIME = 4096  # whose tokens are counted
Tell = Callable[[int, int], None]  # done, total
Progress = Callable[[str, int, int], None]  # what is being done, done, total


@dataclass
class Scored:
    """Sums over a sample: of the data, and of each method that was scored on it."""

    sample: Sample
    data: DocumentSums = field(init=False)
    methods: dict[str, DocumentSums] = field(default_factory=dict)
    firings: dict[str, Firings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data = DocumentSums(self.sample.units)

    def table(self, method: str) -> dict[str, np.ndarray]:
        """Sums per unit of the data and of a method."""
        return (self.data | self.methods[method]).arrays()


def fit_controls(
    coder: Coder, train: TrainData, l0: int, controls: Sequence[str], seed: int, tell: Progress
) -> dict[str, CoderLike]:
    """The named controls; those that take long tell how far they are, under their own names."""
    found = {}
    for number, name in enumerate(controls):
        tell("controls", number, len(controls))
        data = replace(train, tell=partial(tell, f"control {name}"))
        found[name] = CONTROLS[name](coder, data, l0, seed)
    if controls:
        tell("controls", len(controls), len(controls))
    return found


@torch.inference_mode()
def score_activations(
    methods: Mapping[str, CoderLike],
    sample: Sample,
    batches: Iterable[Batch],
    mean_D: Tensor,
    tell: Tell,
) -> Scored:
    """All methods on the same activations of a sample.

    Who fires is kept per unit of the coder alone: of controls only the codes per token are wanted.
    """
    scored = Scored(sample)
    for name, method in methods.items():
        norms_F = method.W_dec_FD.norm(dim=1)
        units = sample.units if name == CODER else 1
        scored.methods[name] = DocumentSums(sample.units)
        scored.firings[name] = Firings(len(norms_F), units, norms_F)
    done = 0
    for batch in batches:
        add_data(scored.data, batch, mean_D)
        for name, method in methods.items():
            x_hat_BD, codes = reconstruct(method, batch.given_BD)
            sums = scored.methods[name]
            add_errors(sums, batch, x_hat_BD, mean_D)
            terms = scored.firings[name].add(codes, batch.unit_B, batch.scored_B)
            sums.add(batch.unit_B[batch.scored_B], **terms)
        done += int(batch.scored_B.sum())
        tell(done, sample.tokens)
    return scored


def score_random_model(
    coder: Coder,
    lm: "LanguageModel",
    train: TrainData,
    sample: Sample,
    l0: int,
    seed: int,
    tell: Progress,
) -> Scored:
    """A coder of a randomly initialised model, on the same tokens as that model sees them."""
    untrained = random_model(lm, seed)
    tell_step = partial(tell, f"control {RANDOM_MODEL}")
    data = replace(train, tell=tell_step)
    control, mean_D = random_model_coder(coder, data, untrained, l0, seed)
    batches = (
        replace(batch, x_BD=batch.x_BD.to(train.device))
        for batch in activations(untrained, sample, train.site)
    )
    tell_tokens = partial(tell, f"activations, {RANDOM_MODEL}")
    return score_activations({RANDOM_MODEL: control}, sample, batches, mean_D, tell_tokens)


def score_losses(
    methods: Mapping[str, Replace],
    lm: "LanguageModel",
    site: str,
    sample: Sample,
    mean_D: Tensor,
    tell: Tell,
    source: str | None = None,
    *,
    by_group: bool = False,
) -> dict[str, DocumentSums]:
    """Losses of the model with each method spliced in.

    `by_group`: those of the coder by group as well, per sequence under `BY_SEQUENCE`.
    """
    context = sample.store.context
    look = None
    if by_group:
        counts_V = _token_counts(sample.store, lm.vocab_size)
        look = closely(CODER, BY_SEQUENCE, sample, counts_V)
    return fidelity.language_model_sums(
        lm,
        site,
        methods,
        {"zero": torch.zeros_like(mean_D), "mean": mean_D},
        sample,
        lambda sequences: tell(sequences * context, sample.tokens_ST.size),
        source,
        look,
    )


def _token_counts(store: ActivationStore, vocabulary: int) -> np.ndarray:
    """(V,) how often each token stands in the train split."""
    train, counts_V = store.rows_of("train"), np.zeros(vocabulary, np.int64)
    first, last = train.start // store.context, train.stop // store.context
    for start in range(first, last, SEQUENCES_AT_A_TIME):
        tokens = store.tokens(start, min(start + SEQUENCES_AT_A_TIME, last))
        counts_V += np.bincount(tokens.reshape(-1), minlength=vocabulary)
    return counts_V
