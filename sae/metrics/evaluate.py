"""One coder, scored on held-out text together with its controls: the evaluation JSON."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sae.coders import Coder, check_fit
from sae.metrics import geometry, provenance
from sae.metrics.bootstrap import Entry, entries
from sae.metrics.controls import TrainData, controls_of, left_out
from sae.metrics.registry import formulas, metrics_of
from sae.metrics.sample import Sample, draw
from sae.metrics.scoring import CODER, Scored, fit_controls, score_activations, score_losses
from sae.metrics.selftests import run_self_tests
from sae.metrics.sparsity import Firings
from sae.metrics.sums import DocumentSums
from sae.store import ActivationStore

if TYPE_CHECKING:
    from sae.lm import LanguageModel

SCHEMA = 1
CONTROL_TOKENS = 131_072  # activations on which controls are scored, and compared with the coder
CONTROL_LOSS_TOKENS = 16_384
FIT_TOKENS = 131_072  # of the train split, from which controls are fitted
LOSS_RUN = 1024  # consecutive rows of the loss sample: short runs touch more documents
ENCODER_DECODER = geometry.encoder_decoder_cosine.__name__
Progress = Callable[[str, int, int], None]  # what is being done, done, total (of tokens)


def evaluate(
    coder: Coder,
    store: ActivationStore,
    lm: "LanguageModel",
    *,
    split: str = "heldout",
    tokens: int = 1_000_000,
    loss_tokens: int = 65_536,
    seed: int = 0,
    progress: Progress | None = None,
    controls: Sequence[str] | None = None,
    control_tokens: int = CONTROL_TOKENS,
    control_loss_tokens: int = CONTROL_LOSS_TOKENS,
    coder_hash: str | None = None,
) -> dict[str, Any]:
    """Scores a coder that takes raw activations; returns the evaluation, schema 1.

    Reconstruction, sparsity and geometry rest on about `tokens` stored activations of `split`,
    the losses on about `loss_tokens` tokens run through `lm` (in float32), the controls (default:
    those that say something of such a coder) on at
    most `control_tokens` of the former and about `control_loss_tokens` of the latter, spread
    evenly over them; every number says its tokens.
    `coder_hash` is the hash of the coder's folder; without it, that which the folder would
    have. See `docs/metrics.md` for the JSON. Raises `UserError` if coder, store and model do
    not belong together, and `SelfTestFailure` if the pipeline itself is wrong.
    """
    started = time.monotonic()
    source, site = check_fit(coder, store, lm)
    controls = controls_of(coder) if controls is None else controls
    provenance.check_controls(controls)
    tell = progress or (lambda _what, _done, _total: None)
    special = provenance.special_ids(lm, store)
    device = coder.W_dec_FD.device
    mean_D = torch.from_numpy(store.stats(site).mean_D).to(device, torch.float32)
    held = draw(store, split, tokens, special)
    heard = draw(store, split, loss_tokens, special, block_rows=LOSS_RUN)
    tests = run_self_tests(coder, lm, site, source, held, mean_D)
    train = TrainData(draw(store, "train", FIT_TOKENS, special), site, mean_D, device, source)
    fitted = fit_controls(coder, train, controls, seed)
    scored = score_activations(
        coder, fitted, held, site, mean_D, control_tokens, partial(tell, "activations"), source
    )
    losses = score_losses(
        coder, fitted, lm, site, heard, mean_D, control_loss_tokens, partial(tell, "losses"), source
    )
    shape, angles = geometry.geometry_sums(
        coder.W_enc_FD, coder.W_dec_FD, scored.firings.alive_F, held.tokens, seed
    )
    return {
        "schema": SCHEMA,
        "metrics": _metrics(scored, losses, shape, seed),
        "controls": {name: _control(scored, losses, name, seed) for name in controls},
        "controls_left_out": left_out(coder),
        "self_tests": tests,
        "curves": {"alive": scored.firings.alive_curve()},
        "histograms": _histograms(scored.firings, angles),
        "formulas": formulas(),
        "provenance": {
            "coder": provenance.describe_coder(coder, coder_hash),
            "model": {"name": lm.name, "hash": lm.hash},
            "store": provenance.describe_store(store, split),
            "seed": seed,
            **_tokens(scored, losses, held),
            "interval": provenance.describe_interval(held, heard),
            **provenance.describe_run(device, started),
        },
    }


def _tokens(scored: Scored, losses: Mapping[str, DocumentSums], held: Sample) -> dict[str, int]:
    """How many tokens the numbers rest on."""
    controlled = len(losses) > 1
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
    if shape.table:
        one_space = "encoder_decoder" in shape.table
        known = [m for m in metrics_of("geometry") if one_space or m.name != ENCODER_DECODER]
        found |= entries(shape.arrays(), known, seed)
    return found


def _control(
    scored: Scored, losses: Mapping[str, DocumentSums], name: str, seed: int
) -> dict[str, Entry]:
    part = scored.shared
    table = (part.data | part.of(name)).arrays()
    table["coder_e2"] = part.of(CODER).table["e2"].numpy()
    wanted = metrics_of("reconstruction", "codes", "comparison")
    return entries(table, wanted, seed) | entries(
        losses[name].arrays(), metrics_of("fidelity"), seed
    )


def _histograms(firings: Firings, angles: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "log_density": firings.density_histogram(),
        "l0": firings.l0_histogram(),
    }
    for name, values in angles.items():
        found[name] = geometry.histogram(values, -1.0 if name == "encoder_decoder" else 0.0, 1.0)
    return found
