from dataclasses import replace

import pytest
import torch

from sae.base.errors import UserError
from sae.coders import make_coder
from sae.coders.switch import Switch
from sae.kernels import get_kernels

D, WIDTH, B, K, E = 12, 64, 200, 3, 8


def make() -> tuple[Switch, torch.Tensor]:
    coder = make_coder("switch", D, WIDTH, k=K, experts=E)
    assert isinstance(coder, Switch)
    coder.initialise(torch.full((D,), 0.4), torch.Generator().manual_seed(0))
    with torch.no_grad():
        coder.b_enc_F.copy_(0.1 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)))
    return coder.double(), torch.randn(B, D, generator=torch.Generator().manual_seed(2)).double()


def masked(coder: Switch, x_BD: torch.Tensor) -> torch.Tensor:
    """The truth: all latents of all experts for every row, the wrong experts masked out."""
    p_BE = coder.route(x_BD)
    chosen_B, expert_B = p_BE.max(1)
    pre_BF = (x_BD - coder.b_dec_D) @ coder.W_enc_FD.T + coder.b_enc_F
    owner_F = torch.arange(WIDTH) // (WIDTH // E)
    inside_BF = pre_BF.masked_fill(owner_F != expert_B[:, None], -torch.inf)
    best_BK = inside_BF.topk(K, dim=1).indices
    kept_BF = torch.zeros_like(pre_BF).scatter(1, best_BK, 1.0)
    return torch.relu(pre_BF) * kept_BF * chosen_B[:, None]


def test_codes_and_gradients_are_those_of_masked_dense_experts() -> None:
    coder, x_BD = make()
    assert coder.route(x_BD).argmax(1).unique().numel() > 3
    forward = coder.training_forward(x_BD, get_kernels())
    dense_BF = masked(coder, x_BD)
    torch.testing.assert_close(forward.codes.dense(), dense_BF)
    torch.testing.assert_close(coder.encode(x_BD).dense(), dense_BF)
    weights = [p for p in coder.parameters() if p is not coder.b_dec_D]
    ours = torch.autograd.grad((forward.x_hat_BD - x_BD).square().sum(), weights)
    x_hat_BD = dense_BF @ coder.W_dec_FD + coder.b_dec_D
    truth = torch.autograd.grad((x_hat_BD - x_BD).square().sum(), weights)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b)


def test_the_arithmetic_is_done_for_one_expert_per_token() -> None:
    """Every product that selection takes, counted: B · F / E · D, whatever the routing is."""
    done = []
    kernels = get_kernels()

    def counting(x_BD, W_FD, b_F, k, dtype=None) -> tuple[torch.Tensor, torch.Tensor]:
        done.append(len(x_BD) * len(W_FD) * x_BD.shape[1])
        return kernels.row_topk(x_BD, W_FD, b_F, k, dtype)

    coder, x_BD = make()
    coder.training_forward(x_BD, replace(kernels, row_topk=counting))
    assert sum(done) == B * WIDTH * D // E
    assert len(done) > 3  # several experts were at work


def test_all_products_of_a_step_together_stay_under_those_of_a_dense_coder() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def flops(architecture: str, **options: int) -> int:
        coder = make_coder(architecture, D, WIDTH, k=K, **options)
        coder.initialise(torch.zeros(D), torch.Generator().manual_seed(0))
        x_BD = torch.randn(B, D, generator=torch.Generator().manual_seed(1))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            coder.training_forward(x_BD, get_kernels("sparse"))
        return counter.get_total_flops()

    dense, sparse = flops("topk"), flops("switch", experts=E)
    router = 2 * B * E * D
    gathered = dense - 2 * B * WIDTH * D  # what both spend beside the product
    assert gathered >= 0
    assert sparse - gathered <= dense / E + router


def test_load_balance_is_one_for_even_use_and_pulls_towards_it() -> None:
    coder, x_BD = make()
    with torch.no_grad():
        coder.W_router_ED.zero_()
    forward = coder.training_forward(x_BD, get_kernels())
    assert float(forward.penalty.detach()) == pytest.approx(coder.load_balance)  # p is uniform
    with torch.no_grad():
        coder.W_router_ED.copy_(torch.randn(E, D, generator=torch.Generator().manual_seed(5)))
        coder.b_router_D.copy_(-2 * coder.W_router_ED[0])  # most rows go to expert 0
    adam = torch.optim.Adam([coder.W_router_ED, coder.b_router_D], lr=0.05)
    shares = []
    for _ in range(80):
        shares.append(coder.route(x_BD).argmax(1).bincount(minlength=E).max().item() / B)
        coder.training_forward(x_BD, get_kernels()).penalty.backward()
        adam.step()
        adam.zero_grad()
    assert shares[0] > 0.5
    assert shares[-1] < 0.35


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 7}, "divide the dictionary's width, 64"),
        ({"k": 9, "experts": 8}, "between 1 and an expert's width, 8"),
        ({"load_balance": -1}, "must not be negative"),
    ],
)
def test_mistakes_get_a_sentence(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_coder("switch", D, WIDTH, **{"k": K, **options})
