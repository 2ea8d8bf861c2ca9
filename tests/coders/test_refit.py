"""Refitted and pursued codes against scikit-learn, SciPy and torch.linalg.lstsq."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp
from torch.nn import functional as F

import sae.coders.refit as module
from sae.base.errors import UserError
from sae.coders import TwoSites, make_coder
from sae.coders.nonnegative import solve_nonnegative
from sae.coders.refit import least_squares, orthogonal_matching_pursuit, pursue, refit
from sae.kernels import Codes, Support, chunks

B, D, F_, K = 40, 12, 30, 5


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    W_FD = F.normalize(torch.randn(F_, D, generator=generator, dtype=torch.float64), dim=1)
    return torch.randn(B, D, generator=generator, dtype=torch.float64), W_FD


@pytest.fixture
def ragged() -> Support:
    generator = torch.Generator().manual_seed(1)
    return Support.of_mask(torch.rand(B, F_, generator=generator) < 0.15)


@pytest.mark.parametrize("chunk", [1 << 24, 64])
@pytest.mark.parametrize("k", [1, K, D])
def test_pursuit_is_scikit_learns(problem, k: int, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(chunks, "SYSTEMS", chunk)
    x_BD, W_FD = problem
    truth = orthogonal_mp(W_FD.T.numpy(), x_BD.T.numpy(), n_nonzero_coefs=k).T
    found = orthogonal_matching_pursuit(x_BD, W_FD, k)
    np.testing.assert_allclose(found.dense().numpy(), truth, atol=1e-9)


def test_pursuit_ends_at_the_tolerance(problem) -> None:
    x_BD, W_FD = problem
    found = orthogonal_matching_pursuit(x_BD, W_FD, D, tolerance=1.0)
    truth = orthogonal_mp(W_FD.T.numpy(), x_BD.T.numpy(), tol=1.0).T  # of the square: the same
    np.testing.assert_allclose(found.dense().numpy(), truth, atol=1e-9)
    assert found.l0().unique().numel() > 1


def test_pursuit_does_not_depend_on_the_norms_of_the_rows(problem) -> None:
    x_BD, W_FD = problem
    scale_F1 = torch.linspace(0.1, 9, F_, dtype=torch.float64)[:, None]
    plain = orthogonal_matching_pursuit(x_BD, W_FD, K).dense()
    scaled = orthogonal_matching_pursuit(x_BD, W_FD * scale_F1, K).dense()
    torch.testing.assert_close(scaled * scale_F1[:, 0], plain)


def test_pursuit_ends_when_nothing_is_left(problem) -> None:
    """A row made of three orthonormal rows of W takes those three, though more were allowed."""
    _, W_FD = problem
    W_FD = torch.cat([torch.linalg.qr(W_FD[:D].T).Q.T, torch.zeros(2, D, dtype=torch.float64)])
    x_BD = torch.stack([2 * W_FD[1] + 3 * W_FD[4] + W_FD[7], torch.zeros(D, dtype=torch.float64)])
    found = orthogonal_matching_pursuit(x_BD, W_FD, 9)
    assert found.l0().tolist() == [3, 0]
    assert found.dense()[0, [1, 4, 7]].tolist() == pytest.approx([2, 3, 1])


def test_nonnegative_pursuit_is_a_greedy_choice_and_an_exact_fit(problem) -> None:
    x_BD, W_FD = problem
    found = orthogonal_matching_pursuit(x_BD, W_FD, K, nonnegative=True).dense().numpy()
    for x_D, codes_F in zip(x_BD.numpy(), found, strict=True):
        chosen: list[int] = []
        fit = np.zeros(0)
        for _ in range(K):
            scores = W_FD.numpy() @ (x_D - fit @ W_FD.numpy()[chosen])
            scores[chosen] = -np.inf
            chosen.append(int(scores.argmax()))
            fit = nnls(W_FD.numpy()[chosen].T, x_D)[0]
        truth_F = np.zeros(F_)
        truth_F[chosen] = fit
        np.testing.assert_allclose(codes_F, truth_F, atol=1e-9)


def test_least_squares_is_lstsq(problem, ragged: Support) -> None:
    x_BD, W_FD = problem
    found = least_squares(x_BD, W_FD, ragged)
    for row in range(B):
        own = slice(*ragged.offsets_B1[row : row + 2].tolist())
        truth = torch.linalg.lstsq(W_FD[ragged.indices_N[own]].T, x_BD[row]).solution
        torch.testing.assert_close(found.acts_N[own], truth)


def test_nonnegative_least_squares_is_nnls(problem, ragged: Support) -> None:
    x_BD, W_FD = problem
    found = least_squares(x_BD, W_FD, ragged, nonnegative=True)
    for row in range(B):
        own = slice(*ragged.offsets_B1[row : row + 2].tolist())
        truth, _ = nnls(W_FD[ragged.indices_N[own]].T.numpy(), x_BD[row].numpy())
        np.testing.assert_allclose(found.acts_N[own].numpy(), truth, atol=1e-9)


def test_nonnegative_solutions_of_hard_problems() -> None:
    """Nearly dependent columns, where full exchanges of variables may go in circles."""
    rng = np.random.default_rng(0)
    A_BMK = rng.normal(size=(200, 9, 1)) + 0.05 * rng.normal(size=(200, 9, 8))
    y_BM = rng.normal(size=(200, 9))
    gram = np.einsum("bmk,bml->bkl", A_BMK, A_BMK)
    target = np.einsum("bmk,bm->bk", A_BMK, y_BM)
    found = solve_nonnegative(torch.from_numpy(gram), torch.from_numpy(target)).numpy()
    truth = np.stack([nnls(A, y)[0] for A, y in zip(A_BMK, y_BM, strict=True)])
    np.testing.assert_allclose(found, truth, atol=1e-6)


def test_a_dependent_support_is_fitted_all_the_same(problem) -> None:
    x_BD, W_FD = problem
    twice_FD = torch.cat([W_FD, W_FD[:1]])
    support = Support.fixed(torch.tensor([[0, 3, F_]]).expand(B, 3), F_ + 1)
    once = Support.fixed(torch.tensor([[0, 3]]).expand(B, 2), F_ + 1)
    found = least_squares(x_BD, twice_FD, support).dense() @ twice_FD
    truth = least_squares(x_BD, twice_FD, once).dense() @ twice_FD
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_supports_larger_than_the_space_are_taken_in_fewer_rows(
    nonnegative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of K latents in a space of D < K, the normal equations (K, K) are the largest tensor."""
    rows, d, k = 12, 2, 20
    monkeypatch.setattr(chunks, "SYSTEMS", 2 * k * k)
    seen: list[int] = []
    name = "solve_nonnegative" if nonnegative else "solve_spd"
    solve = getattr(module, name)

    def noted(gram_BKK: torch.Tensor, target_BK: torch.Tensor) -> torch.Tensor:
        seen.append(gram_BKK.numel())
        return solve(gram_BKK, target_BK)

    class Noted(module._Pursuit):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            seen.append(self.gram_BKK.numel())

    monkeypatch.setattr(module, name, noted)
    monkeypatch.setattr(module, "_Pursuit", Noted)
    torch.manual_seed(0)
    x_BD, W_FD = torch.randn(rows, d).double(), torch.randn(k, d).double()
    whole = Support.fixed(torch.arange(k).expand(rows, k), k)
    least_squares(x_BD, W_FD, whole, nonnegative=nonnegative)
    assert seen == [2 * k * k] * (rows // 2)
    seen.clear()
    orthogonal_matching_pursuit(x_BD, W_FD, k, nonnegative=nonnegative)
    assert max(seen) <= 2 * k * k


def test_the_amortisation_gap_of_a_coder() -> None:
    """With as many latents: encoder ≥ its support refitted; and pursuit finds a better support."""
    coder = make_coder("topk", D, F_, k=K)
    coder.initialise(torch.full((D,), 0.5), torch.Generator().manual_seed(0))
    coder.requires_grad_(False)
    x_BD = torch.randn(500, D, generator=torch.Generator().manual_seed(1)) + 0.5
    codes = coder.encode(x_BD)
    errors = [
        float((coder.decode(c) - x_BD).square().sum())
        for c in (codes, refit(coder, codes, x_BD), pursue(coder, x_BD, K))
    ]
    assert errors[0] > errors[1] > errors[2] > 0
    assert (refit(coder, codes, x_BD).acts_N >= 0).all()


def test_what_a_skip_connection_gives_is_not_fitted_again() -> None:
    coder = make_coder("skip_transcoder", D, F_, k=K)
    coder.initialise(torch.zeros(D), torch.Generator().manual_seed(0), torch.zeros(D))
    assert isinstance(coder, TwoSites)
    with torch.no_grad():
        coder.W_skip_OD.normal_(generator=torch.Generator().manual_seed(2))
    coder.requires_grad_(False)
    x_BD, target_BD = torch.randn(2, 200, D, generator=torch.Generator().manual_seed(1))
    codes = coder.encode(x_BD)

    def error(codes: Codes) -> float:
        return float((coder.decode(codes, x_BD) - target_BD).square().sum())

    assert error(refit(coder, codes, target_BD, x_BD)) <= error(codes)
    assert error(pursue(coder, target_BD, K, x_BD)) < error(codes)
    with pytest.raises(UserError, match="input"):
        refit(coder, codes, target_BD)


def test_codes_of_another_width_are_refused() -> None:
    narrow, wide = (make_coder("topk", D, width, k=K) for width in (F_, 4 * F_))
    with pytest.raises(UserError, match=f"{4 * F_} latents, and the coder has {F_}"):
        narrow.decode(wide.encode(torch.randn(3, D)))


def test_mistakes_get_a_sentence(problem) -> None:
    x_BD, W_FD = problem
    with pytest.raises(UserError, match="rows, 12"):
        orthogonal_matching_pursuit(x_BD[:, 1:], W_FD, K)
    with pytest.raises(UserError, match="between 1 and the dictionary's width, 30"):
        orthogonal_matching_pursuit(x_BD, W_FD, 31)
