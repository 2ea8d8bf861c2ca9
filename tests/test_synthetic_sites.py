"""Both sites of a known truth are fired by the same features."""

import numpy as np
import pytest
import torch

from sae.base.errors import UserError
from sae.coders import make_coder
from sae.metrics.recovery import recovery, recovery_of
from sae.synthetic import SITE, Recipe, SyntheticStream, SyntheticTruth
from sae.synthetic_sites import TARGET, TwoSiteStream, TwoSiteTruth

RECIPE = Recipe(d=16, features=40, l0=4.0, families=4, correlated=(2, 3), offset=2.0, seed=3)


@pytest.fixture(scope="module")
def stream() -> TwoSiteStream:
    return TwoSiteStream(TwoSiteTruth(RECIPE, d_out=12), batch=2000, seed=5)


def test_the_first_site_is_that_of_the_recipe(stream: TwoSiteStream) -> None:
    alone = SyntheticStream(SyntheticTruth(RECIPE), batch=2000, seed=5)
    np.testing.assert_array_equal(stream.rows(7)[SITE], alone.sample(7).x_BD)
    np.testing.assert_array_equal(stream.stats().mean_D, alone.stats().mean_D)


def test_the_second_site_is_written_by_the_same_features(stream: TwoSiteStream) -> None:
    truth, sample = stream.both, stream.sample(7)
    rows = next(stream.batches(7))
    wanted = sample.acts.toarray() @ truth.target_nD + truth.target_offset_D
    np.testing.assert_allclose(rows[TARGET], wanted, atol=1e-5)
    assert np.linalg.norm(truth.target_offset_D) == pytest.approx(2.0)
    stats = stream.stats(site=TARGET)
    np.testing.assert_allclose(
        stats.mean_D, truth.probability_n @ truth.target_nD + truth.target_offset_D, atol=0.05
    )


def test_no_linear_map_gives_one_site_from_the_other(stream: TwoSiteStream) -> None:
    rows = stream.rows(0)
    x, y = (rows[site] - rows[site].mean(0) for site in (SITE, TARGET))
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    assert 0.3 < np.square(residual).sum() / np.square(y).sum() < 1


def test_the_true_transcoder_is_found_and_the_true_autoencoder_is_not(
    stream: TwoSiteStream,
) -> None:
    """Decoder rows are held against what features write, encoder rows against what they read."""
    truth, sample = stream.both, stream.sample(0)
    true = recovery_of(sample.acts, truth.target_nD, truth.dictionary_nD, truth, sample)
    for name in ("mcc", "mcc_encoder", "mmcs", "f1"):
        assert true[name] == pytest.approx(1.0)
    assert true["hedging"] == pytest.approx(0, abs=1e-9)
    rng = np.random.default_rng(0)
    other = recovery_of(sample.acts, rng.standard_normal((40, 12)), None, truth, sample)
    assert other["mcc"] is not None
    assert other["mcc"] < 0.7


def test_beside_a_skip_connection_latents_write_what_it_leaves(stream: TwoSiteStream) -> None:
    """For any map, y is what it gives and what the features then write; that truth is found."""
    truth, sample = stream.both, stream.sample(0)
    skip_OD = np.random.default_rng(1).standard_normal((12, 16)) / 4
    left_nD = truth.target_nD - truth.dictionary_nD @ skip_OD.T
    offset_D = truth.target_offset_D - truth.offset_D @ skip_OD.T
    made = sample.x_BD @ skip_OD.T + sample.acts @ left_nD + offset_D
    np.testing.assert_allclose(made, truth.target_of(sample), atol=1e-4)
    beside = truth.beside(skip_OD)
    np.testing.assert_allclose(np.linalg.norm(beside.target_nD, axis=1), 1)
    assert recovery_of(sample.acts, left_nD, None, beside, sample)["mcc"] == pytest.approx(1)
    coder = make_coder("skip_transcoder", 16, 40, d_out=12, k=4)
    with torch.no_grad():
        coder.W_dec_FD.copy_(torch.from_numpy(left_nD))
        coder.get_parameter("W_skip_OD").copy_(torch.from_numpy(skip_OD))
    assert recovery(coder, truth, sample)["mcc"] == pytest.approx(1)
    assert truth.target_nD is not beside.target_nD  # the plain truth stays as it was


def test_a_site_without_dimensions_is_a_sentence() -> None:
    with pytest.raises(UserError, match="at least one dimension"):
        TwoSiteTruth(RECIPE, d_out=0)
