"""Nested losses against the formula, and what the prefixes are for."""

import pytest
import torch

from sae.base.errors import UserError
from sae.coders import make_coder
from sae.coders.batchtopk import BatchTopK
from sae.coders.matryoshka import Matryoshka
from sae.kernels import get_kernels, select_batchtopk


def test_the_loss_is_the_sum_over_prefixes() -> None:
    torch.manual_seed(0)
    coder = Matryoshka(8, 40, k=5, prefixes=(0.1, 0.35, 1.0)).double()
    coder.initialise(torch.randn(8), torch.Generator().manual_seed(1))
    x = torch.randn(30, 8, dtype=torch.float64) * 2
    forward = coder.training_forward(x, get_kernels())
    assert forward.penalty is not None
    ours = (x - forward.x_hat_BD).square().sum() / x.numel() + forward.penalty
    ours.backward()
    gradients = [p.grad.clone() for p in coder.parameters() if p.grad is not None]
    coder.zero_grad()

    centred = x - coder.b_dec_D
    support, _ = select_batchtopk(centred.detach(), coder.W_enc_FD, coder.b_enc_F, 5)
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[support.row_of_N, support.indices_N] = True
    acts = (centred @ coder.W_enc_FD.T + coder.b_enc_F).relu() * mask
    loss = sum(
        (x - acts[:, :end] @ coder.W_dec_FD[:end] - coder.b_dec_D).square().sum()
        for end in (4, 14, 40)
    )
    (loss / x.numel()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(ours, loss / x.numel())
    for ours_grad, parameter in zip(gradients, coder.parameters(), strict=True):
        torch.testing.assert_close(ours_grad, parameter.grad)


def test_one_prefix_is_batchtopk() -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 8)
    found = []
    for coder in (Matryoshka(8, 40, k=5, prefixes=(1.0,)), BatchTopK(8, 40, k=5)):
        coder.initialise(x.mean(0), torch.Generator().manual_seed(1))
        forward = coder.training_forward(x, get_kernels())
        found.append((forward.x_hat_BD, forward.penalty or 0, coder.threshold))
    for nested, plain in zip(*found, strict=True):
        assert torch.allclose(torch.as_tensor(nested), torch.as_tensor(plain), atol=1e-6)


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [((0.5,), "last one must be 1"), ((0.5, 0.5, 1), "rising"), ((0.001, 1), "rising")],
)
def test_mistakes_get_a_sentence(prefixes: tuple[float, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_coder("matryoshka", 8, 16, k=2, prefixes=prefixes)
