"""What is said of a linear error when few rows tell of it, and of one that is none."""

import pytest
import torch
from torch import Tensor

from sae.metrics.linear_part import FOLDS, fit, linear_part

D = 64


def rows(count: int, seed: int = 0) -> Tensor:
    """Activations whose variances fall as a power of their rank, in directions of their own."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(9))).Q
    scale = torch.arange(1.0, D + 1) ** -0.5
    return torch.randn(count, D, generator=generator) * scale @ turn.T


def small_components(x_BD: Tensor, seed: int = 1) -> Tensor:
    """An error as dictionaries make it: of x's components the more, the smaller they are; and as
    much noise.
    """
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(9))).Q
    left_BD = (x_BD @ turn * torch.linspace(0, 1, D)) @ turn.T
    noise_BD = torch.randn(x_BD.shape, generator=torch.Generator().manual_seed(seed))
    return left_BD + noise_BD * left_BD.square().mean().sqrt()


def share(error_BD: Tensor, found_BD: Tensor) -> float:
    left = (error_BD - found_BD).square().sum() / error_BD.square().sum()
    return 1 - float(left)


def test_few_rows_tell_of_what_lies_along_the_inputs_own_components() -> None:
    """Three rows for each dimension; half of the error is linear in x. Ridge regression alone, on
    half of the rows, says an eighth.
    """
    x_BD = rows(3 * D)
    error_BD = small_components(x_BD)
    found_BD, fitted_on = linear_part(x_BD, error_BD, torch.arange(3 * D) // 4)
    assert fitted_on == pytest.approx(3 * D * (1 - 1 / FOLDS), abs=4)
    assert 0.35 < share(error_BD, found_BD) < 0.55


def test_any_linear_map_is_found_given_rows() -> None:
    x_BD = rows(40 * D)
    A_DO = torch.randn(D, 20, generator=torch.Generator().manual_seed(2))
    error_BO = x_BD @ A_DO + 3
    found_BO, _ = linear_part(x_BD, error_BO, torch.arange(len(x_BD)) // 10)
    assert share(error_BO - 3, found_BO - 3) > 0.999


def test_what_is_not_linear_is_not_found() -> None:
    x_BD = rows(10 * D)
    noise_BD = torch.randn(x_BD.shape, generator=torch.Generator().manual_seed(3))
    for error_BD in (noise_BD, x_BD.abs() - x_BD.abs().mean(0)):
        found_BD, _ = linear_part(x_BD, error_BD, torch.arange(len(x_BD)) // 10)
        assert abs(share(error_BD, found_BD)) < 0.02


def test_no_row_is_predicted_from_its_own_unit() -> None:
    """Rows of a unit are alike, and so are their errors: of the others nothing is known."""
    generator = torch.Generator().manual_seed(4)
    x_BD, noise_BD = (torch.randn(40, D, generator=generator) for _ in range(2))
    x_BD, noise_BD = (t.repeat_interleave(10, dim=0) for t in (x_BD, noise_BD))
    found_BD, _ = linear_part(x_BD, noise_BD, torch.arange(40).repeat_interleave(10))
    assert share(noise_BD, found_BD) < 0.05


def test_fewer_rows_than_dimensions_and_one_unit() -> None:
    x_BD = rows(20)
    found_BD, fitted_on = linear_part(x_BD, x_BD, torch.arange(20))
    assert bool(found_BD.isfinite().all())
    assert share(x_BD, found_BD) > 0
    assert fitted_on == 16
    alone_BD, fitted_on = linear_part(x_BD, x_BD, torch.zeros(20, dtype=torch.int64))
    assert (float(alone_BD.abs().max()), fitted_on) == (0, 0)
    flat = torch.ones(20, D, dtype=torch.float64)
    assert bool(fit(flat, flat)(flat).isfinite().all())
