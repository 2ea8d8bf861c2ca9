from pathlib import Path

import pytest
import torch
from sklearn.decomposition import sparse_encode

from sae.base.errors import UserError
from sae.coders import load_coder, make_coder, save_coder
from sae.coders.ista import ISTA
from sae.kernels import chunks as bounds
from sae.kernels import get_kernels

D, F, B, L1 = 16, 48, 64, 0.6


def make(steps: int) -> tuple[ISTA, torch.Tensor]:
    coder = make_coder("ista", D, F, steps=steps, l1=L1)
    assert isinstance(coder, ISTA)
    coder.initialise(torch.full((D,), 0.3), torch.Generator().manual_seed(0))
    with torch.no_grad():
        coder.b_enc_F.copy_(0.1 * torch.randn(F, generator=torch.Generator().manual_seed(1)))
    x_BD = torch.randn(B, D, generator=torch.Generator().manual_seed(2)) + 0.3
    return coder.double(), x_BD.double()


def objective(coder: ISTA, x_BD: torch.Tensor) -> float:
    codes = coder.encode(x_BD)
    left = (x_BD - coder.decode(codes)).square().sum()
    return float((left + L1 * codes.acts_N.sum()).detach())


def test_many_steps_reach_the_optimum_of_sparse_coding() -> None:
    """scikit-learn minimises ½‖x − Wᵀf‖² + λ‖f‖₁; half of our objective with λ = l1 / 2."""
    coder, x_BD = make(3000)
    centred = (x_BD - coder.b_dec_D).detach().numpy()
    truth = sparse_encode(
        centred,
        coder.W_dec_FD.detach().numpy(),
        algorithm="lasso_cd",
        alpha=L1 / 2,
        positive=True,
        max_iter=20_000,
    )
    found = coder.encode(x_BD).dense().detach()
    assert (found > 0).sum(1).double().mean() > 3
    torch.testing.assert_close(found, torch.from_numpy(truth), atol=2e-4, rtol=0)
    ours = objective(coder, x_BD)
    theirs = ((centred - truth @ coder.W_dec_FD.detach().numpy()) ** 2).sum() + L1 * truth.sum()
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_each_step_closes_a_part_of_the_gap() -> None:
    with torch.no_grad():
        objectives = [objective(*make(steps)) for steps in (1, 4, 16, 64)]
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[0] > 1.2 * objectives[-1]


def test_step_sizes_follow_the_spectral_norm_while_training() -> None:
    coder, x_BD = make(2)
    adam = torch.optim.Adam(coder.parameters(), lr=1e-3)
    for _ in range(20):
        forward = coder.training_forward(x_BD, get_kernels())
        ((forward.x_hat_BD - x_BD).square().sum() / x_BD.numel() + forward.penalty).backward()
        adam.step()
        adam.zero_grad()
    exact = torch.linalg.matrix_norm(coder.W_dec_FD.detach(), 2).square()
    assert float(coder.squared_norm / exact) == pytest.approx(1, abs=0.01)
    assert (coder.log_gain_T != 0).all()  # the sizes are learned too


def test_a_loaded_coder_can_be_trained_on(tmp_path: Path) -> None:
    """Its folder holds step sizes, and not the norm that they are relative to in training."""
    coder, x_BD = make(3)
    coder, x_BD = coder.float(), x_BD.float()
    with torch.no_grad():
        coder.log_gain_T.copy_(torch.tensor([0.1, -0.2, -0.4, -0.3]))
    save_coder(coder.folded(1.0), tmp_path)
    loaded = load_coder(tmp_path)
    assert isinstance(loaded, ISTA)
    codes = loaded.training_forward(x_BD, get_kernels()).codes
    torch.testing.assert_close(codes.dense(), coder.encode(x_BD).dense())
    torch.testing.assert_close(loaded.step_sizes(), coder.step_sizes())
    torch.testing.assert_close(loaded.log_gain_T, coder.log_gain_T)
    for _ in range(3):
        loaded.training_forward(x_BD, get_kernels())
    exact = torch.linalg.matrix_norm(loaded.W_dec_FD, 2).square()
    assert float(loaded.squared_norm / exact) == pytest.approx(1, abs=1e-4)


def test_chunks_change_neither_codes_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for values in (1 << 26, 7 * F):
        monkeypatch.setattr(bounds, "UNROLLED", values)
        coder, x_BD = make(3)
        forward = coder.training_forward(x_BD, get_kernels())
        assert forward.penalty is not None
        ((forward.x_hat_BD - x_BD).square().sum() + forward.penalty).backward()
        results.append([forward.codes.dense(), *(p.grad for p in coder.parameters())])
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth)


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(UserError, match="at least one"):
        make_coder("ista", D, F, steps=0)
    with pytest.raises(UserError, match="must not be negative"):
        make_coder("ista", D, F, l1=-1.0)
