"""One coder, scored on held-out text together with its controls: the evaluation JSON."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sae.coders import Coder, check_fit
from sae.metrics import geometry, loss_metrics, provenance
from sae.metrics.bootstrap import Entry, entries
from sae.metrics.breakdown import breakdown
from sae.metrics.controls import (
    RANDOM_MODEL,
    Cache,
    TrainData,
    controls_of,
    left_out,
    matched_l0,
)
from sae.metrics.error_budget import Rows, error_budget
from sae.metrics.ladder import ladder
from sae.metrics.registry import REGISTRY, formulas, metrics_of
from sae.metrics.sample import Sample, draw
from sae.metrics.scoring import (
    CODER,
    RANDOM_ERROR,
    SHARED,
    Progress,
    Scored,
    fit_controls,
    score_activations,
    score_losses,
    score_random_model,
)
from sae.metrics.selftests import run_self_tests
from sae.metrics.sparsity import Firings
from sae.metrics.sums import DocumentSums
from sae.store import ActivationStore

if TYPE_CHECKING:
    from sae.lm import LanguageModel

SCHEMA = 1
LOSS_RUN = 1024  # consecutive rows of the loss sample: short runs touch more documents
ENCODER_DECODER = geometry.encoder_decoder_cosine.__name__
KEYS = (
    "metrics",
    "controls",
    "ladder",
    "error_budget",
    "error_budget_details",
    "breakdown",
    "curves",
    "histograms",
)
LIFT = loss_metrics.delta_ce_lift.__name__


@dataclass(frozen=True)
class Budget:
    """Tokens that an evaluation may use, of each kind."""

    tokens: int = 1_000_000  # held-out activations: reconstruction, sparsity, geometry
    loss_tokens: int = 65_536  # held-out tokens through the language model
    control_tokens: int = 131_072  # of `tokens`, on which controls are scored, and compared
    control_loss_tokens: int = 16_384  # of `loss_tokens`, likewise
    fit_tokens: int = 131_072  # of the train split, from which controls are fitted
    pursuit_tokens: int = 8192  # held-out activations of the error budget


FULL = Budget()
QUICK = Budget(98_304, 8192, 16_384, 4096, 49_152, 1024)


def evaluate(
    coder: Coder,
    store: ActivationStore,
    lm: "LanguageModel",
    *,
    split: str = "heldout",
    tokens: int | None = None,
    loss_tokens: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    controls: Sequence[str] | None = None,
    control_tokens: int | None = None,
    control_loss_tokens: int | None = None,
    coder_hash: str | None = None,
    quick: bool = False,
    cache: Cache | None = None,
) -> dict[str, Any]:
    """Scores a coder that takes raw activations; returns the evaluation, schema 1.

    Reconstruction, sparsity and geometry rest on about `tokens` stored activations of `split`,
    the losses on about `loss_tokens` tokens run through `lm` (in float32), the controls (default:
    those that say something of such a coder) on at most `control_tokens` of the former and about
    `control_loss_tokens` of the latter, spread evenly over them; every number says its tokens.
    What is not given is that of `FULL`, or with `quick` of `QUICK`, which also leaves out the
    controls that take minutes to train. `cache` keeps fitted controls between evaluations.
    `coder_hash` is the hash of the coder's folder; without it, that which the folder would
    have. See `docs/metrics.md` for the JSON. Raises `UserError` if coder, store and model do
    not belong together, and `SelfTestFailure` if the pipeline, or the coder, is not what it
    claims to be.
    """
    started = time.monotonic()
    source, site = check_fit(coder, store, lm)
    chosen = controls_of(coder, quick) if controls is None else tuple(controls)
    provenance.check_controls(chosen)
    given = {
        "tokens": tokens,
        "loss_tokens": loss_tokens,
        "control_tokens": control_tokens,
        "control_loss_tokens": control_loss_tokens,
    }
    budget = replace(QUICK if quick else FULL, **{k: v for k, v in given.items() if v is not None})
    device = coder.W_dec_FD.device
    mean_D = torch.from_numpy(store.stats(site).mean_D).to(device, torch.float32)
    tell = progress or (lambda _what, _done, _total: None)
    special = provenance.special_ids(lm, store)
    job = _Job(coder, store, lm, split, source, site, mean_D, special, budget, seed, tell)
    held = draw(store, split, budget.tokens, special)
    heard = draw(store, split, budget.loss_tokens, special, block_rows=LOSS_RUN)
    tell("self-tests", 0, 1)
    tests = run_self_tests(coder, lm, site, source, held, mean_D)
    tell("self-tests", 1, 1)
    found = _numbers(job, held, heard, chosen, cache or Cache())
    return {
        "schema": SCHEMA,
        **{key: found[key] for key in KEYS},
        "controls_left_out": left_out(coder, chosen),
        "self_tests": tests,
        "formulas": formulas(),
        "provenance": {
            "coder": provenance.describe_coder(coder, coder_hash),
            "model": {"name": lm.name, "hash": lm.hash},
            "store": provenance.describe_store(store, split),
            "seed": seed,
            "quick": quick,
            "budget": asdict(budget),
            **found["counted"],
            "interval": provenance.describe_interval(held, heard),
            **provenance.describe_run(device, started),
        },
    }


@dataclass(frozen=True)
class _Job:
    """What is evaluated on what. The coder reads `source` and predicts `site`."""

    coder: Coder
    store: ActivationStore
    lm: "LanguageModel"
    split: str
    source: str
    site: str
    mean_D: torch.Tensor  # (D,) of the train split at `site`
    special: frozenset[int]
    budget: Budget
    seed: int
    tell: Progress


def _numbers(
    job: _Job, held: Sample, heard: Sample, chosen: Sequence[str], cache: Cache
) -> dict[str, Any]:
    """Everything that is measured, once the self-tests have passed: `KEYS`, and `counted`."""
    coder, budget, seed = job.coder, job.budget, job.seed
    fit_on = draw(job.store, "train", budget.fit_tokens, job.special)
    train = TrainData(fit_on, job.site, job.mean_D, job.mean_D.device, job.source, cache)
    with torch.inference_mode():
        l0 = matched_l0(coder, train)
    names = [name for name in chosen if name != RANDOM_MODEL]
    fitted = fit_controls(coder, train, l0, names, seed, job.tell)
    scored = score_activations(
        coder, fitted, held, job.site, job.mean_D, budget.control_tokens,
        partial(job.tell, "activations"), job.source,
    )  # fmt: skip
    losses = score_losses(
        coder, fitted, job.lm, job.site, heard, job.mean_D, budget.control_loss_tokens,
        partial(job.tell, "losses"), job.source, seed,
    )  # fmt: skip
    controls = {name: _control(scored, losses, name, seed) for name in fitted}
    if RANDOM_MODEL in chosen:
        controls[RANDOM_MODEL] = _random_model(job, train, l0)
    pursued = _error_budget(job, scored.firings.alive_F)
    shape, angles = geometry.geometry_sums(
        coder.W_enc_FD, coder.W_dec_FD, scored.firings.alive_F, held.tokens, seed
    )
    return {
        "metrics": _metrics(scored, losses, shape, seed),
        "controls": controls,
        "ladder": ladder(_on_shared(scored, losses, seed), controls),
        "error_budget": pursued.pop("parts"),
        "error_budget_details": pursued,
        "breakdown": breakdown(losses[CODER].arrays(), seed),
        "curves": {"alive": scored.firings.alive_curve()},
        "histograms": _histograms(scored.firings, angles),
        "counted": {"control_l0": l0, **_tokens(scored, losses, held)},
    }


def _random_model(job: _Job, train: TrainData, l0: int) -> dict[str, Entry]:
    few = draw(job.store, job.split, job.budget.control_tokens, job.special, block_rows=LOSS_RUN)
    sums = score_random_model(job.coder, job.lm, train, few, l0, job.seed, job.tell)
    return entries(sums.arrays(), metrics_of("reconstruction", "codes"), job.seed)


def _error_budget(job: _Job, alive_F: np.ndarray) -> dict[str, Any]:
    rows = []
    for part in (job.split, "train"):
        tokens = job.budget.pursuit_tokens
        few = draw(job.store, part, tokens, job.special, block_rows=LOSS_RUN)
        rows.append(Rows.of(few, job.site, job.source, job.mean_D.device))
    held, train = rows
    tell = partial(job.tell, "error budget")
    return error_budget(job.coder, held, train, alive_F, job.seed, tell)


def _tokens(scored: Scored, losses: Mapping[str, DocumentSums], held: Sample) -> dict[str, int]:
    """How many tokens the numbers rest on."""
    controlled = bool(set(losses) - {CODER, SHARED, RANDOM_ERROR})
    return {
        "tokens": held.tokens,
        "loss_tokens": int(losses[CODER].total("count")),
        "control_tokens": int(scored.shared.data.total("count")) if controlled else 0,
    }


def _metrics(
    scored: Scored, losses: Mapping[str, DocumentSums], shape: DocumentSums, seed: int
) -> dict[str, Entry]:
    data = scored.shared.data + scored.rest.data
    own = scored.shared.of(CODER) + scored.rest.of(CODER)
    found = entries((data | own).arrays(), metrics_of("reconstruction", "codes"), seed)
    found |= entries(scored.firings.table(), metrics_of("sparsity"), seed)
    found |= entries(losses[CODER].arrays(), metrics_of("fidelity"), seed)
    if RANDOM_ERROR in losses:
        table = losses[SHARED].arrays()
        table |= {f"random_{k}": losses[RANDOM_ERROR].arrays()[k] for k in ("ce", "kl")}
        found |= entries(table, metrics_of("error"), seed)
    if shape.table:
        one_space = "encoder_decoder" in shape.table
        known = [m for m in metrics_of("geometry") if one_space or m.name != ENCODER_DECODER]
        found |= entries(shape.arrays(), known, seed)
    return found


def _on_shared(scored: Scored, losses: Mapping[str, DocumentSums], seed: int) -> dict[str, Entry]:
    """The coder's own numbers on the tokens on which its controls were scored."""
    part = scored.shared
    table = (part.data | part.of(CODER)).arrays()
    found = entries(table, metrics_of("reconstruction", "codes"), seed, resamples=1)
    shared = losses[SHARED].arrays()
    return found | entries(shared, metrics_of("fidelity"), seed, resamples=1)


def _control(
    scored: Scored, losses: Mapping[str, DocumentSums], name: str, seed: int
) -> dict[str, Entry]:
    part = scored.shared
    table = (part.data | part.of(name)).arrays()
    table["coder_e2"] = part.of(CODER).table["e2"].numpy()
    heard = losses[name].arrays() | {"coder_ce": losses[SHARED].table["ce"].numpy()}
    of_activations = metrics_of("reconstruction", "codes", "comparison")
    return entries(table, [m for m in of_activations if m.name != LIFT], seed) | entries(
        heard, [*metrics_of("fidelity"), REGISTRY[LIFT]], seed
    )


def _histograms(firings: Firings, angles: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "log_density": firings.density_histogram(),
        "l0": firings.l0_histogram(),
    }
    for name, values in angles.items():
        found[name] = geometry.histogram(values, -1.0 if name == "encoder_decoder" else 0.0, 1.0)
    return found
