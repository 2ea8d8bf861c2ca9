"""Adam of every backend against the reference, torch's own, and on average."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sae.kernels.adam import AdamStep, RowGradient
from tests.kernels.places import PLACES, REFERENCE, kernels_at

AT_PLACES = pytest.mark.parametrize(("backend", "device"), PLACES)
AT_ALL = pytest.mark.parametrize(("backend", "device"), [("reference", "cpu"), *PLACES])


def adam_step(t: int, unit: bool = False) -> AdamStep:
    """The numbers of step t at a rate of 0.01, gradients halved."""
    return AdamStep(0.5, 0.01 / (1 - 0.9**t), 1 / math.sqrt(1 - 0.999**t), 1e-8, unit, seed=t)


@AT_ALL
@pytest.mark.parametrize("rows", [None, [4, 7]], ids=["all", "some rows"])
def test_a_norm_does_not_hide_a_nan(backend: str, device: str, rows: list[int] | None) -> None:
    """And of rounding that takes a square below 0 nothing is left."""
    W = _unit_rows(device)
    own = torch.arange(50) if rows is None else torch.tensor(rows)
    grad = W[own.to(device)].clone()  # along its row: nothing of it is tangent
    gradient = RowGradient(grad, None if rows is None else own.to(device))
    kernels = kernels_at(backend, device)
    assert 0 <= kernels.tangent_square(gradient, W) < 1e-5
    grad[1, 3] = torch.nan
    assert math.isnan(kernels.tangent_square(gradient, W))


def _unit_rows(device: str = "cpu") -> Tensor:
    return functional.normalize(torch.randn(50, 9), dim=1).to(device)


@AT_PLACES
@pytest.mark.parametrize("kind", ["unit", "free", "vector"])
def test_adam_is_that_of_torch_and_of_the_reference(backend: str, device: str, kind: str) -> None:
    torch.manual_seed(4)
    unit = kind == "unit"
    start = _unit_rows(device) if kind != "vector" else torch.randn(3000).to(device)
    theirs = start.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.01)
    kernels = kernels_at(backend, device)
    ours, truth = (
        [start.clone(), torch.zeros_like(start), torch.zeros_like(start)] for _ in range(2)
    )
    for t in range(1, 6):
        grad = torch.randn(start.shape).to(device)
        gradient = RowGradient(grad)
        if unit:
            expected = (grad.square().sum(1) - (grad * ours[0]).sum(1).square()).sum()
            found = float(kernels.tangent_square(gradient, ours[0]))
            assert found == pytest.approx(float(expected), rel=1e-4)
        kernels.adam_rows(ours[0], gradient, *ours[1:], adam_step(t, unit))
        REFERENCE.adam_rows(truth[0], gradient, *truth[1:], adam_step(t, unit))
        theirs.grad = grad * 0.5
        adam.step()
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b)
    if unit:
        torch.testing.assert_close(ours[0].norm(dim=1).cpu(), torch.ones(50))
    else:
        torch.testing.assert_close(ours[0], theirs.detach())


@AT_PLACES
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("form", ["rows that slept", "rows", "all, slept"])
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
def test_adam_on_some_rows_is_that_of_the_reference(
    backend: str, device: str, unit: bool, form: str, moments: torch.dtype
) -> None:
    """Moments in bfloat16 are a neighbour of what the reference has in float32 from the same."""
    torch.manual_seed(5)
    kernels = kernels_at(backend, device)
    rows = torch.arange(50) if form == "all, slept" else torch.tensor([0, 3, 17, 49])
    slept = torch.zeros(len(rows), dtype=torch.int32)
    if form != "rows":
        slept[:4] = torch.tensor([0, 1, 40, 5000])
    state = [_unit_rows(), torch.randn(50, 9) * 0.1, torch.rand(50, 9) * 0.1]
    state = [state[0].to(device), *(t.to(device, moments) for t in state[1:])]
    ours, truth = [t.clone() for t in state], [t.float().clone() for t in state]
    gradient = RowGradient(
        torch.randn(len(rows), 9).to(device),
        None if form == "all, slept" else rows.to(device),
        None if form == "rows" else slept.to(device),
    )
    if unit:
        found, wanted = (float(k.tangent_square(gradient, ours[0])) for k in (kernels, REFERENCE))
        assert found == pytest.approx(wanted, rel=1e-4)
    kernels.adam_rows(ours[0], gradient, *ours[1:], adam_step(9, unit))
    REFERENCE.adam_rows(truth[0], gradient, *truth[1:], adam_step(9, unit))
    torch.testing.assert_close(ours[0], truth[0])
    others = torch.ones(50, dtype=torch.bool)
    others[rows] = False
    within = {} if moments is torch.float32 else {"rtol": 2**-7, "atol": 1e-20}
    for a, b, before in zip(ours, truth, state, strict=True):
        torch.testing.assert_close(a.float(), b, **(within if a is not ours[0] else {}))
        assert torch.equal(a[others], before[others])


@AT_ALL
@pytest.mark.parametrize("unit", [True, False])
def test_a_row_that_slept_ends_where_dense_adam_takes_it(
    backend: str, device: str, unit: bool
) -> None:
    """At constant rate and bias correction nothing but rounding differs, where rows are free;
    unit rows are renormalised once after their sleep, instead of after each of its steps."""
    torch.manual_seed(6)
    kernels = kernels_at(backend, device)
    step = replace(adam_step(10_000, unit), step_size=1e-3)
    start = functional.normalize(torch.randn(30, 8), dim=1).to(device)
    lazy, dense = ([start.clone(), *torch.zeros(2, 30, 8, device=device)] for _ in range(2))
    updated = torch.zeros(30, dtype=torch.int32, device=device)
    for t in range(1, 60):
        rows = torch.arange(30) if t == 59 else (torch.rand(30) < 0.2).nonzero()[:, 0]
        rows = rows.to(device)
        grad = torch.zeros(30, 8, device=device)
        grad[rows] = torch.randn(len(rows), 8).to(device)
        kernels.adam_rows(dense[0], RowGradient(grad), *dense[1:], step)
        slept = t - 1 - updated[rows]
        kernels.adam_rows(lazy[0], RowGradient(grad[rows], rows, slept), *lazy[1:], step)
        updated[rows] = t
    for a, b in zip(lazy, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=5e-4 if unit else 1e-5)


@AT_ALL
def test_moments_in_bfloat16_are_right_on_average(backend: str, device: str) -> None:
    """v falls by a thousandth per step: rounding to nearest would leave it where it is."""
    kernels = kernels_at(backend, device)
    W = torch.zeros(8, 4096, device=device)
    m = torch.full_like(W, 0.3, dtype=torch.bfloat16)
    v = torch.full_like(W, 0.7, dtype=torch.bfloat16)
    m_exact, v_exact = float(m[0, 0]), float(v[0, 0])
    gradient = RowGradient(torch.full_like(W, 0.02))
    for t in range(1, 101):
        kernels.adam_rows(W, gradient, m, v, adam_step(t))
        m_exact = 0.9 * m_exact + 0.1 * 0.01
        v_exact = 0.999 * v_exact + 0.001 * 0.01**2
    assert float(m.float().mean()) == pytest.approx(m_exact, rel=2e-3)
    assert float(v.float().mean()) == pytest.approx(v_exact, rel=2e-3)
    assert v.unique().numel() > 10


@AT_ALL
def test_rounding_draws_anew_for_every_number_and_step(backend: str, device: str) -> None:
    """Of m, of v, of each row and of each seed: no two draws go together, and a seed has its own.

    Values lie a quarter of the way between two of bfloat16, so that a quarter goes up.
    """
    kernels = kernels_at(backend, device)
    W = torch.zeros(4, 4096, device=device)
    quarter = 1 + 2**-9  # neighbours are 1 and 1 + 2^-7

    def ups(seed: int) -> Tensor:
        """(rows of m, rows of v): which went up, from moments of 1 and a fitting gradient."""
        step = AdamStep(1.0, 0.0, 1.0, 1e-8, False, seed=seed)
        m, v = (torch.ones_like(W, dtype=torch.bfloat16) for _ in range(2))
        kernels.adam_rows(W, RowGradient(torch.full_like(W, (quarter - 0.9) / 0.1)), m, v, step)
        first = m > 1
        v[:] = 1
        root = ((quarter - 0.999) / 0.001) ** 0.5
        kernels.adam_rows(W, RowGradient(torch.full_like(W, root)), m, v, step)
        return torch.cat([first, v > 1]).double().cpu()

    drawn = torch.cat([ups(3), ups(4)])
    assert torch.equal(drawn[:8], ups(3))
    assert (drawn.mean(1) - 0.25).abs().max() < 0.04  # of 4096: six standard deviations
    together = torch.corrcoef(drawn) - torch.eye(len(drawn), dtype=torch.float64)
    assert together.abs().max() < 0.1
