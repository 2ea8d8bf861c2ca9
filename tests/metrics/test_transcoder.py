"""The evaluation of a coder that reads one site and predicts another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae.base.errors import UserError
from sae.coders import Coder, TwoSites, make_coder
from sae.lm import LanguageModel
from sae.metrics import evaluate, write_report
from sae.metrics.controls import TrainData, fit_full_linear_map, fit_linear_map, shuffled_decoder
from sae.metrics.geometry import geometry_sums
from sae.metrics.sample import draw
from sae.store import ActivationStore
from tests.metrics.conftest import END, SITE, TRAIN, T, build_store

READ = "blocks.0.hook_resid_mid"
NEXT = "blocks.1.hook_mlp_out"


@pytest.fixture
def exact(lm: LanguageModel) -> Coder:
    """A transcoder of the identity's site: resid_post = the MLP's output + what it was added to.

    With W_skip = 1 and no latent ever active, it predicts resid_mid; and as a coder from
    `resid_mid` to `resid_post` it misses the MLP's output exactly.
    """
    coder = make_coder("jumprelu_skip_transcoder", 32, 64, d_out=32)
    assert isinstance(coder, TwoSites)
    coder.b_enc_F.data.fill_(-1e6)
    coder.W_skip_OD.data.copy_(torch.eye(32))
    coder.metadata = {"hook_name": READ, "hook_name_out": SITE}
    return coder.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def transcoder(both: ActivationStore) -> Coder:
    coder = make_coder("jumprelu_skip_transcoder", 32, 64, d_out=32)
    assert isinstance(coder, TwoSites)
    means = [torch.from_numpy(both.stats(site).mean_D).float() for site in (SITE, NEXT)]
    coder.initialise(means[0], torch.Generator().manual_seed(0), means[1])
    coder.W_skip_OD.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    coder.metadata = {"hook_name": SITE, "hook_name_out": NEXT}
    coder.requires_grad_(False).eval()
    x_BD, y_BD = (torch.from_numpy(both.read(site, 0, TRAIN * T)).float() for site in (SITE, NEXT))
    left_BD = y_BD - coder.b_dec_D - x_BD @ coder.W_skip_OD.T
    coder.W_dec_FD.copy_(torch.linalg.lstsq(coder.encode(x_BD).dense(), left_BD).solution)
    return coder


def test_the_splice_gives_the_prediction_from_the_same_pass(
    lm: LanguageModel, exact: Coder
) -> None:
    """The prediction in the target's place is the model without this MLP, whatever came before."""
    tokens_ST = torch.randint(1, lm.vocab_size, (3, 12), generator=torch.Generator().manual_seed(0))

    def without_mlp(_module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :1], torch.zeros_like(output[:, 1:])], dim=1)

    handle = lm.model.transformer.h[0].mlp.register_forward_hook(without_mlp)
    expected = lm.token_losses(tokens_ST)
    handle.remove()
    with lm.splice(SITE, exact, READ):
        torch.testing.assert_close(lm.token_losses(tokens_ST), expected)
    clean = lm.token_losses(tokens_ST)
    assert (clean - expected).abs().max() > 1e-3
    with lm.splice("blocks.0.hook_mlp_out", lambda x: x.new_zeros(x.shape), READ):
        torch.testing.assert_close(lm.token_losses(tokens_ST), expected)


def test_what_comes_later_cannot_be_read(lm: LanguageModel, exact: Coder) -> None:
    with (
        pytest.raises(UserError, match="only predict what comes after"),
        lm.splice(READ, exact, SITE),
    ):
        pass


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> ActivationStore:
    """A store of two sites, the second computed from the first."""
    return build_store(tmp_path_factory.mktemp("two") / "a.zarr", lm, 45, (SITE, NEXT))


@pytest.fixture(scope="module")
def found(both: ActivationStore, lm: LanguageModel, transcoder: Coder) -> dict[str, Any]:
    return evaluate(transcoder, both, lm, tokens=10**6, loss_tokens=900, control_tokens=500)


def test_it_is_scored_against_its_target(
    found: dict[str, Any], both: ActivationStore, transcoder: Coder
) -> None:
    rows = both.rows_of("heldout")
    tokens = both.tokens(rows.start // both.context, rows.stop // both.context).reshape(-1)
    scored = (tokens != END) & (np.arange(len(tokens)) % both.context > 0)
    x_BD, y_BD = (
        torch.from_numpy(both.read(site, rows.start, rows.stop)[scored].astype(np.float32))
        for site in (SITE, NEXT)
    )
    left = (y_BD - transcoder(x_BD)).double().square().sum()
    fvu = left / (y_BD - y_BD.mean(0)).double().square().sum()
    assert found["metrics"]["fvu"]["value"] == pytest.approx(float(fvu), rel=1e-5)
    said = found["provenance"]["coder"]
    assert (said["site"], said["target_site"]) == (SITE, NEXT)
    assert all(test["passed"] for test in found["self_tests"].values())


def test_its_controls_predict_and_the_others_are_left_out_with_a_true_reason(
    found: dict[str, Any],
) -> None:
    assert set(found["controls"]) == {"linear_map", "linear_map_full", "shuffled_decoder"}
    left_out = found["controls_left_out"]
    assert not set(left_out) & set(found["controls"])
    assert "reconstructs what it reads" in left_out["random_dictionary"]
    for trained in ("frozen_decoder", "random_model"):  # these could predict: nobody trains them
        assert "no counterpart for transcoders yet" in left_out[trained]
    full, ranked = (found["controls"][n] for n in ("linear_map_full", "linear_map"))
    assert full["l0"]["value"] == 32
    assert ranked["l0"]["value"] == round(found["metrics"]["l0"]["value"])
    assert full["ev"]["value"] > 0.1  # an MLP is in part linear


def test_the_page_says_that_no_random_error_was_made(found: dict[str, Any], tmp_path: Path) -> None:
    assert "kl_error_ratio" not in found["metrics"]
    text = write_report("transcoder", found, tmp_path / "page.html").read_text()
    assert "was not compared with a random one of equal length: this coder predicts" in text


def test_a_shuffled_decoder_keeps_the_codes_and_the_skip_connection(
    both: ActivationStore, transcoder: Coder, found: dict[str, Any]
) -> None:
    mean = torch.from_numpy(both.stats(NEXT).mean_D).float()
    data = TrainData(draw(both, "train", 10**9, {END}), NEXT, mean, torch.device("cpu"), SITE)
    control = shuffled_decoder(transcoder, data, 0, seed=2)
    x_BD, y_BD = data.some_pairs()
    codes = transcoder.encode(x_BD)
    assert torch.equal(control.encode(x_BD).dense(), codes.dense())
    written_BD = control(x_BD) - transcoder.without_codes(x_BD)
    torch.testing.assert_close(written_BD, codes.dense() @ control.W_dec_FD, rtol=1e-4, atol=1e-4)
    left, none = ((y_BD - found_BD).square().sum() for found_BD in
                  (control(x_BD), transcoder.without_codes(x_BD)))  # fmt: skip
    assert left <= none * (1 + 1e-5)  # the one factor is fitted to the target
    assert found["controls"]["shuffled_decoder"]["fvu_ratio"]["value"] < 1


@pytest.mark.parametrize("rank", [3, 32])
def test_the_linear_map_is_the_best_of_its_rank(
    both: ActivationStore, transcoder: Coder, rank: int
) -> None:
    """Against least squares, then the singular vectors of what that predicts (Izenman 1975)."""
    mean = torch.from_numpy(both.stats(NEXT).mean_D).float()
    sample = draw(both, "train", 10**9, {END})
    data = TrainData(sample, NEXT, mean, torch.device("cpu"), SITE)
    x, y = (torch.cat(part).double().numpy() for part in zip(*data.pairs(), strict=True))
    x_, y_ = x - x.mean(0), y - y.mean(0)
    fitted = x_ @ np.linalg.lstsq(x_, y_, rcond=None)[0]
    _, _, rows = np.linalg.svd(fitted, full_matrices=False)
    best = ((y_ - fitted @ rows[:rank].T @ rows[:rank]) ** 2).sum()
    ours = fit_linear_map(transcoder, data, rank)
    assert len(ours.W_dec_FD) == rank
    left = (y - ours(torch.from_numpy(x).float()).double().numpy()) ** 2
    assert left.sum() == pytest.approx(best, rel=1e-4)
    whole = fit_full_linear_map(transcoder, data, 3)
    assert len(whole.W_dec_FD) == 32


def test_between_two_widths_there_is_no_angle_of_encoder_and_decoder() -> None:
    alive = np.ones(6, bool)
    sums, plots = geometry_sums(torch.randn(6, 4), torch.randn(6, 3), alive, 10)
    assert "encoder_decoder" not in sums.table
    assert set(plots) == {"max_decoder_cosine", "random"}
