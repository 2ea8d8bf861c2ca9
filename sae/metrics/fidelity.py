"""What the language model loses when x̂ takes the place of x: ΔCE, KL, loss recovered.

Sums per predicted token, in float64, over positions whose own token and whose target are both
scored (no position 0, BOS, EOS, PAD; the splice leaves position 0 alone):

    count     ce_clean   cross-entropy of the unchanged model, nats
    ce        with the method spliced in         kl   KL(p ‖ p̂) of the clean and the spliced
    ce_zero   with zeros spliced in              ce_mean   with the mean of the train split
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sae.metrics.continuation import Continuation, Replace, constant
from sae.metrics.registry import metric
from sae.metrics.sample import Sample
from sae.metrics.sums import DocumentSums, Sums

if TYPE_CHECKING:
    from sae.lm import LanguageModel

BATCH_ROWS = 4096  # tokens run through the model at a time
LOGIT_BYTES = 1 << 28  # all (rows, V) float32 tensors alive at a time
LOGIT_TENSORS = 4  # clean log p, p, spliced logits and log p̂


@dataclass(frozen=True)
class _Batch:
    """Whole sequences, and the N predictions of them that count."""

    tokens_ST: Tensor
    wanted_ST: Tensor  # (S, T - 1) bool: this token and the next are scored
    unit_N: Tensor

    @property
    def targets_N(self) -> Tensor:
        return self.tokens_ST[:, 1:][self.wanted_ST]

    def pick(self, hidden_STD: Tensor) -> Tensor:
        """(N, D): the states that predict the targets."""
        return hidden_STD[:, :-1][self.wanted_ST]


def language_model_sums(
    lm: "LanguageModel",
    site: str,
    methods: Mapping[str, Replace],
    ablations: Mapping[str, Tensor],
    sample: Sample,
    step: Callable[[int], None] | None = None,
    every: Mapping[str, int] | None = None,
    source: str | None = None,
) -> dict[str, DocumentSums]:
    """The sums of each method. `ablations` ("zero", "mean") are vectors (D,) that take the place
    of every activation.

    Everything is spliced into the same clean run of the same sequences; a method named in
    `every` is run on every n-th batch of them only, and all its sums are of those. `step(n)` is
    told how many sequences are done. With `source`, methods are given the activations at that
    site and replace those at `site`. Raises `UserError` if the model is not in float32.
    """
    rest = Continuation(lm, site, source)
    ablated = _Ablations(rest, ablations, sample)
    sums = {name: DocumentSums(sample.units) for name in methods}
    done = 0
    for number, batch in enumerate(_batches(sample, lm.device)):
        x_STD = rest.start(batch.tokens_ST)

        def states(replace: Replace | None, batch: _Batch = batch, x_STD: Tensor = x_STD) -> Tensor:
            return batch.pick(rest.finish(batch.tokens_ST, x_STD, replace))

        turn = [name for name in methods if number % (every or {}).get(name, 1) == 0]
        shared_N = {f"ce_{name}": ablated.losses(name, batch, x_STD) for name in ablations}
        hidden = {name: states(methods[name]) for name in turn}
        _add_losses(sums, lm.model.lm_head.weight, states(None), hidden, batch, shared_N)
        done += len(batch.tokens_ST)
        if step is not None:
            step(done)
    return sums


def _batches(sample: Sample, device: torch.device) -> Iterator[_Batch]:
    size = max(1, BATCH_ROWS // sample.tokens_ST.shape[1])
    for start in range(0, len(sample.tokens_ST), size):
        part = slice(start, start + size)
        scored_ST = torch.from_numpy(sample.scored_ST[part])
        wanted_ST = scored_ST[:, :-1] & scored_ST[:, 1:]
        unit_N = torch.from_numpy(sample.unit_ST[part])[:, :-1][wanted_ST]
        tokens_ST = torch.from_numpy(sample.tokens_ST[part]).to(device)
        yield _Batch(tokens_ST, wanted_ST.to(device), unit_N)


@torch.inference_mode()
def _add_losses(
    sums: dict[str, DocumentSums],
    unembed_VD: Tensor,
    clean_ND: Tensor,
    hidden: dict[str, Tensor],
    batch: _Batch,
    shared_N: dict[str, Tensor],
) -> None:
    """Cross-entropy and KL from hidden states (N, D), a few rows of logits at a time."""
    targets_N = batch.targets_N
    for part in _slices(len(targets_N), len(unembed_VD)):
        target, unit = targets_N[part, None], batch.unit_N[part]
        clean = F.log_softmax(clean_ND[part] @ unembed_VD.T, dim=-1)
        p = clean.exp()
        shared = {name: losses_N[part] for name, losses_N in shared_N.items()}
        shared |= {"count": torch.ones(len(unit)), "ce_clean": -clean.gather(1, target)[:, 0]}
        for name, states in hidden.items():
            log_q = F.log_softmax(states[part] @ unembed_VD.T, dim=-1)
            ce = -log_q.gather(1, target)[:, 0]
            kl = -log_q.sub_(clean).mul_(p).sum(-1)  # in place: these tensors are the cost
            sums[name].add(unit, ce=ce, kl=kl, **shared)


class _Ablations:
    """Losses with one vector in the place of every activation.

    Every row begins with the same BOS; with a constant in the place of all else in the residual
    stream, all rows are alike, and one of them tells what the model predicts at each position
    of any. Elsewhere the vector is spliced in like any method.
    """

    def __init__(self, rest: Continuation, vectors: Mapping[str, Tensor], sample: Sample) -> None:
        self._rest, self._vectors = rest, vectors
        self._unembed_VD = rest.lm.model.lm_head.weight
        self._known: dict[str, tuple[Tensor, Tensor]] = {}  # hidden_TD, log Σ exp(logits)_T
        if rest.replaces_everything and len(np.unique(sample.tokens_ST[:, 0])) == 1:
            first_ST = torch.from_numpy(sample.tokens_ST[:1]).to(rest.lm.device)
            x_STD = rest.start(first_ST)
            for name, vector_D in vectors.items():
                hidden_TD = rest.finish(first_ST, x_STD, constant(vector_D))[0]
                self._known[name] = hidden_TD, self._normaliser(hidden_TD)

    @torch.inference_mode()
    def losses(self, name: str, batch: _Batch, x_STD: Tensor) -> Tensor:
        """Cross-entropy (N,) of the batch's predictions."""
        if name in self._known:
            position_N = batch.wanted_ST.nonzero()[:, 1]
            hidden_ND, normaliser_N = (known[position_N] for known in self._known[name])
        else:
            vector = constant(self._vectors[name])
            hidden_ND = batch.pick(self._rest.finish(batch.tokens_ST, x_STD, vector))
            normaliser_N = self._normaliser(hidden_ND)
        return normaliser_N - (hidden_ND * self._unembed_VD[batch.targets_N]).sum(-1)

    @torch.inference_mode()
    def _normaliser(self, hidden_ND: Tensor) -> Tensor:
        parts = _slices(len(hidden_ND), len(self._unembed_VD))
        return torch.cat([(hidden_ND[p] @ self._unembed_VD.T).logsumexp(-1) for p in parts])


def _slices(rows: int, vocabulary: int) -> list[slice]:
    """Slices of so many rows that their logits keep within `LOGIT_BYTES`."""
    size = max(1, LOGIT_BYTES // (LOGIT_TENSORS * 4 * vocabulary))
    return [slice(start, start + size) for start in range(0, rows, size)]


@metric("fidelity", "nats per token", "lower")
def ce_clean(s: Sums) -> np.ndarray:
    """CE = E[−log p(next token)] of the unchanged model."""
    return s["ce_clean"] / s["count"]


@metric("fidelity", "nats per token", "lower")
def ce_spliced(s: Sums) -> np.ndarray:
    """CE with x̂ in the place of x at every position but 0."""
    return s["ce"] / s["count"]


@metric("fidelity", "nats per token", "lower")
def delta_ce(s: Sums) -> np.ndarray:
    """ΔCE = CE(x̂ spliced in) − CE(clean).

    What the model loses by hearing the coder's version: the headline of fidelity.
    """
    return (s["ce"] - s["ce_clean"]) / s["count"]


@metric("fidelity", "nats per token", "lower")
def kl(s: Sums) -> np.ndarray:
    """E KL(p ‖ p̂) = E Σ_v p(v) (log p(v) − log p̂(v)).

    p the clean model's next-token distribution, p̂ with x̂ spliced in; unlike ΔCE it cannot be
    flattered by errors that happen to favour the true token.
    """
    return s["kl"] / s["count"]


@metric("fidelity", "share of loss", "higher")
def ce_recovered_mean(s: Sums) -> np.ndarray:
    """(CE_mean − CE_x̂) / (CE_mean − CE_clean), CE_mean with x replaced by its mean.

    1: nothing lost; 0: no better than the constant mean of the train split.
    """
    return (s["ce_mean"] - s["ce"]) / (s["ce_mean"] - s["ce_clean"])


@metric("fidelity", "share of loss", "higher")
def ce_recovered_zero(s: Sums) -> np.ndarray:
    """(CE_zero − CE_x̂) / (CE_zero − CE_clean), CE_zero with x replaced by 0.

    The most published form; zeros in the residual stream are so harmful that it saturates near
    0.99 and hides differences: read `delta_ce` and `ce_recovered_mean` first.
    """
    return (s["ce_zero"] - s["ce"]) / (s["ce_zero"] - s["ce_clean"])


@metric("fidelity", "nats per token")
def ce_ablated_mean(s: Sums) -> np.ndarray:
    """CE with the mean of the train split in the place of x."""
    return s["ce_mean"] / s["count"]


@metric("fidelity", "nats per token")
def ce_ablated_zero(s: Sums) -> np.ndarray:
    """CE with 0 in the place of x."""
    return s["ce_zero"] / s["count"]
