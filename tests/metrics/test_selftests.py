"""A broken pipeline publishes nothing: every break below must stop the evaluation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae.coders import Coder
from sae.lm import LanguageModel
from sae.metrics import (
    SelfTestFailure,
    continuation,
    fidelity,
    known_answers,
    provenance,
    reconstruction,
    sample,
    scoring,
    selftests,
)
from sae.metrics.continuation import Continuation
from sae.metrics.sample import Batch, Sample
from sae.metrics.sparsity import Firings
from sae.store import ActivationStore
from tests.metrics.conftest import SITE, few_sequences
from tests.metrics.conftest import short_evaluation as run


def test_a_sound_pipeline_passes(coder: Coder, store: ActivationStore, lm: LanguageModel) -> None:
    tests = run(coder, store, lm)["self_tests"]
    assert set(tests) == {
        "scored_tokens",
        "mean_predictor",
        "identity",
        "known_scaling",
        "oracle_dictionary",
        "store_matches_model",
        "splice_error_restored",
        "splice_identity",
        "splice_identity_kl",
        "splice_agrees",
        "ablation_mean",
        "ablation_zero",
        "layer_identity",
        "scale_identity",
        "fold_identity",
        "decoder_scale",
        "decoder_identity",
    }
    assert [name for name, test in tests.items() if not test["passed"]] == ["fold_identity"]
    for test in tests.values():
        assert set(test) == {"passed", "value", "tolerance", "note"}
        assert test["passed"] is None or abs(test["value"]) <= test["tolerance"]
        assert test["passed"] or (test["passed"], test["value"]) == (None, None)
        assert test["passed"] or test["note"]
    assert abs(tests["splice_error_restored"]["value"]) <= 1e-5


def scaled_reconstructions(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = known_answers.reconstruct

    def scaled(method: Any, x_BD: Tensor) -> tuple[Tensor, Any]:
        x_hat_BD, codes = honest(method, x_BD)
        return 1.02 * x_hat_BD, codes

    monkeypatch.setattr(known_answers, "reconstruct", scaled)
    monkeypatch.setattr(scoring, "reconstruct", scaled)


def a_splice_at_the_wrong_site(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = lm.splice

    @contextmanager
    def next_layer(site: str, replace: Any, source: str | None = None) -> Iterator[None]:
        with honest("blocks.1.hook_resid_post", replace, source):
            yield

    monkeypatch.setattr(lm, "splice", next_layer)


def reading_the_wrong_layer(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = lm.capture

    def next_layer(tokens_ST: Tensor, sites: list[str]) -> dict[str, Tensor]:
        found = honest(tokens_ST, ["blocks.1.hook_resid_post"])
        return dict.fromkeys(sites, found["blocks.1.hook_resid_post"])

    monkeypatch.setattr(lm, "capture", next_layer)


def going_on_from_the_wrong_block(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class OffByOne(Continuation):
        def __init__(self, lm: LanguageModel, site: str, source: str | None = None) -> None:
            super().__init__(lm, site, source)
            assert self._next_block is not None
            self._next_block += 1

    monkeypatch.setattr(fidelity, "Continuation", OffByOne)


def a_scaled_splice(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = continuation.spliced
    monkeypatch.setattr(continuation, "spliced", lambda x, f: honest(x, lambda rows: 1.1 * f(rows)))


def _masked(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], None]) -> None:
    honest = sample._read

    def changed(*given: Any) -> Any:
        runs, tokens_ST, scored_ST = honest(*given)
        change(scored_ST)
        return runs, tokens_ST, scored_ST

    monkeypatch.setattr(sample, "_read", changed)


def position_0_scored(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _masked(monkeypatch, lambda scored_ST: scored_ST[:, :1].fill(True))


def tokens_not_scored(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _masked(monkeypatch, lambda scored_ST: scored_ST[:, 7].fill(False))


def special_tokens_scored(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "special_ids", lambda lm, store: frozenset())


def position_0_scored_in_batches(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Sample.batches

    def all_scored(self: Sample, *given: Any) -> Iterator[Batch]:
        for batch in honest(self, *given):
            yield replace(batch, scored_B=torch.ones_like(batch.scored_B))

    monkeypatch.setattr(Sample, "batches", all_scored)


def _with_kl(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    honest = fidelity._losses

    def changed(*given: Any) -> Any:
        for part, found in honest(*given):
            yield part, {n: {**terms, "kl": change(terms["kl"])} for n, terms in found.items()}

    monkeypatch.setattr(fidelity, "_losses", changed)


def a_kl_that_is_too_large(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_kl(monkeypatch, lambda kl: 1.001 * kl)  # of x itself 0 all the same


def a_kl_that_is_never_0(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_kl(monkeypatch, lambda kl: kl + 5e-5)


def ablations_a_position_late(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = fidelity._Ablations.states

    def late(self: Any, *given: Any) -> Any:
        found = honest(self, *given)
        return replace(
            found,
            hidden_ND=found.hidden_ND.roll(1, 0),
            normaliser_N=found.normaliser_N.roll(1, 0),
        )

    monkeypatch.setattr(fidelity._Ablations, "states", late)


def an_ablation_by_another_vector(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = fidelity.constant
    monkeypatch.setattr(fidelity, "constant", lambda vector_D: honest(vector_D.roll(1)))


def a_variance_formula_of_published_tools(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def published(n: Any, squares: Any, total: Any) -> Any:
        mean_square = squares / n
        return mean_square - (mean_square / total.shape[1]) ** 2

    monkeypatch.setattr(reconstruction, "total_variance", published)


def lost_firings(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Firings._count

    def forgetful(
        self: Firings, latent_N: Tensor, row_N: Tensor, unit_B: Tensor, scored_B: Tensor
    ) -> None:
        honest(self, latent_N[1:], row_N[1:], unit_B, scored_B)

    monkeypatch.setattr(Firings, "_count", forgetful)


@pytest.mark.parametrize(
    ("sabotage", "message"),
    [
        (scaled_reconstructions, "returning x itself must have EV 1"),
        (a_splice_at_the_wrong_site, r"splicing x̂ \+ e must give the clean loss"),
        (reading_the_wrong_layer, "store_matches_model"),
        (going_on_from_the_wrong_block, "splicing x itself must cost"),
        (a_scaled_splice, "splice_identity: splicing x itself must cost"),
        (position_0_scored, "scored_tokens: all tokens must be scored but those at position 0"),
        (position_0_scored_in_batches, "scored_tokens"),
        (special_tokens_scored, "scored_tokens"),
        (tokens_not_scored, "scored_tokens"),
        (a_kl_that_is_too_large, "ablation_mean: .*ablation_zero"),
        (a_kl_that_is_never_0, "splice_identity_kl: splicing x itself must have KL 0"),
        (ablations_a_position_late, "ablation_mean: .* must be those of that vector spliced in"),
        (an_ablation_by_another_vector, "ablation_mean"),
        (a_variance_formula_of_published_tools, "predicting the mean must have EV 0"),
        (lost_firings, "true dictionary"),
    ],
)
def test_a_broken_pipeline_is_found(
    coder: Coder,
    store: ActivationStore,
    lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    sabotage: Callable[[LanguageModel, pytest.MonkeyPatch], None],
    message: str,
) -> None:
    sabotage(lm, monkeypatch)
    with pytest.raises(SelfTestFailure, match=message):
        run(coder, store, lm)


@pytest.mark.parametrize(("harvested_as", "passes"), [("float32", False), ("bfloat16", True)])
def test_what_a_store_may_be_off_depends_on_how_it_was_harvested(
    store: ActivationStore,
    lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    harvested_as: str,
    passes: bool,
) -> None:
    honest = lm.capture
    noise = torch.Generator().manual_seed(0)

    def rounded(tokens_ST: Tensor, sites: list[str]) -> dict[str, Tensor]:
        found = honest(tokens_ST, sites)
        off = 1e-3**0.5 * store.stats(SITE).variance ** 0.5 / 32**0.5
        return {s: x + off * torch.randn(x.shape, generator=noise) for s, x in found.items()}

    few = few_sequences(store)
    exact = selftests.store_matches_model(lm, [SITE], few)
    assert exact.value is not None
    assert exact.value < 1e-6
    monkeypatch.setattr(lm, "capture", rounded)
    monkeypatch.setattr(store, "spec", replace(store.spec, harvested_as=harvested_as))
    found = selftests.store_matches_model(lm, [SITE], few)
    assert found.value == pytest.approx(1e-3, rel=0.1)
    assert found.passed is passes


def test_a_coder_that_returns_nan_is_no_pass() -> None:
    test = known_answers.SelfTest("x", float("nan"), 1.0, "s")
    assert test.passed is False
    assert test.to_json()["value"] is None
    assert issubclass(SelfTestFailure, RuntimeError)
    assert torch.isnan(torch.tensor(test.value))
