"""A coder that is not what its folder says: of another site, or with another decoder."""

from collections.abc import Callable

import pytest
import torch

from sae.coders import Coder, make_coder
from sae.lm import LanguageModel
from sae.lm.sites import parse_site
from sae.metrics import SelfTestFailure, identity
from sae.store import ActivationStore
from sae.training import CoderTrainer
from tests.metrics.conftest import MLP, NEXT, SITE, few_sequences
from tests.metrics.conftest import short_evaluation as run


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


def test_a_trained_coder_is_what_it_claims(
    trained: Coder, everywhere: ActivationStore, lm: LanguageModel
) -> None:
    tests = run(trained, everywhere, lm)["self_tests"]
    assert tests["layer_identity"]["value"] == 0
    assert tests["scale_identity"]["value"] < 0.01
    assert tests["decoder_scale"]["value"] == 0
    assert tests["decoder_identity"]["value"] < 0.6
    assert not any(test["note"] for test in tests.values() if test["passed"])


@pytest.mark.parametrize(("offset", "passes"), [(100.0, False), (0.1, True)])
def test_a_coder_of_another_point_of_its_block_is_found(
    trained: Coder, store: ActivationStore, lm: LanguageModel, offset: float, passes: bool
) -> None:
    """Of the stream, filed as one of the MLP's output; where both are alike, either will do."""
    rows = identity._Rows(lm, few_sequences(store), {(MLP, MLP), (SITE, SITE)})
    rows._rows[MLP] = rows._rows[SITE] + offset
    test = identity.layer_identity(trained, rows, MLP, MLP, {(SITE, SITE)})
    assert test.passed is passes
    assert passes or f"at `{SITE}`" in test.sentence


def test_with_no_other_site_there_is_nothing_to_ask(
    trained: Coder, store: ActivationStore, lm: LanguageModel
) -> None:
    rows = identity._Rows(lm, few_sequences(store), {(SITE, SITE)})
    found = identity.layer_identity(trained, rows, SITE, SITE, frozenset()).to_json()
    assert (found["passed"], found["value"]) == (None, None)
    assert "no other site" in found["note"]


def test_of_a_coder_that_explains_nothing_no_site_is_asked(
    coder: Coder, store: ActivationStore, lm: LanguageModel
) -> None:
    coder.b_dec_D += 100.0
    found = identity.identities(coder, lm, SITE, SITE, few_sequences(store))
    layer = next(test for test in found if test.name == "layer_identity")
    assert layer.passed is None
    assert layer.note == "the coder explains nothing at any site (no EV above 0)"


def test_of_a_coder_that_never_fires_no_decoder_is_asked(
    store: ActivationStore, lm: LanguageModel
) -> None:
    silent = make_coder("relu", 32, 64)
    silent.initialise(torch.zeros(32), torch.Generator().manual_seed(0))
    with torch.no_grad():
        silent.b_enc_F.fill_(-1e6)
    tests = {t.name: t for t in identity.identities(silent, lm, SITE, SITE, few_sequences(store))}
    for name in ("decoder_scale", "decoder_identity"):
        assert tests[name].passed is None
        assert tests[name].note == "no latent fires here"


def test_a_coder_that_is_worse_than_its_bias_passes_with_a_warning(
    trained: Coder, everywhere: ActivationStore, lm: LanguageModel
) -> None:
    """Better than with its rows shuffled, all the same: its decoder belongs to it."""
    trained.W_dec_FD *= 2.2
    own = identity._Rows(lm, few_sequences(everywhere), {(SITE, SITE)}).batch(SITE, SITE)
    found = identity.decoder_identity(trained, own)
    assert found.passed
    assert "worse than its bias alone" in (found.note or "")


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


@pytest.mark.parametrize(
    ("site", "others"),
    [
        ("blocks.1.hook_resid_mid", {"hook_attn_out", "hook_mlp_out"}),
        ("blocks.1.hook_mlp_out", {"hook_resid_pre", "hook_resid_mid", "hook_resid_post",
                                   "hook_attn_out"}),
        ("blocks.1.mlp.hook_post", set()),
    ],
)  # fmt: skip
def test_a_site_is_compared_with_all_as_wide_in_its_block(
    coder: Coder, lm: LanguageModel, site: str, others: set[str]
) -> None:
    found = set(identity._beside(coder, lm, site))
    assert found == {(f"blocks.1.{name}", f"blocks.1.{name}") for name in others}
