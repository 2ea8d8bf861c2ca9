"""Controls are as strong as they claim to be."""

import numpy as np
import pytest
import torch

from sae.coders import Coder
from sae.metrics.controls import TrainData, controls_of, fit_pca, matched_l0, random_dictionary
from sae.metrics.sample import draw
from sae.store import ActivationStore
from tests.metrics.conftest import END, SITE


@pytest.fixture
def data(store: ActivationStore) -> TrainData:
    mean = torch.from_numpy(store.stats(SITE).mean_D).float()
    sample = draw(store, "train", 10**9, {END}, block_rows=96)
    return TrainData(sample, SITE, mean, torch.device("cpu"))


def test_pca_is_that_of_a_decomposition_of_the_train_rows(coder: Coder, data: TrainData) -> None:
    pca = fit_pca(coder, data, l0=5)
    x = torch.cat(list(data.batches())).double().numpy()
    centred = x - x.mean(0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    overlap = np.linalg.svd(rows[:5] @ pca.W_dec_FD.double().numpy().T, compute_uv=False)
    assert overlap == pytest.approx(np.ones(5), abs=1e-5)
    lost = (x - pca(torch.from_numpy(x).float()).double().numpy()) ** 2
    assert lost.sum() == pytest.approx((singular[5:] ** 2).sum(), rel=1e-5)  # Eckart-Young


def test_pca_speaks_as_a_coder(coder: Coder, data: TrainData) -> None:
    pca = fit_pca(coder, data, l0=5)
    x = data.some()
    codes = pca.encode(x)
    assert (codes.rows, codes.width) == (len(x), 5)
    assert codes.l0().float().mean() == 5
    assert torch.equal(pca.decode(codes), pca(x))
    assert len(fit_pca(coder, data, l0=1000).W_dec_FD) == coder.d_in  # never more than D


def test_random_dictionary_is_scaled_by_least_squares(coder: Coder, data: TrainData) -> None:
    control = random_dictionary(coder, data, l0=6, seed=1)
    assert (control.d_sae, control.d_in) == (coder.d_sae, coder.d_in)
    assert control.W_dec_FD.norm(dim=1) == pytest.approx(torch.ones(coder.d_sae), abs=1e-5)
    ratio = control.W_enc_FD / control.W_dec_FD
    assert ratio == pytest.approx(torch.full_like(ratio, float(ratio.mean())), rel=1e-4)
    x = data.some()
    assert control.encode(x).l0().max() <= 6
    base = control.b_dec_D

    def error(factor: float) -> float:
        return float((x - base - factor * (control(x) - base)).square().sum())

    assert error(1) < min(error(0.97), error(1.03))
    other = random_dictionary(coder, data, l0=6, seed=2)
    assert not torch.equal(other.W_dec_FD, control.W_dec_FD)


def test_controls_get_the_coders_own_l0(coder: Coder, data: TrainData) -> None:
    assert matched_l0(coder, data) == 6
    assert controls_of(coder) == ("pca", "random_dictionary")
