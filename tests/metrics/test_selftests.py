"""A broken pipeline publishes nothing: every break below must stop the evaluation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from sae.coders import Coder
from sae.lm import LanguageModel
from sae.metrics import (
    SelfTestFailure,
    continuation,
    evaluate,
    fidelity,
    reconstruction,
    scoring,
    selftests,
)
from sae.metrics.continuation import Continuation
from sae.metrics.sparsity import Firings
from sae.store import ActivationStore


def run(coder: Coder, store: ActivationStore, lm: LanguageModel) -> dict[str, Any]:
    return evaluate(coder, store, lm, tokens=600, loss_tokens=300, controls=())


def test_a_sound_pipeline_passes(coder: Coder, store: ActivationStore, lm: LanguageModel) -> None:
    tests = run(coder, store, lm)["self_tests"]
    assert set(tests) == {
        "mean_predictor",
        "identity",
        "known_scaling",
        "oracle_dictionary",
        "store_matches_model",
        "splice_error_restored",
        "splice_identity",
        "splice_agrees",
    }
    for test in tests.values():
        assert set(test) == {"passed", "value", "tolerance"}
        assert test["passed"]
        assert abs(test["value"]) <= test["tolerance"]
    assert abs(tests["splice_error_restored"]["value"]) <= 1e-5


def scaled_reconstructions(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = selftests.reconstruct

    def scaled(method: Any, x_BD: Tensor) -> tuple[Tensor, Any]:
        x_hat_BD, codes = honest(method, x_BD)
        return 1.02 * x_hat_BD, codes

    monkeypatch.setattr(selftests, "reconstruct", scaled)
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


def a_variance_formula_of_published_tools(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def published(n: Any, squares: Any, total: Any) -> Any:
        mean_square = squares / n
        return mean_square - (mean_square / total.shape[1]) ** 2

    monkeypatch.setattr(reconstruction, "_variance", published)


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
        (a_scaled_splice, "No evaluation is published"),
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


def test_a_coder_that_returns_nan_is_no_pass() -> None:
    test = selftests.SelfTest("x", float("nan"), 1.0, "s")
    assert not test.passed
    assert test.to_json()["value"] is None
    assert issubclass(SelfTestFailure, RuntimeError)
    assert torch.isnan(torch.tensor(test.value))
