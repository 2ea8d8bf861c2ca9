"""One coder, scored on held-out text together with its controls: the evaluation JSON."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from sae.coders import Coder, TwoSites, check_fit
from sae.metrics import geometry, provenance
from sae.metrics.ablation import RandomError
from sae.metrics.breakdown import breakdown
from sae.metrics.continuation import Replace
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
from sae.metrics.numbers import Shared, apart_numbers, coder_metrics, histograms
from sae.metrics.reconstruction import CoderLike
from sae.metrics.registry import formulas
from sae.metrics.sample import Part, Sample, draw
from sae.metrics.scoring import (
    BY_SEQUENCE,
    CODER,
    RANDOM_ERROR,
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
from sae.metrics.wins import wins
from sae.store import ActivationStore

if TYPE_CHECKING:
    from sae.lm import LanguageModel

SCHEMA = 1
LOSS_RUN = 1024  # consecutive rows of the loss sample: short runs touch more documents
THINNED = 16  # tokens that are read for each one of the error budget
KEYS = (
    "metrics",
    "controls",
    "coder_beside_controls",
    "ladder",
    "wins",
    "error_budget",
    "error_budget_details",
    "breakdown",
    "curves",
    "histograms",
)


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
QUICK = Budget(98_304, 8192, 16_384, 4096, 49_152, 2048)


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
    pursuit_tokens: int | None = None,
    coder_hash: str | None = None,
    quick: bool = False,
    cache: Cache | None = None,
) -> dict[str, Any]:
    """Scores a coder that takes raw activations; returns the evaluation, schema 1.

    Reconstruction, sparsity and geometry rest on about `tokens` stored activations of `split`,
    the losses on about `loss_tokens` tokens run through `lm` (in float32), the controls (default:
    those that say something of such a coder) on at most `control_tokens` of the former and about
    `control_loss_tokens` of the latter, spread evenly over them, the error budget on
    `pursuit_tokens`; every number says its tokens.
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
        "pursuit_tokens": pursuit_tokens,
    }
    budget = replace(QUICK if quick else FULL, **{k: v for k, v in given.items() if v is not None})
    device = coder.W_dec_FD.device
    mean_D = torch.from_numpy(store.stats(site).mean_D).to(device, torch.float32)
    tell = progress or (lambda _what, _done, _total: None)
    special = provenance.special_ids(lm, store)
    job = _Job(coder, store, lm, split, source, site, mean_D, special, budget, seed, tell)
    held = draw(store, split, budget.tokens, special)
    heard = draw(store, split, budget.loss_tokens, special, block_rows=LOSS_RUN)
    parts = (
        Part(held, held.about(budget.control_tokens)),
        Part(heard, heard.about(budget.control_loss_tokens)),
    )
    tell("self-tests", 0, 1)
    tests = run_self_tests(coder, lm, site, source, held, mean_D)
    tell("self-tests", 1, 1)
    found = _numbers(job, *parts, chosen, cache or Cache())
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
            "special": sorted(special),
            "interval": provenance.describe_interval(found["resampled"]),
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
    job: _Job, held: Part, heard: Part, chosen: Sequence[str], cache: Cache
) -> dict[str, Any]:
    """Everything that is measured, once the self-tests have passed: `KEYS`, and what it rests on
    (`counted` tokens, `resampled` units).
    """
    coder, seed = job.coder, job.seed
    fit_on = draw(job.store, "train", job.budget.fit_tokens, job.special)
    train = TrainData(fit_on, job.site, job.mean_D, job.mean_D.device, job.source, cache)
    with torch.inference_mode():
        l0 = matched_l0(coder, train)
    names = [name for name in chosen if name != RANDOM_MODEL]
    fitted = fit_controls(coder, train, l0, names, seed, job.tell)
    whole = _activations(job, {CODER: coder}, held.whole, "activations")
    heard_sums = _losses(job, {CODER: coder}, heard.whole, "losses", by_group=True)
    losses, by_sequence = heard_sums[CODER], heard_sums[BY_SEQUENCE]
    shared = _shared(job, fitted, held.shared, heard.shared)
    controls = {name: shared.control(name, seed) for name in fitted}
    paired = {name: shared.lifts(name, seed) for name in fitted}
    if RANDOM_MODEL in chosen:
        apart = score_random_model(coder, job.lm, train, held.shared, l0, seed, job.tell)
        controls[RANDOM_MODEL] = apart_numbers(apart, RANDOM_MODEL, seed)
    own = shared.own(seed) if controls else {}
    rungs = ladder(own, controls, paired, shared.units())
    firings = whole.firings[CODER]
    pursued = _error_budget(job, firings)
    shape, angles = geometry.geometry_sums(
        coder.W_enc_FD, coder.W_dec_FD, firings.alive_F, held.whole.tokens, seed
    )
    return {
        "metrics": coder_metrics(whole, losses, shape, seed) | shared.error(seed),
        "controls": controls,
        "coder_beside_controls": own,
        "ladder": rungs,
        "wins": wins(rungs),
        "error_budget": pursued.pop("parts"),
        "error_budget_details": pursued,
        "breakdown": breakdown(losses.arrays(), by_sequence.arrays(), heard.whole.over, seed),
        "curves": {"alive": firings.alive_curve()},
        "histograms": histograms(firings, angles),
        "counted": {
            "control_l0": l0,
            "tokens": held.whole.tokens,
            "loss_tokens": int(losses.total("count")),
            **(shared.counted() if controls else dict.fromkeys(shared.counted(), 0)),
        },
        "resampled": {
            "": (held.whole.over, whole.data.filled),
            "sparsity_": firings.resampled(held.whole.over),
            "loss_": (heard.whole.over, losses.filled),
            "control_": (held.shared.over, shared.activations.data.filled),
            "control_loss_": (heard.shared.over, shared.losses[CODER].filled),
        },
    }


def _activations(job: _Job, methods: Mapping[str, CoderLike], sample: Sample, what: str) -> Scored:
    batches = sample.batches(job.site, job.mean_D.device, job.source)
    return score_activations(methods, sample, batches, job.mean_D, partial(job.tell, what))


def _losses(
    job: _Job, methods: Mapping[str, Replace], sample: Sample, what: str, by_group: bool = False
) -> dict[str, DocumentSums]:
    return score_losses(
        methods, job.lm, job.site, sample, job.mean_D, partial(job.tell, what), job.source,
        by_group=by_group,
    )  # fmt: skip


def _shared(job: _Job, fitted: Mapping[str, CoderLike], held: Sample, heard: Sample) -> Shared:
    """Coder and controls on the same tokens; of losses, a random error of equal length as well."""
    methods = {CODER: job.coder, **fitted}
    scored = _activations(job, methods, held, "activations, controls")
    spliced: dict[str, Replace] = dict(methods)
    if not isinstance(job.coder, TwoSites):
        spliced[RANDOM_ERROR] = RandomError(job.coder, job.seed)
    return Shared(scored, _losses(job, spliced, heard, "losses, controls"))


def _error_budget(job: _Job, firings: Firings) -> dict[str, Any]:
    """On tokens of many sequences: pursuit is dear, and neighbours err alike."""
    tokens, context = min(job.budget.pursuit_tokens, job.budget.tokens), job.store.context

    def rows(split: str) -> Rows:
        many = draw(job.store, split, THINNED * tokens, job.special, block_rows=context)
        few = many.thinned(tokens, job.seed)
        return Rows.of(few, job.site, job.source, job.mean_D.device)

    return error_budget(
        job.coder, rows(job.split), rows("train"), firings.alive_F, firings.tokens, job.seed,
        partial(job.tell, "error budget"),
    )  # fmt: skip
