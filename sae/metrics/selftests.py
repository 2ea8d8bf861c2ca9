"""Checks inside every evaluation: predictors whose scores are known in advance.

They run through the very functions that score the coder, on the same held-out text. If one
fails, the pipeline or the coder is not what it claims to be, and no number is published.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae.base.devices import in_float64
from sae.coders import Coder, make_coder
from sae.metrics import fidelity
from sae.metrics.continuation import Replace
from sae.metrics.identity import identities
from sae.metrics.known_answers import SelfTest, SelfTestFailure, score
from sae.metrics.sample import Batch, Sample
from sae.metrics.sparsity import Firings

if TYPE_CHECKING:
    from sae.lm import LanguageModel

ROWS = 8192  # for reconstruction
LM_ROWS = 2048  # for losses
NATS = 1e-5
SCALE = 0.9


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
    rows = list(sample.some(max(1, ROWS // context)).batches(site, centre_D.device))
    few = sample.some(max(1, LM_ROWS // context))
    tests = [
        mean_predictor(rows, centre_D),
        identity(rows, centre_D),
        known_scaling(rows, centre_D),
        oracle_dictionary(),
        max((store_matches_model(lm, s, few) for s in {site, source}), key=lambda t: t.value),
        *splices(coder, lm, site, source, few),
        *identities(coder, lm, site, source, few),
    ]
    if failed := [test for test in tests if not test.passed]:
        raise SelfTestFailure(
            "No evaluation is published, because a self-test failed. "
            + " ".join(
                f"{t.name}: {t.sentence} (off by {t.value:.3g}, allowed {t.tolerance:.3g})."
                for t in failed
            )
        )
    return {test.name: test.to_json() for test in tests}


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


@torch.inference_mode()
def store_matches_model(lm: "LanguageModel", site: str, few: Sample) -> SelfTest:
    """The stored activations are this model's at this site, up to half-precision rounding."""
    stored = torch.cat([b.x_BD[b.scored_B] for b in few.batches(site)])
    live = lm.capture(torch.from_numpy(few.tokens_ST), [site])[site].float().cpu()
    live = live[torch.from_numpy(few.scored_ST)]
    variance = (live - live.mean(0)).double().square().sum()
    off = float((stored - live).double().square().sum() / variance)
    return SelfTest(
        "store_matches_model", off, 0.02, f"the store's rows must be the model's own at `{site}`"
    )


@torch.inference_mode()
def splices(
    coder: Coder, lm: "LanguageModel", site: str, source: str, few: Sample
) -> list[SelfTest]:
    """Losses with something known spliced in, against `LanguageModel`'s own full forward pass."""
    tokens_ST = torch.from_numpy(few.tokens_ST).to(lm.device)
    scored_ST = torch.from_numpy(few.scored_ST)
    wanted_ST = scored_ST[:, :-1] & scored_ST[:, 1:]

    def loss() -> float:
        return float(lm.token_losses(tokens_ST).cpu()[wanted_ST].double().mean())

    clean = loss()
    captured = lm.capture(tokens_ST, list({site, source}))
    x_ND, given_ND = (captured[s][:, 1:].flatten(0, 1).float() for s in (site, source))
    error_ND = x_ND - coder(given_ND)
    read = source if source != site else None
    with lm.splice(site, lambda rows: coder(rows) + error_ND, read):
        restored = loss()
    with lm.splice(site, coder, read):
        coded = loss()
    methods: dict[str, dict[str, Replace]] = {site: {"identity": lambda x: x.clone()}}
    methods.setdefault(source, {})["coder"] = coder  # by what they read
    sums = {}
    for read_from, same in methods.items():
        sums |= fidelity.language_model_sums(lm, site, same, {}, few, source=read_from)
    found = {name: s.total("ce") / s.total("count") for name, s in sums.items()}
    return [
        SelfTest(
            "splice_error_restored",
            restored - clean,
            NATS,
            "splicing x̂ + e must give the clean loss",
        ),
        SelfTest(
            "splice_identity",
            found["identity"] - clean,
            NATS,
            "splicing x itself must cost ΔCE 0",
        ),
        SelfTest(
            "splice_agrees",
            found["coder"] - coded,
            10 * NATS,  # a near-tie may select another latent in a batch of another size
            "the loss with the coder must be that of the model's own splice",
        ),
    ]
