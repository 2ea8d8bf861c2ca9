"""The two passes of an evaluation: over stored activations, and through the language model.

Coder and controls go through both side by side, so that every comparison is of the same tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sae.coders import Coder, TwoSites
from sae.metrics import fidelity
from sae.metrics.breakdown import closely
from sae.metrics.controls import CONTROLS, TrainData
from sae.metrics.controls.random_model import (
    activations,
    mean_of,
    random_model,
    random_model_coder,
)
from sae.metrics.reconstruction import CoderLike, add_data, add_errors, reconstruct
from sae.metrics.sample import Batch, Sample
from sae.metrics.sparsity import Firings
from sae.metrics.sums import DocumentSums

if TYPE_CHECKING:
    from sae.lm import LanguageModel

CODER, SHARED, RANDOM_ERROR = "coder", "coder on the controls' tokens", "random error"
Progress = Callable[[str, int, int], None]  # what is being done, done, total


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
    units = {CODER: held.units}  # of controls only the codes per token are wanted
    counts = {n: Firings(len(norm), units.get(n, 1), norm) for n, norm in norms.items()}
    scored = Scored(Part(held.units), Part(held.units), counts[CODER])
    blocks = max(1, round(len(held.runs) * min(1.0, control_tokens / max(1, held.tokens))))
    shared = set(np.linspace(0, len(held.runs) - 1, blocks).round().astype(int).tolist())
    for number, batch in enumerate(held.batches(site, mean_D.device, source)):
        part = scored.shared if number in shared else scored.rest
        methods = {CODER: coder, **(controls if number in shared else {})}
        add_data(part.data, batch, mean_D)
        for name, method in methods.items():
            _add_method(part.of(name), counts[name], method, batch, mean_D)
        tell(counts[CODER].tokens, held.tokens)
    return scored


def _add_method(
    sums: DocumentSums, firings: Firings, method: CoderLike, batch: Batch, mean_D: Tensor
) -> None:
    x_hat_BD, codes = reconstruct(method, batch.given_BD)
    add_errors(sums, batch, x_hat_BD, mean_D)
    terms = firings.add(codes, batch.unit_B, batch.scored_B)
    sums.add(batch.unit_B[batch.scored_B], **terms)


def score_random_model(
    coder: Coder,
    lm: "LanguageModel",
    train: TrainData,
    held: Sample,
    l0: int,
    seed: int,
    tell: Progress,
) -> DocumentSums:
    """Sums of reconstruction and codes of a coder of a randomly initialised model, on the same
    held-out tokens as that model sees them.
    """
    untrained = random_model(lm, seed)
    data = replace(train, tell=partial(tell, "control random_model"))
    control = random_model_coder(coder, data, untrained, l0, seed)
    mean_D = mean_of(activations(untrained, held, train.site)).to(train.device)
    return _score_one(control, activations(untrained, held, train.site), mean_D, held.units)


@torch.inference_mode()
def _score_one(method: Coder, batches: Iterable[Batch], mean_D: Tensor, units: int) -> DocumentSums:
    data, sums = DocumentSums(units), DocumentSums(units)
    firings = Firings(method.d_sae, 1, method.W_dec_FD.norm(dim=1))
    for batch in batches:
        batch = replace(batch, x_BD=batch.x_BD.to(mean_D.device))
        add_data(data, batch, mean_D)
        _add_method(sums, firings, method, batch, mean_D)
    return data | sums


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
    seed: int = 0,
) -> dict[str, DocumentSums]:
    """Losses of the coder on all of the sample, of the controls on an even part of it.

    `SHARED` are the coder's own on that part; `RANDOM_ERROR` those with a random error of the
    coder's length, where the coder reads what it predicts.
    """
    context = heard.store.context
    turns = max(1, -(-heard.tokens // control_tokens))
    others: dict[str, Callable[[Tensor], Tensor]] = dict(controls)
    if not isinstance(coder, TwoSites):
        others[RANDOM_ERROR] = RandomError(coder, seed)
    train = heard.store.rows_of("train")
    tokens = heard.store.tokens(train.start // context, train.stop // context)
    counts_V = np.bincount(tokens.reshape(-1), minlength=lm.vocab_size)
    return fidelity.language_model_sums(
        lm,
        site,
        {CODER: coder, **others},
        {"zero": torch.zeros_like(mean_D), "mean": mean_D},
        heard,
        lambda sequences: tell(sequences * context, heard.tokens_ST.size),
        dict.fromkeys(others, turns),
        source,
        closely(CODER, SHARED, heard, counts_V),
    )


class RandomError:
    """x + ε with ε of a random direction, and of the length of the coder's own error there."""

    def __init__(self, coder: CoderLike, seed: int) -> None:
        self._coder, self._seed = coder, seed
        self._generator: torch.Generator | None = None

    def __call__(self, x_BD: Tensor) -> Tensor:
        if self._generator is None:
            self._generator = torch.Generator(x_BD.device).manual_seed(self._seed)
        noise_BD = torch.randn(x_BD.shape, generator=self._generator, device=x_BD.device)
        length_B1 = (x_BD - self._coder(x_BD)).norm(dim=1, keepdim=True)
        return x_BD + noise_BD * (length_B1 / noise_BD.norm(dim=1, keepdim=True))
