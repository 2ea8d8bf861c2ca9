"""Losses with something spliced in, against the model's own splice and full logits."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.coders import Coder
from sae.lm import LanguageModel
from sae.metrics import fidelity
from sae.metrics.ablation import RandomDirections, RandomError
from sae.metrics.bootstrap import entries
from sae.metrics.continuation import Continuation, Replace
from sae.metrics.registry import metrics_of
from sae.metrics.sample import Sample, draw
from sae.store import ActivationStore
from tests.metrics.conftest import END, MLP, SITE

ABLATIONS = {"zero": torch.zeros(32), "mean": torch.linspace(-1, 1, 32)}


@pytest.fixture
def sample(store: ActivationStore) -> Sample:
    return draw(store, "heldout", 300, {END}, block_rows=64)


def halve(x_BD: Tensor) -> Tensor:
    return 0.5 * x_BD


def values(lm: LanguageModel, site: str, sample: Sample, method: object) -> dict[str, float]:
    sums = fidelity.language_model_sums(lm, site, {"m": method}, ABLATIONS, sample)  # pyright: ignore
    table = sums["m"].arrays()
    found = entries(table, metrics_of("fidelity"), resamples=10)
    return {name: float(e["value"]) for name, e in found.items() if e["value"] is not None}


def by_hand(lm: LanguageModel, site: str, sample: Sample, method: object) -> dict[str, float]:
    """The same from `LanguageModel`'s public methods alone, with whole (S, T, V) logits."""
    tokens = torch.from_numpy(sample.tokens_ST)
    scored = torch.from_numpy(sample.scored_ST)
    wanted = scored[:, :-1] & scored[:, 1:]

    def log_p(replace: object) -> Tensor:
        if replace is None:
            logits = lm.logits(tokens)
        else:
            with lm.splice(site, replace):  # pyright: ignore[reportArgumentType]
                logits = lm.logits(tokens)
        return F.log_softmax(logits[:, :-1].double(), dim=-1)[wanted]

    def ce(log_q: Tensor) -> float:
        return float(F.nll_loss(log_q, tokens[:, 1:][wanted]))

    clean, spliced = log_p(None), log_p(method)

    def kl(log_q: Tensor) -> float:
        return float(F.kl_div(log_q, clean, log_target=True, reduction="batchmean"))

    zero, mean = (ce(log_p(lambda x, v=v: v.expand_as(x))) for v in ABLATIONS.values())
    return {
        "ce_clean": ce(clean),
        "ce_spliced": ce(spliced),
        "delta_ce": ce(spliced) - ce(clean),
        "kl": kl(spliced),
        "ce_recovered_mean": (mean - ce(spliced)) / (mean - ce(clean)),
        "ce_recovered_zero": (zero - ce(spliced)) / (zero - ce(clean)),
        "ce_ablated_mean": mean,
        "ce_ablated_zero": zero,
        **{
            f"kl_recovered_{name}": 1 - kl(spliced) / kl(log_p(lambda x, v=v: v.expand_as(x)))
            for name, v in ABLATIONS.items()
        },
    }


@pytest.mark.parametrize("site", [SITE, "blocks.1.hook_resid_pre", "blocks.0.hook_resid_mid", MLP])
def test_every_metric_is_its_formula(lm: LanguageModel, sample: Sample, site: str) -> None:
    expected = by_hand(lm, site, sample, halve)
    assert expected["kl"] > 0.01
    assert values(lm, site, sample, halve) == pytest.approx(expected, abs=2e-5, rel=2e-5)


def test_a_coder_counts_as_any_function(lm: LanguageModel, sample: Sample, coder: Coder) -> None:
    expected = by_hand(lm, SITE, sample, coder)
    assert values(lm, SITE, sample, coder) == pytest.approx(expected, abs=1e-4, rel=1e-4)


def test_identity_costs_nothing(lm: LanguageModel, sample: Sample) -> None:
    found = values(lm, SITE, sample, lambda x: x.clone())
    assert (found["delta_ce"], found["kl"]) == pytest.approx((0, 0), abs=1e-6)
    assert found["ce_recovered_mean"] == pytest.approx(1)


def test_an_ablation_spliced_as_a_method_recovers_nothing(
    lm: LanguageModel, sample: Sample
) -> None:
    """The shortcut for constants (one row stands for all) agrees with really splicing them."""
    found = values(lm, SITE, sample, lambda x: ABLATIONS["mean"].expand_as(x))
    assert found["ce_spliced"] == pytest.approx(found["ce_ablated_mean"], abs=1e-5)
    assert found["ce_recovered_mean"] == pytest.approx(0, abs=1e-4)


def test_rows_that_begin_differently_are_not_taken_as_alike(
    lm: LanguageModel, sample: Sample
) -> None:
    sample.tokens_ST[::2, 0] = 7
    expected = by_hand(lm, SITE, sample, halve)
    assert values(lm, SITE, sample, halve) == pytest.approx(expected, abs=2e-5, rel=2e-5)


def test_chunks_of_logits_change_nothing(
    lm: LanguageModel, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = values(lm, SITE, sample, halve)
    sizes = []
    softmax = F.log_softmax

    def watched(logits: Tensor, dim: int) -> Tensor:
        sizes.append(logits.numel() * 4)
        return softmax(logits, dim=dim)

    monkeypatch.setattr(fidelity, "LOGIT_BYTES", fidelity.LOGIT_TENSORS * 4 * lm.vocab_size * 10)
    monkeypatch.setattr(fidelity, "BATCH_ROWS", 64)
    monkeypatch.setattr(fidelity.F, "log_softmax", watched)
    assert values(lm, SITE, sample, halve) == pytest.approx(whole, abs=1e-5)
    assert max(sizes) == 4 * lm.vocab_size * 10


def test_only_positions_with_two_scored_tokens_count(lm: LanguageModel, sample: Sample) -> None:
    sums = fidelity.language_model_sums(lm, SITE, {"m": halve}, ABLATIONS, sample)
    scored = sample.scored_ST
    assert sums["m"].total("count") == (scored[:, :-1] & scored[:, 1:]).sum()


def test_position_0_is_left_alone(lm: LanguageModel, sample: Sample) -> None:
    tokens = torch.from_numpy(sample.tokens_ST)
    rest = Continuation(lm, SITE)
    x = rest.start(tokens)
    clean, spliced = rest.finish(tokens, x, None), rest.finish(tokens, x, halve)
    assert torch.equal(clean[:, 0], spliced[:, 0])
    assert not torch.allclose(clean[:, 1], spliced[:, 1])


def test_the_error_ratio_is_1_where_the_coder_errs_at_random(
    lm: LanguageModel, sample: Sample
) -> None:
    """KL(coder) / KL(random): of an error that is itself of random directions, 1 but for noise;
    of one along the mean activation, what splicing both by hand gives.
    """
    ratio = metrics_of("error")

    def measured(method: Replace, seed: int) -> dict[str, float]:
        methods = {"coder": method, "random": RandomError(method, seed)}
        sums = fidelity.language_model_sums(lm, SITE, methods, ABLATIONS, sample)
        table = sums["coder"].arrays()
        table |= {f"random_{k}": sums["random"].arrays()[k] for k in ("ce", "kl")}
        found = entries(table, ratio, resamples=10)
        return {name: float(entry["value"] or 0) for name, entry in found.items()}

    directions = RandomDirections(seed=5)
    at_random = measured(lambda x: x + directions(x), seed=6)
    assert at_random["kl_error_ratio"] == pytest.approx(1, abs=0.15)
    one_way = measured(lambda x: x + ABLATIONS["mean"], seed=6)
    plain = by_hand(lm, SITE, sample, lambda x: x + ABLATIONS["mean"])
    noise = by_hand(lm, SITE, sample, RandomError(lambda x: x + ABLATIONS["mean"], 6))
    assert one_way["kl_error_ratio"] == pytest.approx(plain["kl"] / noise["kl"], rel=0.1)
    assert one_way["delta_ce_random_error"] == pytest.approx(noise["delta_ce"], abs=0.1)


def test_half_precision_is_refused(lm: LanguageModel, tiny_folder: object) -> None:
    from sae.lm import load_lm

    low = load_lm(str(tiny_folder), device="cpu", dtype="bfloat16")
    with pytest.raises(UserError, match="float32"):
        Continuation(low, SITE)


def test_sums_are_kept_per_document(lm: LanguageModel, sample: Sample) -> None:
    sums = fidelity.language_model_sums(lm, SITE, {"m": halve}, ABLATIONS, sample)
    table = sums["m"].arrays()
    losses = lm.token_losses(torch.from_numpy(sample.tokens_ST)).double().numpy()
    scored = sample.scored_ST[:, :-1] & sample.scored_ST[:, 1:]
    expected = np.zeros(sample.units)
    np.add.at(expected, sample.unit_ST[:, :-1][scored], losses[scored])
    assert table["ce_clean"] == pytest.approx(expected, rel=1e-5)


def test_one_method_may_be_looked_at_closely(
    lm: LanguageModel, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sums by group add up to its sums."""
    monkeypatch.setattr(fidelity, "BATCH_ROWS", 64)
    groups = {"odd": np.arange(sample.tokens_ST.size).reshape(sample.tokens_ST.shape) % 3}
    look = fidelity.Closely("all", "by sequence", groups, {"odd": 3})
    sums = fidelity.language_model_sums(
        lm,
        SITE,
        {"all": halve, "some": halve},
        ABLATIONS,
        sample,
        closely=look,
    )
    for term in fidelity.GROUPED:
        by_group = sums["all"].arrays()[f"{term}@odd"]
        assert by_group.shape == (sample.units, 3)
        assert by_group.sum(1) == pytest.approx(sums["all"].arrays()[term])
        by_sequence = sums["by sequence"].arrays()[f"{term}@odd"]
        assert len(by_sequence) == len(sample.tokens_ST)
        assert by_sequence.sum(0) == pytest.approx(by_group.sum(0))
    assert "count@odd" not in sums["some"].arrays()
    wanted = sample.scored_ST[:, :-1] & sample.scored_ST[:, 1:]
    expected = np.bincount(groups["odd"][:, :-1][wanted], minlength=3)
    assert sums["all"].arrays()["count@odd"].sum(0) == pytest.approx(expected)
