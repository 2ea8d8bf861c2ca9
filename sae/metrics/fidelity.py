"""What the language model loses when x̂ takes the place of x: ΔCE, KL, loss recovered.

Sums per predicted token, in float64, over positions whose own token and whose target are both
scored (no position 0, BOS, EOS, PAD; the splice leaves position 0 alone):

    count     ce_clean   cross-entropy of the unchanged model, nats
    ce        with the method spliced in         kl   KL(p ‖ p̂) of the clean and the spliced
    ce_zero   with zeros spliced in              ce_mean   with the mean of the train split
    kl_zero, kl_mean   KL(p ‖ p̂) of the ablations

and, of one method, some of these by groups of tokens: `count@name` and so on, one column a group.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sae.metrics.continuation import Continuation, Replace, constant
from sae.metrics.sample import MAX_UNITS, Sample
from sae.metrics.sums import DocumentSums

if TYPE_CHECKING:
    from sae.lm import LanguageModel

BATCH_ROWS = 4096  # tokens run through the model at a time
LOGIT_BYTES = 1 << 28  # all (rows, V) float32 tensors alive at a time
LOGIT_TENSORS = 4  # clean log p, p, spliced logits and log p̂
GROUPED = ("count", "ce", "ce_clean", "ce_mean", "kl")


@dataclass(frozen=True)
class Closely:
    """A method that is looked at more closely than the others.

    Its sums by group are taken as well, `groups[name]` being labels (n, T) of the tokens that are
    read, from 0 to `sizes[name]` - 1. A group may hold tokens of a few documents only, so these
    sums are kept per sequence too, under the name `by_sequence`. There must be the ablation "mean".
    """

    method: str
    by_sequence: str
    groups: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class _Batch:
    """Whole sequences, and the N predictions of them that count."""

    tokens_ST: Tensor
    wanted_ST: Tensor  # (S, T - 1) bool: this token and the next are scored
    unit_N: Tensor
    sequence_N: Tensor  # number within the sample
    part: slice  # of the sample's sequences

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
    source: str | None = None,
    closely: Closely | None = None,
) -> dict[str, DocumentSums]:
    """The sums of each method. `ablations` ("zero", "mean") are vectors (D,) that take the place
    of every activation.

    Everything is spliced into the same clean run of the same sequences. `step(n)` is told how
    many of them are done. With `source`, methods are given the activations at that site and
    replace those at `site`. Raises `UserError` if the model is not in float32.
    """
    rest = Continuation(lm, site, source)
    ablated = _Ablations(rest, ablations, sample)
    sums = {name: DocumentSums(sample.units) for name in methods}
    if closely is not None:
        sums[closely.by_sequence] = DocumentSums(min(len(sample.tokens_ST), MAX_UNITS))
    done = 0
    for batch in _batches(sample, lm.device):
        x_STD = rest.start(batch.tokens_ST)

        def states(replace: Replace | None, batch: _Batch = batch, x_STD: Tensor = x_STD) -> Tensor:
            return batch.pick(rest.finish(batch.tokens_ST, x_STD, replace))

        ablation = {name: ablated.states(name, batch, x_STD) for name in ablations}
        hidden = {name: states(method) for name, method in methods.items()}
        for part, losses in _losses(lm.model.lm_head.weight, states(None), hidden, ablation, batch):
            for name, terms in losses.items():
                sums[name].add(batch.unit_N[part], **terms)
            if closely is not None:
                _add_grouped(sums, closely, batch, part, losses[closely.method])
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
        sequence_N = start + wanted_ST.nonzero()[:, 0]
        tokens_ST = torch.from_numpy(sample.tokens_ST[part]).to(device)
        yield _Batch(tokens_ST, wanted_ST.to(device), unit_N, sequence_N, part)


@torch.inference_mode()
def _losses(
    unembed_VD: Tensor,
    clean_ND: Tensor,
    hidden: dict[str, Tensor],
    ablation: dict[str, "_States"],
    batch: _Batch,
) -> Iterator[tuple[slice, dict[str, dict[str, Tensor]]]]:
    """Cross-entropy and KL of each method from hidden states (N, D), a few rows at a time."""
    targets_N = batch.targets_N
    for part in _slices(len(targets_N), len(unembed_VD)):
        target = targets_N[part, None]
        clean = F.log_softmax(clean_ND[part] @ unembed_VD.T, dim=-1)
        p = clean.exp()
        common = {"count": torch.ones(len(target)), "ce_clean": -clean.gather(1, target)[:, 0]}
        # Σ_v p(v) log q(v) = (Σ_v p(v) w_v) · h − log Σ exp: one product serves all ablations.
        negative_entropy, mean_ND = (p * clean).sum(-1), p @ unembed_VD
        for name, states in ablation.items():
            hidden_ND, normaliser_N = states.hidden_ND[part], states.normaliser_N[part]
            of_target = (hidden_ND * unembed_VD[target[:, 0]]).sum(-1)
            common[f"ce_{name}"] = normaliser_N - of_target
            expected = (hidden_ND * mean_ND).sum(-1) - normaliser_N
            common[f"kl_{name}"] = negative_entropy - expected
        found = {}
        for name, states_ND in hidden.items():
            log_q = F.log_softmax(states_ND[part] @ unembed_VD.T, dim=-1)
            ce = -log_q.gather(1, target)[:, 0]
            kl = -log_q.sub_(clean).mul_(p).sum(-1)  # in place: these tensors are the cost
            found[name] = {"ce": ce, "kl": kl, **common}
        yield part, found


def _add_grouped(
    sums: Mapping[str, DocumentSums],
    closely: Closely,
    batch: _Batch,
    part: slice,
    terms: dict[str, Tensor],
) -> None:
    wanted_ST = batch.wanted_ST.cpu()
    units = {
        closely.method: batch.unit_N[part],
        closely.by_sequence: batch.sequence_N[part] % MAX_UNITS,
    }
    for group, labels_ST in closely.groups.items():
        label_N = torch.from_numpy(labels_ST[batch.part])[:, :-1][wanted_ST][part]
        wanted = {f"{term}@{group}": terms[term] for term in GROUPED}
        for name, unit_N in units.items():
            sums[name].add_grouped(unit_N, label_N, closely.sizes[group], **wanted)


@dataclass(frozen=True)
class _States:
    """Hidden states (N, D) with an ablation spliced in, and log Σ exp (N,) of their logits."""

    hidden_ND: Tensor
    normaliser_N: Tensor


class _Ablations:
    """Predictions with one vector in the place of every activation.

    Every row begins with the same BOS; with a constant in the place of all else in the residual
    stream, all rows are alike, and one of them tells what the model predicts at each position
    of any. Elsewhere the vector is spliced in like any method.
    """

    def __init__(self, rest: Continuation, vectors: Mapping[str, Tensor], sample: Sample) -> None:
        self._rest, self._vectors = rest, vectors
        self._unembed_VD = rest.lm.model.lm_head.weight
        self._known: dict[str, _States] = {}  # one row, (T, ...)
        if vectors and rest.replaces_everything and len(np.unique(sample.tokens_ST[:, 0])) == 1:
            first_ST = torch.from_numpy(sample.tokens_ST[:1]).to(rest.lm.device)
            x_STD = rest.start(first_ST)
            for name, vector_D in vectors.items():
                hidden_TD = rest.finish(first_ST, x_STD, constant(vector_D))[0]
                self._known[name] = _States(hidden_TD, self._normaliser(hidden_TD))

    @torch.inference_mode()
    def states(self, name: str, batch: _Batch, x_STD: Tensor) -> _States:
        if name in self._known:
            position_N = batch.wanted_ST.nonzero()[:, 1]
            known = self._known[name]
            return _States(known.hidden_ND[position_N], known.normaliser_N[position_N])
        vector = constant(self._vectors[name])
        hidden_ND = batch.pick(self._rest.finish(batch.tokens_ST, x_STD, vector))
        return _States(hidden_ND, self._normaliser(hidden_ND))

    @torch.inference_mode()
    def _normaliser(self, hidden_ND: Tensor) -> Tensor:
        parts = _slices(len(hidden_ND), len(self._unembed_VD))
        return torch.cat([(hidden_ND[p] @ self._unembed_VD.T).logsumexp(-1) for p in parts])


def _slices(rows: int, vocabulary: int) -> list[slice]:
    """Slices of so many rows that their logits keep within `LOGIT_BYTES`."""
    size = max(1, LOGIT_BYTES // (LOGIT_TENSORS * 4 * vocabulary))
    return [slice(start, start + size) for start in range(0, rows, size)]
