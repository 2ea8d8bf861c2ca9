"""Every reconstruction metric against its closed form, and the traps of published tools."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from torch import Tensor

from sae.metrics.bootstrap import entries
from sae.metrics.reconstruction import add_data, add_errors
from sae.metrics.registry import metrics_of
from sae.metrics.sample import Batch
from sae.metrics.sums import DocumentSums

D = 12


@pytest.fixture
def x() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(600, D, generator=generator) * torch.linspace(0.5, 3, D) + 4.0


def measure(
    x: Tensor,
    x_hat: Tensor | Callable[[Tensor], Tensor],
    centre: Tensor | None = None,
    batch: int = 128,
    first: Tensor | None = None,
) -> dict[str, float]:
    """The metrics of a reconstruction, streamed in batches; `first` marks position-0 rows."""
    x_hat = x_hat(x) if callable(x_hat) else x_hat
    centre = torch.zeros(x.shape[1]) if centre is None else centre
    scored = torch.ones(len(x), dtype=torch.bool) if first is None else ~first
    unit = torch.arange(len(x)) // 20
    sums = DocumentSums(int(unit.max()) + 1)
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        piece = Batch(x[part], unit[part], scored[part])
        add_data(sums, piece, centre)
        add_errors(sums, piece, x_hat[part], centre)
    found = entries(sums.arrays(), metrics_of("reconstruction"), resamples=20)
    return {name: float(e["value"]) for name, e in found.items() if e["value"] is not None}


def test_every_metric_is_its_formula(x: Tensor) -> None:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    x_hat, centre = 0.8 * x + noise, x.mean(0) + 0.3
    found = measure(x, x_hat, centre)
    a, b, c = (v.double().numpy() for v in (x, x_hat, centre))
    e2, x2 = ((a - b) ** 2).sum(1), (a**2).sum(1)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    fvu = e2.mean() / a.var(axis=0).sum()
    expected = {
        "fvu": fvu,
        "ev": 1 - fvu,
        "nmse": (e2 / x2).mean(),
        "ev_legacy": (1 - e2 / ((a - c) ** 2).sum(1)).mean(),
        "mse": e2.mean(),
        "mse_per_dimension": ((a - b) ** 2).mean(),
        "cosine": ((a * b).sum(1) / norm_a / norm_b).mean(),
        "shrinkage": (norm_b / norm_a).mean(),
        "gamma": (b**2).sum() / (a * b).sum(),
        "fvu_with_position_0": fvu,
        "ev_uncentred": 1 - e2.sum() / x2.sum(),
        "ev_centred_error": 1 - (a - b).var(axis=0).sum() / a.var(axis=0).sum(),
        "ev_per_dimension": r2_score(a, b),  # its default is the uniform average
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_variants_differ_from_ev_where_their_formulas_do(x: Tensor) -> None:
    """A constant offset costs EV, and not the variance of the error; the mean has signal only
    where it is not taken away.
    """
    shifted = measure(x, x + torch.linspace(-1, 1, D))
    assert shifted["ev_centred_error"] == pytest.approx(1)
    assert shifted["ev"] < 0.95
    mean = measure(x, x.mean(0).expand_as(x))
    assert mean["ev"] == pytest.approx(0, abs=1e-6)
    assert mean["ev_centred_error"] == pytest.approx(0, abs=1e-6)
    assert mean["ev_per_dimension"] == pytest.approx(0, abs=1e-6)
    assert mean["ev_uncentred"] > 0.5
    loud = x.clone()
    loud[:, 0] *= 1000  # a dimension that swamps EV, and is one of D in the mean of R²
    half = torch.cat([loud[:, :1], x[:, 1:].mean(0).expand(len(x), -1)], dim=1)
    found = measure(loud, half)
    assert found["ev"] == pytest.approx(1, abs=1e-3)
    assert found["ev_per_dimension"] == pytest.approx(1 / D, abs=1e-3)


def test_the_mean_predictor_scores_nought_where_a_published_formula_gives_it_half(
    x: Tensor,
) -> None:
    mean = x.mean(0).expand_as(x)
    assert measure(x, mean)["ev"] == pytest.approx(0, abs=1e-6)
    # 1 − E‖e‖² / (S − (S/d)²) with S = E‖x‖²: its denominator is not a variance at all.
    square = float(x.square().sum(1).mean())
    trap = 1 - float((x - mean).square().sum(1).mean()) / (square - (square / D) ** 2)
    assert abs(trap) > 0.3


def test_identity_is_perfect(x: Tensor) -> None:
    found = measure(x, x.clone())
    assert found["ev"] == 1
    assert (found["cosine"], found["gamma"]) == pytest.approx((1, 1), rel=1e-6)


@pytest.mark.parametrize("c", [0.5, 0.9, 1.3])
def test_known_scaling_of_centred_data(x: Tensor, c: float) -> None:
    found = measure(x - x.mean(0), lambda v: c * v)
    assert found["fvu"] == pytest.approx((1 - c) ** 2, rel=1e-5)
    assert found["nmse"] == pytest.approx((1 - c) ** 2, rel=1e-5)
    assert (found["gamma"], found["shrinkage"]) == pytest.approx((c, c), rel=1e-5)


def test_sums_are_global_not_averages_of_batches(x: Tensor) -> None:
    x = x * torch.linspace(0.1, 5, len(x))[:, None]  # batches of very different variance
    whole = measure(x, lambda v: 0.9 * v, batch=10_000)
    assert measure(x, lambda v: 0.9 * v, batch=7) == pytest.approx(whole, rel=1e-9)
    ratios = [measure(part, lambda v: 0.9 * v)["fvu"] for part in x.split(60)]
    assert np.mean(ratios) != pytest.approx(whole["fvu"], rel=0.1)


def test_the_centre_only_conditions_the_sums(x: Tensor) -> None:
    far = measure(x, lambda v: 0.9 * v, centre=torch.full((D,), 100.0))
    near = measure(x, lambda v: 0.9 * v, centre=x.mean(0))
    assert far["fvu"] == pytest.approx(near["fvu"], rel=1e-4)


def test_scale_and_rotation_change_nothing_but_the_mse(x: Tensor) -> None:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(3))).Q
    plain = measure(x, x + noise)
    turned = measure(3 * x @ turn, 3 * (x + noise) @ turn)
    for name in ("mse", "mse_per_dimension"):
        assert turned.pop(name) == pytest.approx(9 * plain.pop(name), rel=1e-4)
    by_dimension = [found.pop("ev_per_dimension") for found in (plain, turned)]
    assert by_dimension[0] != pytest.approx(by_dimension[1], rel=1e-2)  # it has axes, by its name
    assert turned == pytest.approx(plain, rel=1e-4)


def test_position_0_enters_only_the_metric_that_says_so(x: Tensor) -> None:
    first = torch.arange(len(x)) % 20 == 0
    x = torch.where(first[:, None], 100 * x, x)
    found = measure(x, lambda v: 0.9 * v, first=first)
    without = measure(x[~first], lambda v: 0.9 * v)
    everywhere = measure(x, lambda v: 0.9 * v)
    assert found["fvu_with_position_0"] == pytest.approx(everywhere["fvu"], rel=1e-5)
    assert found["fvu_with_position_0"] != pytest.approx(without["fvu"], rel=0.1)
    for name in ("fvu", "ev", "nmse", "mse", "cosine", "gamma", "ev_legacy"):
        assert found[name] == pytest.approx(without[name], rel=1e-5)


def test_rows_of_zeros_give_no_nan(x: Tensor) -> None:
    x = x.clone()
    x[3] = 0
    assert all(np.isfinite(v) for v in measure(x, lambda v: 0 * v).values())
