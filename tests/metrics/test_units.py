"""A coder in other units than its activations is no poor coder: no number of it is published."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sae.coders import Coder, make_coder
from sae.lm import LanguageModel
from sae.metrics import SelfTestFailure, units
from sae.metrics.sample import Batch
from sae.store import ActivationStore
from tests.metrics.conftest import (
    SITE,
    build_store,
    few_sequences,
    short_evaluation,
    small_training,
)


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
    assert short_evaluation(folded, store, shifted)["self_tests"]["scale_identity"]["passed"]
    with pytest.raises(SelfTestFailure, match=r"scale_identity: .* were not folded"):
        short_evaluation(raw, store, shifted)


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
        tests = short_evaluation(coder, store, lm)["self_tests"]
        assert tests["fold_identity"]["passed"] is not False
        assert tests["decoder_scale"]["value"] == 0
        assert tests["scale_identity"]["passed"] is not False
        return
    with pytest.raises(SelfTestFailure, match=f"fold_identity: .*{message}"):
        short_evaluation(coder, store, lm)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "relu", "gated"])
@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_decoder_in_other_units_is_found(
    loud: tuple[ActivationStore, LanguageModel], architecture: str, factor: float
) -> None:
    """As where a tool folded its encoder and not its decoder: all else is right."""
    store, lm = loud
    options = {"topk": {"k": 8}, "batchtopk": {"k": 8}, "jumprelu": {"target_l0": 8}}
    trainer = small_training(store, architecture, **options.get(architecture, {"l1": 4.0}))
    coder = trainer.finished_coder()
    coder.metadata = {"hook_name": SITE}
    coder.W_dec_FD *= factor
    with pytest.raises(SelfTestFailure, match="decoder_scale: a decoder must write in the units"):
        short_evaluation(coder, store, lm)


@pytest.mark.parametrize("factor", [0.5, 1.9])
def test_shrinkage_is_no_unit(
    trained: Coder, everywhere: ActivationStore, lm: LanguageModel, factor: float
) -> None:
    trained.W_dec_FD *= factor
    tests = short_evaluation(trained, everywhere, lm)["self_tests"]
    assert tests["decoder_scale"]["value"] == 0


def test_where_there_is_no_threshold_none_can_be_in_other_units(
    trained: Coder, everywhere: ActivationStore, lm: LanguageModel
) -> None:
    trained.b_enc_F.zero_()
    few = few_sequences(everywhere)
    found = units.fold_identity(trained, own_rows(everywhere), few, SITE)
    assert found.passed is None
    assert found.note is not None


def own_rows(store: ActivationStore) -> Batch:
    (batch,) = few_sequences(store).batches(SITE)
    return batch


@pytest.mark.parametrize("scale", [1.02, 8.0])
def test_units_that_are_the_same_are_not_asked_for(
    trained: Coder, everywhere: ActivationStore, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    monkeypatch.setattr(units, "_training_scale", lambda few, site: scale)
    few, own = few_sequences(everywhere), own_rows(everywhere)
    asked = units.scale_identity(trained, own, few, SITE, SITE)
    folded = units.fold_identity(trained, own, few, SITE)
    if scale > 2:
        assert asked.passed
    else:
        assert asked.passed is None
        assert "hardly at all" in (asked.note or "")
        assert folded.passed is None
        assert "which hardly moves a threshold" in (folded.note or "")


@pytest.mark.parametrize("width", [128, 1024])
def test_latents_that_write_the_same_are_in_the_units_of_x(
    everywhere: ActivationStore, width: int
) -> None:
    """Untrained: together too long by far, and each alone just right."""
    coder = make_coder("relu", 32, width)
    mean = torch.from_numpy(everywhere.stats(SITE).mean_D).float()
    coder.initialise(mean, torch.Generator().manual_seed(3))
    coder.requires_grad_(False).eval()
    own = own_rows(everywhere)
    written = units._Written.of(coder, own)
    assert written.agreed / written.square < 0.5
    assert written.agreed / written.apart == pytest.approx(1, rel=1e-3)
    assert units.decoder_scale(coder, own).value == 0
