"""The gated coder against the paper's formulas, dense and by hand."""

import torch

from sae.coders.gated import Gated
from sae.kernels import get_kernels


def make_coder() -> tuple[Gated, torch.Tensor]:
    torch.manual_seed(0)
    coder = Gated(6, 20, l1=0.7, l1_warmup=0.5).double()
    coder.initialise(torch.randn(6), torch.Generator().manual_seed(1))
    for parameter in (coder.b_enc_F, coder.b_mag_F, coder.r_mag_F):
        parameter.data.uniform_(-0.6, 0.6)
    return coder, torch.randn(50, 6, dtype=torch.float64) * 2


def test_loss_and_gradients_are_the_papers() -> None:
    coder, x = make_coder()
    coder.progress = 0.25  # half of the warm-up
    forward = coder.training_forward(x, get_kernels())
    assert forward.penalty is not None
    ours = (x - forward.x_hat_BD).square().sum() / x.numel() + forward.penalty
    ours.backward()
    gradients = {n: p.grad.clone() for n, p in coder.named_parameters() if p.grad is not None}
    coder.zero_grad()

    dots = (x - coder.b_dec_D) @ coder.W_enc_FD.T
    gate = dots + coder.b_enc_F
    magnitude = torch.exp(coder.r_mag_F) * dots + coder.b_mag_F
    x_hat = ((gate > 0) * magnitude.relu()) @ coder.W_dec_FD + coder.b_dec_D
    frozen = gate.relu() @ coder.W_dec_FD.detach() + coder.b_dec_D.detach()
    loss = (x - x_hat).square().sum() + (x - frozen).square().sum() + 0.35 * gate.relu().sum()
    (loss / x.numel()).backward()
    torch.testing.assert_close(ours, loss / x.numel())
    assert set(gradients) == set(dict(coder.named_parameters()))
    for name, parameter in coder.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


def test_some_gates_are_open_for_magnitudes_of_nought() -> None:
    """An open gate with a negative magnitude gives no activation, and is not counted."""
    coder, x = make_coder()
    codes = coder.encode(x)
    gate = (x - coder.b_dec_D) @ coder.W_enc_FD.T + coder.b_enc_F
    assert (codes.acts_N == 0).any()
    assert (codes.l0() < (gate > 0).sum(1)).any()
