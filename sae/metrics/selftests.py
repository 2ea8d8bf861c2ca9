"""Checks inside every evaluation: predictors whose scores are known in advance.

They run through the very functions that score the coder, on the same held-out text. If one
fails, the pipeline or the coder is not what it claims to be, and no number is published.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sae.base.devices import in_float64
from sae.coders import Coder, make_coder
from sae.metrics.identity import identities
from sae.metrics.known_answers import SelfTest, SelfTestFailure, score
from sae.metrics.sample import Batch, Sample
from sae.metrics.sparsity import Firings
from sae.metrics.splices import ablations, splices

if TYPE_CHECKING:
    from sae.lm import LanguageModel

ROWS = 8192  # for reconstruction
LM_ROWS = 2048  # for losses
ABLATED_ROWS = 512  # for those of ablations; two sequences at least, since one stands for all
SCALE = 0.9
STORED = {"float32": 1e-5, "float16": 1e-4, "bfloat16": 5e-3}
"""FVU between a store that was harvested in this precision and the model in float32, at most.

At the sites of the pocket model it is up to 2.5e-7, 9e-6 and 6e-4. Deeper ones round more often.
"""


def run_self_tests(
    coder: Coder,
    lm: "LanguageModel",
    site: str,
    source: str,
    sample: Sample,
    centre_D: Tensor,
) -> dict[str, dict[str, Any]]:
    """The `"self_tests"` key of an evaluation. Raises `SelfTestFailure` if one fails.

    The coder reads `source` and predicts `site`. `sample` is of the held-out split; `centre_D`
    (D,) the mean of the train split at `site`.
    """
    context = sample.store.context
    part = sample.some(max(1, ROWS // context))
    rows = list(part.batches(site, centre_D.device))
    few = sample.some(max(1, LM_ROWS // context))
    fewer = sample.some(max(2, ABLATED_ROWS // context))
    tests = [
        scored_tokens(lm, sample, part, rows),
        mean_predictor(rows, centre_D),
        identity(rows, centre_D),
        known_scaling(rows, centre_D),
        oracle_dictionary(),
        store_matches_model(lm, sorted({site, source}), few),
        *splices(coder, lm, site, source, few),
        *ablations(lm, site, source, fewer, centre_D),
        *identities(coder, lm, site, source, few),
    ]
    if failed := [test for test in tests if test.passed is False]:
        raise SelfTestFailure(
            "No evaluation is published, because a self-test failed. "
            + " ".join(
                f"{t.name}: {t.sentence} (off by {t.value:.3g}, allowed {t.tolerance:.3g})."
                for t in failed
            )
        )
    return {test.name: test.to_json() for test in tests}


def scored_tokens(
    lm: "LanguageModel", sample: Sample, part: Sample, batches: Iterable[Batch]
) -> SelfTest:
    """Tokens that are scored and must not be, or must be and are not: counted anew, by id.

    From the store's own tokens and what the tokenizer names its special ones, not from the mask.
    `batches` are those of `part`, which must hold as many scored rows.
    """
    wanted_V = _to_be_scored(lm, sample)
    found_V = np.bincount(sample.tokens_ST[sample.scored_ST], minlength=len(wanted_V))
    off = int(np.abs(found_V - wanted_V).sum()) + int(sample.scored_ST[:, 0].sum())
    rows = sum(int(batch.scored_B.sum()) for batch in batches)
    off += abs(rows - int(_to_be_scored(lm, part).sum()))
    return SelfTest(
        "scored_tokens",
        float(off),
        0.0,
        "all tokens must be scored but those at position 0, BOS, EOS and PAD",
    )


def _to_be_scored(lm: "LanguageModel", sample: Sample) -> np.ndarray:
    """(V,) how often each token stands in these sequences where it is to be scored."""
    tokens_ST = np.concatenate([sample.store.tokens(r.start, r.stop) for r in sample.runs])
    count_V = np.bincount(tokens_ST[:, 1:].reshape(-1), minlength=int(tokens_ST.max()) + 1)
    names = (getattr(lm.tokenizer, f"{which}_token", None) for which in ("bos", "eos", "pad"))
    id_of: Any = lm.tokenizer.convert_tokens_to_ids  # of one token, one number
    found = [id_of(str(name)) for name in names if name is not None]
    special = {sample.store.spec.bos, *found} - {None}
    count_V[[i for i in special if i < len(count_V)]] = 0
    return count_V


def _scored(batches: Iterable[Batch]) -> Tensor:
    return in_float64(torch.cat([b.x_BD[b.scored_B.to(b.x_BD.device)] for b in batches]))


def mean_predictor(batches: list[Batch], centre_D: Tensor) -> SelfTest:
    mean_D = _scored(batches).mean(0).to(centre_D)
    found = score(lambda x_BD: mean_D.expand_as(x_BD), batches, centre_D)
    return SelfTest("mean_predictor", found["ev"], 1e-5, "predicting the mean must have EV 0")


def identity(batches: list[Batch], centre_D: Tensor) -> SelfTest:
    found = score(lambda x_BD: x_BD.clone(), batches, centre_D)
    return SelfTest("identity", 1 - found["ev"], 1e-9, "returning x itself must have EV 1")


def known_scaling(batches: list[Batch], centre_D: Tensor) -> SelfTest:
    """x̂ = c·x has e = (1 − c)·x, so every metric has a closed form.

    NMSE = (1 − c)², FVU = (1 − c)² E‖x‖² / (E‖x‖² − ‖E x‖²), which is (1 − c)² on centred data;
    cosine 1; shrinkage c; γ = c²/c = c.
    """
    x_BD = _scored(batches)
    square = float(x_BD.square().sum(1).mean())
    variance = float((x_BD - x_BD.mean(0)).square().sum(1).mean())
    expected = {
        "nmse": (1 - SCALE) ** 2,
        "fvu": (1 - SCALE) ** 2 * square / variance,
        "mse": (1 - SCALE) ** 2 * square,
        "cosine": 1.0,
        "shrinkage": SCALE,
        "gamma": SCALE,
    }
    found = score(lambda x: SCALE * x, batches, centre_D)
    worst = max(abs(found[name] / value - 1) for name, value in expected.items())
    return SelfTest("known_scaling", worst, 1e-4, f"x̂ = {SCALE}·x must score its closed form")


@torch.inference_mode()
def oracle_dictionary(width: int = 32, active: int = 4, rows: int = 2048) -> SelfTest:
    """Data made of 4 of 32 orthonormal directions, coded with exactly that dictionary."""
    generator = torch.Generator().manual_seed(0)
    directions_FD = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    which_BK = torch.rand(rows, width, generator=generator).topk(active, dim=1).indices
    amount_BK = 1 + torch.rand(rows, active, generator=generator)
    x_BD = torch.zeros(rows, width).scatter_(1, which_BK, amount_BK) @ directions_FD
    oracle = make_coder("topk", width, width, k=active)
    oracle.W_enc_FD.copy_(directions_FD)
    oracle.W_dec_FD.copy_(directions_FD)
    everything = torch.ones(rows, dtype=torch.bool)
    batch = Batch(x_BD, torch.zeros(rows, dtype=torch.int64), everything)
    firings = Firings(width, 1, oracle.W_dec_FD.norm(dim=1))
    terms = firings.add(oracle.encode(x_BD), batch.unit_B, everything)
    ev = score(oracle, [batch], torch.zeros(width))["ev"]
    off = [abs(1 - ev), abs(float(in_float64(terms["l0"]).mean()) - active)]
    off += [abs(1 - float(firings.alive_F.mean())), abs(float(firings.density_F.sum()) - active)]
    return SelfTest(
        "oracle_dictionary", max(off), 1e-5, "the true dictionary must have EV 1 and the true L0"
    )


def store_matches_model(lm: "LanguageModel", sites: list[str], few: Sample) -> SelfTest:
    """The stored activations are this model's at these sites, up to rounding.

    Storage rounds to float16; a model that was harvested in bfloat16 has rounded weights as well.
    """
    off = {site: _unlike_the_model(lm, site, few) for site in sites}
    worst = max(off, key=lambda site: off[site] if np.isfinite(off[site]) else np.inf)
    return SelfTest(
        "store_matches_model",
        off[worst],
        STORED.get(few.store.spec.harvested_as, max(STORED.values())),
        f"the store's rows must be the model's own at `{worst}`",
    )


@torch.inference_mode()
def _unlike_the_model(lm: "LanguageModel", site: str, few: Sample) -> float:
    """FVU of the stored rows against the model's own."""
    stored = torch.cat([b.x_BD[b.scored_B] for b in few.batches(site)])
    live = lm.capture(torch.from_numpy(few.tokens_ST), [site])[site].float().cpu()
    live = live[torch.from_numpy(few.scored_ST)]
    if stored.shape != live.shape:  # `scored_tokens` says why
        return float("inf")
    variance = (live - live.mean(0)).double().square().sum()
    return float((stored - live).double().square().sum() / variance)
