import pytest
import torch
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.coders import load_coder, make_coder, save_coder
from sae.coders.matching_pursuit import MatchingPursuit, _Pursuit
from sae.kernels import chunks, get_kernels

D, WIDTH, B = 8, 20, 50


def make(**options: object) -> tuple[MatchingPursuit, torch.Tensor]:
    coder = make_coder("matching_pursuit", D, WIDTH, **options)
    assert isinstance(coder, MatchingPursuit)
    coder.initialise(torch.full((D,), 0.2), torch.Generator().manual_seed(0))
    return coder.double(), torch.randn(B, D, generator=torch.Generator().manual_seed(1)).double()


def by_hand(coder: MatchingPursuit, x_D: torch.Tensor) -> torch.Tensor:
    """Codes (F,) of one row, in the clearest form."""
    codes_F, left_D = torch.zeros(WIDTH).double(), x_D - coder.b_dec_D
    for _ in range(coder.max_iterations):
        scores_F = coder.W_dec_FD @ left_D
        best = int(scores_F.argmax())
        amount = max(0.0, float(scores_F[best]))
        again = bool(codes_F[best] > 0)
        codes_F[best] += amount
        left_D = left_D - amount * coder.W_dec_FD[best]
        if coder.stop_on_duplicate_support and (again or not amount):
            break
        if left_D.norm() < coder.residual_threshold:
            break
    return codes_F


@pytest.mark.parametrize("chunk", [1 << 26, 3 * WIDTH])
@pytest.mark.parametrize(
    "options",
    [
        {"max_iterations": 3},
        {"max_iterations": 12},
        {"max_iterations": 12, "stop_on_duplicate_support": False},
        {"max_iterations": 12, "residual_threshold": 0.5},
        {"max_iterations": None, "residual_threshold": 0.0},
    ],
)
def test_codes_are_those_of_the_pursuit(options: dict, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(chunks, "SCORES", chunk)
    coder, x_BD = make(**options)
    with torch.no_grad():
        truth = torch.stack([by_hand(coder, x_D) for x_D in x_BD])
        torch.testing.assert_close(coder.encode(x_BD).dense(), truth)


@pytest.mark.parametrize("stop", [True, False])
def test_gradients_are_those_of_the_unrolled_steps(stop: bool) -> None:
    x_BD = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()
    W_FD = F.normalize(
        torch.randn(9, 5, generator=torch.Generator().manual_seed(1)).double(), dim=1
    )
    inputs = (x_BD.requires_grad_(), W_FD.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, W: _Pursuit.apply(x, W, 7, 0.1, stop)[0], inputs)


def test_encoder_and_decoder_are_one_parameter_that_trains() -> None:
    coder, x_BD = make(max_iterations=3)
    assert coder.W_enc_FD is coder.W_dec_FD
    adam = torch.optim.Adam([p for p in coder.parameters() if p.requires_grad], lr=0.01)
    errors = []
    for _ in range(60):
        error = (coder.training_forward(x_BD, get_kernels()).x_hat_BD - x_BD).square().mean()
        error.backward()
        adam.step()
        adam.zero_grad()
        coder.W_dec_FD.data = F.normalize(coder.W_dec_FD.data, dim=1)
        errors.append(float(error.detach()))
    assert errors[-1] < 0.5 * errors[0]
    copied = coder.folded(1.0)
    assert copied.W_enc_FD is copied.W_dec_FD


def test_folding_moves_the_residual_threshold(tmp_path) -> None:
    coder, _ = make(residual_threshold=0.6)
    save_coder(coder.float().folded(0.3), tmp_path)
    loaded = load_coder(tmp_path)
    assert isinstance(loaded, MatchingPursuit)
    assert loaded.residual_threshold == pytest.approx(2.0)


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(UserError, match="at least one"):
        make(max_iterations=0)
    with pytest.raises(UserError, match="residual_threshold"):
        make(residual_threshold=-1.0)
