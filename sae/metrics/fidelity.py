"""What the language model loses when x̂ takes the place of x: ΔCE, KL, loss recovered.

Sums per predicted token, in float64, over positions whose own token and whose target are both
scored (no position 0, BOS, EOS, PAD; the splice leaves position 0 alone):

    count     ce_clean   cross-entropy of the unchanged model, nats
    ce        with the method spliced in         kl   KL(p ‖ p̂) of the clean and the spliced
    ce_zero   with zeros spliced in              ce_mean   with the mean of the train split
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sae.lm import LanguageModel
from sae.metrics.continuation import Continuation, Replace, constant
from sae.metrics.registry import metric
from sae.metrics.sample import Sample
from sae.metrics.sums import DocumentSums, Sums

BATCH_ROWS = 4096  # tokens run through the model at a time
LOGIT_BYTES = 1 << 28  # all (rows, V) float32 tensors alive at a time
LOGIT_TENSORS = 4  # clean log p, p, spliced logits and log p̂
CLEAN = "clean"


def language_model_sums(
    lm: LanguageModel,
    site: str,
    methods: Mapping[str, Replace],
    ablations: Mapping[str, Tensor],
    sample: Sample,
    step: Callable[[int], None] | None = None,
) -> dict[str, DocumentSums]:
    """Sums of `ce` for the clean model (under `"clean"`), each method and each ablation (a
    vector (D,) that takes the place of every activation); of `kl` for each method.

    Everything is spliced into the same clean run of the same sequences. `step(n)` is told how
    many sequences are done. Raises `UserError` if the model is not in float32.
    """
    rest = Continuation(lm, site)
    runs: dict[str, Replace | None] = {CLEAN: None, **methods}
    # Every row begins with the same BOS: with a constant in the place of all else in the
    # stream, all rows are alike, and one of them tells the loss of all.
    alike = rest.replaces_everything and len(np.unique(sample.tokens_ST[:, 0])) == 1
    if not alike:
        runs |= {name: constant(value) for name, value in ablations.items()}
    first_ST = torch.from_numpy(sample.tokens_ST[:1]).to(lm.device)
    constants = {n: _ablate(rest, first_ST, v) for n, v in ablations.items()} if alike else {}
    sums = {name: DocumentSums(sample.units) for name in (*runs, *constants)}
    size = max(1, BATCH_ROWS // sample.tokens_ST.shape[1])
    for start in range(0, len(sample.tokens_ST), size):
        where = slice(start, start + size)
        tokens_ST = torch.from_numpy(sample.tokens_ST[where]).to(lm.device)
        scored_ST = torch.from_numpy(sample.scored_ST[where])
        wanted_ST = (scored_ST[:, :-1] & scored_ST[:, 1:]).to(lm.device)
        unit_N = torch.from_numpy(sample.unit_ST[where])[:, :-1][wanted_ST.cpu()]
        targets_N = tokens_ST[:, 1:][wanted_ST]
        x_STD = rest.start(tokens_ST)
        hidden = {
            name: rest.finish(tokens_ST, x_STD, replace)[:, :-1][wanted_ST]
            for name, replace in runs.items()
        }
        _add_losses(sums, lm.model.lm_head.weight, hidden, targets_N, unit_N)
        for name, ablated in constants.items():
            losses_N = ablated.losses(wanted_ST.nonzero()[:, 1], targets_N)
            sums[name].add(unit_N, ce=losses_N)
        if step is not None:
            step(start + len(tokens_ST))
    return sums


@torch.inference_mode()
def _add_losses(
    sums: dict[str, DocumentSums],
    unembed_VD: Tensor,
    hidden: dict[str, Tensor],
    targets_N: Tensor,
    unit_N: Tensor,
) -> None:
    """Cross-entropy and KL from hidden states (N, D), a few rows of logits at a time."""
    for part in _slices(len(targets_N), len(unembed_VD)):
        target, unit = targets_N[part, None], unit_N[part]
        clean = F.log_softmax(hidden[CLEAN][part] @ unembed_VD.T, dim=-1)
        p = clean.exp()
        sums[CLEAN].add(unit, count=torch.ones(len(unit)), ce=-clean.gather(1, target)[:, 0])
        for name, states in hidden.items():
            if name == CLEAN:
                continue
            log_q = F.log_softmax(states[part] @ unembed_VD.T, dim=-1)
            ce = -log_q.gather(1, target)[:, 0]
            kl = -log_q.sub_(clean).mul_(p).sum(-1)  # in place: these tensors are the cost
            sums[name].add(unit, ce=ce, kl=kl)


@dataclass(frozen=True)
class _Ablated:
    """The model's prediction at each position when nothing but the position is known."""

    hidden_TD: Tensor
    normaliser_T: Tensor  # log Σ exp(logits)
    unembed_VD: Tensor

    def losses(self, position_N: Tensor, target_N: Tensor) -> Tensor:
        logit_N = (self.hidden_TD[position_N] * self.unembed_VD[target_N]).sum(-1)
        return self.normaliser_T[position_N] - logit_N


@torch.inference_mode()
def _ablate(rest: Continuation, first_ST: Tensor, value_D: Tensor) -> _Ablated:
    """From one row (1, T) of tokens; only its first token has a say."""
    hidden_TD = rest.finish(first_ST, rest.start(first_ST), constant(value_D))[0]
    unembed_VD = rest.lm.model.lm_head.weight
    parts = _slices(len(hidden_TD), len(unembed_VD))
    normaliser_T = torch.cat([(hidden_TD[p] @ unembed_VD.T).logsumexp(-1) for p in parts])
    return _Ablated(hidden_TD, normaliser_T, unembed_VD)


def _slices(rows: int, vocabulary: int) -> list[slice]:
    """Slices of so many rows that their logits keep within `LOGIT_BYTES`."""
    size = max(1, LOGIT_BYTES // (LOGIT_TENSORS * 4 * vocabulary))
    return [slice(start, start + size) for start in range(0, rows, size)]


def combine(sums: Mapping[str, DocumentSums], method: str) -> DocumentSums:
    """One table with what the metrics of a method need, ablations (`zero`, `mean`) included."""
    table = DocumentSums(sums[CLEAN].units)
    table.table = {
        "count": sums[CLEAN].table["count"],
        "ce_clean": sums[CLEAN].table["ce"],
        "ce_zero": sums["zero"].table["ce"],
        "ce_mean": sums["mean"].table["ce"],
        "ce": sums[method].table["ce"],
        "kl": sums[method].table["kl"],
    }
    return table


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
