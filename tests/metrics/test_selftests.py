"""A broken pipeline publishes nothing: every break below must stop the evaluation."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae.coders import Coder
from sae.lm import LanguageModel
from sae.lm.sites import parse_site
from sae.metrics import (
    SelfTestFailure,
    continuation,
    evaluate,
    fidelity,
    identity,
    known_answers,
    reconstruction,
    scoring,
)
from sae.metrics.continuation import Continuation
from sae.metrics.sparsity import Firings
from sae.store import ActivationStore
from sae.training import CoderTrainer
from tests.metrics.conftest import NEXT, SITE, build_store, small_training


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
        "layer_identity",
        "scale_identity",
        "fold_identity",
        "decoder_identity",
    }
    for test in tests.values():
        assert set(test) == {"passed", "value", "tolerance"}
        assert test["passed"]
        assert abs(test["value"]) <= test["tolerance"]
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


def claims_the_next_layer(trainer: CoderTrainer) -> Coder:
    coder = trainer.finished_coder()
    coder.metadata = {"hook_name": NEXT}
    return coder


def with_another_decoder(trainer: CoderTrainer) -> Coder:
    coder = trainer.finished_coder()
    other = torch.randn(coder.W_dec_FD.shape, generator=torch.Generator().manual_seed(5))
    coder.W_dec_FD.copy_(torch.nn.functional.normalize(other, dim=1))
    coder.metadata = {"hook_name": SITE}
    return coder


def with_rows_off_by_one(trainer: CoderTrainer) -> Coder:
    coder = trainer.finished_coder()
    coder.W_dec_FD.copy_(coder.W_dec_FD.roll(1, 0))
    coder.metadata = {"hook_name": SITE}
    return coder


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (claims_the_next_layer, rf"layer_identity: .* claims, `{NEXT}`.* at `{SITE}`"),
        (with_another_decoder, "decoder_identity: a coder's decoder must belong"),
        (with_rows_off_by_one, "decoder_identity"),
    ],
)
def test_a_coder_that_is_not_what_it_claims_is_found(
    trainer: CoderTrainer,
    everywhere: ActivationStore,
    lm: LanguageModel,
    mistake: Callable[[CoderTrainer], Coder],
    message: str,
) -> None:
    with pytest.raises(SelfTestFailure, match=message):
        run(mistake(trainer), everywhere, lm)


def test_weights_in_the_units_of_training_are_found(lm: LanguageModel, tmp_path: Path) -> None:
    """Of activations with a mean, as those of real models have: without one, the units of a TopK
    coder hardly matter, and nothing is wrong with its numbers.
    """
    model = copy.deepcopy(lm.model)
    model.transformer.h[0].mlp.c_proj.bias.data += 6.0
    shifted = LanguageModel(model, lm.tokenizer, name="shifted", hash=lm.hash)
    store = build_store(tmp_path / "a.zarr", shifted, 45)
    trainer = small_training(store)
    folded, raw = trainer.finished_coder(), copy.deepcopy(trainer.coder)
    for coder in (folded, raw):
        coder.requires_grad_(False).eval()
        coder.metadata = {"hook_name": SITE}
    assert run(folded, store, shifted)["self_tests"]["scale_identity"]["passed"]
    with pytest.raises(SelfTestFailure, match=r"scale_identity: .* were not folded"):
        run(raw, store, shifted)


@pytest.fixture(scope="module")
def loud(
    lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ActivationStore, LanguageModel]:
    """Activations that training scales by a tenth or less, as those of pocket-gpt2."""
    model = copy.deepcopy(lm.model)
    model.transformer.h[0].mlp.c_proj.weight.data *= 8
    louder = LanguageModel(model, lm.tokenizer, name="loud", hash=lm.hash)
    return build_store(tmp_path_factory.mktemp("loud") / "a.zarr", louder, 45), louder


def forgotten_thresholds(coder: Coder, scale: float) -> None:
    coder.scale_units(scale)  # as if folding had never divided by it


def thresholds_folded_twice(coder: Coder, scale: float) -> None:
    coder.scale_units(1 / scale)


def b_enc_folded_twice(coder: Coder, scale: float) -> None:
    coder.b_enc_F /= scale


def nothing(coder: Coder, scale: float) -> None:
    """Folded as it should be."""


PARTLY_FOLDED = [
    ("batchtopk", {"k": 8}, forgotten_thresholds, r"thresholds( and `b_enc`)? times 1\d"),
    ("batchtopk", {"k": 8}, thresholds_folded_twice, r"thresholds( and `b_enc`)? times 0\.0"),
    ("jumprelu", {"target_l0": 8}, forgotten_thresholds, r"thresholds( and `b_enc`)? times 1\d"),
    (
        "jumprelu",
        {"target_l0": 8},
        thresholds_folded_twice,
        r"thresholds( and `b_enc`)? times 0\.0",
    ),
    ("topk", {"k": 8}, b_enc_folded_twice, r"`b_enc` times 0\.0"),
    *(
        (architecture, options, nothing, None)
        for architecture, options in (
            ("topk", {"k": 8}),
            ("batchtopk", {"k": 8}),
            ("jumprelu", {"target_l0": 8}),
            ("relu", {"l1": 4.0}),
            ("gated", {"l1": 4.0}),
            ("ista", {"l1": 4.0}),
            ("matching_pursuit", {"max_iterations": 8}),
        )
    ),
]


@pytest.mark.parametrize(("architecture", "options", "mistake", "message"), PARTLY_FOLDED)
def test_a_part_in_the_units_of_training_is_found(
    loud: tuple[ActivationStore, LanguageModel],
    architecture: str,
    options: dict[str, float],
    mistake: Callable[[Coder, float], None],
    message: str | None,
) -> None:
    """Its `b_dec` lies at the mean of x, as a folded coder's does: that alone proves nothing."""
    store, lm = loud
    trainer = small_training(store, architecture, **options)
    assert trainer.scale < 0.1
    coder = trainer.finished_coder()
    coder.metadata = {"hook_name": SITE}
    mistake(coder, trainer.scale)
    if message is None:
        found = run(coder, store, lm)["self_tests"]["fold_identity"]
        assert found["value"] < found["tolerance"]
        return
    with pytest.raises(SelfTestFailure, match=f"fold_identity: .*{message}"):
        run(coder, store, lm)


def test_a_trained_coder_is_what_it_claims(
    trained: Coder, everywhere: ActivationStore, lm: LanguageModel
) -> None:
    tests = run(trained, everywhere, lm)["self_tests"]
    assert tests["layer_identity"]["value"] == 0
    assert tests["scale_identity"]["value"] == 0
    assert tests["fold_identity"]["value"] == 0
    assert tests["decoder_identity"]["value"] < 0.6


@pytest.mark.parametrize(
    ("site", "others"),
    [
        ("blocks.0.hook_resid_pre", {"0.hook_resid_mid", "0.hook_resid_post", "1.hook_resid_mid",
                                     "1.hook_resid_post"}),
        ("blocks.1.hook_resid_pre", {"0.hook_resid_pre", "0.hook_resid_mid", "1.hook_resid_mid",
                                     "1.hook_resid_post"}),
        ("blocks.0.hook_mlp_out", {"1.hook_mlp_out"}),
    ],
)  # fmt: skip
def test_a_layer_is_compared_with_all_others_and_never_with_itself(
    site: str, others: set[str]
) -> None:
    found = identity._of_a_kind(parse_site(site), 2)
    assert {str(s) for s in found} == {f"blocks.{name}" for name in others}


def test_a_coder_that_returns_nan_is_no_pass() -> None:
    test = known_answers.SelfTest("x", float("nan"), 1.0, "s")
    assert not test.passed
    assert test.to_json()["value"] is None
    assert issubclass(SelfTestFailure, RuntimeError)
    assert torch.isnan(torch.tensor(test.value))
