"""The modular adder: the lookup is what attention over sequences gives; sites; the asset."""

import math

import pytest
import torch

from sae.base.errors import UserError
from sae.lm.modular_addition import (
    SITES,
    ModularAddition,
    answers,
    load_modular_addition,
    pair_losses,
    split_pairs,
)


@pytest.fixture
def net() -> ModularAddition:
    net = ModularAddition(p=11, d_model=16, heads=4, d_mlp=24)
    net.initialise(0)
    return net.requires_grad_(False)


def plain_logits(net: ModularAddition, pairs_B2: torch.Tensor) -> torch.Tensor:
    """The textbook's forward pass over whole sequences `a b =`, position by position."""
    tokens_B3 = torch.cat([pairs_B2, torch.full((len(pairs_B2), 1), net.p)], dim=1)
    x_BTD = net.W_E[tokens_B3] + net.W_pos
    heads = [
        (x_BTD @ W).unflatten(-1, (net.heads, -1)).transpose(1, 2)
        for W in (net.W_Q, net.W_K, net.W_V)
    ]
    q, k, v = heads
    score = q @ k.mT / math.sqrt(q.shape[-1])
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    z = score.masked_fill(~causal, -math.inf).softmax(-1) @ v
    mid = x_BTD + z.transpose(1, 2).flatten(2) @ net.W_O
    post = mid + torch.relu(mid @ net.W_in + net.b_in) @ net.W_out + net.b_out
    return (post @ net.W_U)[:, -1]


def test_looking_up_is_what_attention_does(net: ModularAddition) -> None:
    assert torch.allclose(net(net.grid), plain_logits(net, net.grid), atol=1e-5)


@pytest.mark.parametrize("site", SITES)
def test_sites_are_read_and_replaced(net: ModularAddition, site: str) -> None:
    clean = net.logits(net.grid)
    x_BD = net.capture(net.grid, site)
    assert x_BD.shape == (121, net.site_width(site))
    assert torch.equal(net.logits(net.grid, site, lambda x: x), clean)
    zero = net.logits(net.grid, site, torch.zeros_like)
    assert not torch.allclose(zero, clean)
    rolled = net.logits(net.grid, site, lambda x: x_BD.roll(1, 0))
    if "resid" in site:
        assert torch.allclose(rolled, clean.roll(1, 0), atol=1e-6)  # all passes through the stream


def test_neurons_are_their_rectified_preactivations(net: ModularAddition) -> None:
    before, after = (net.capture(net.grid, f"blocks.0.mlp.hook_{end}") for end in ("pre", "post"))
    assert (before < 0).any()
    assert torch.equal(before.relu(), after)


def test_an_unknown_site_is_refused(net: ModularAddition) -> None:
    with pytest.raises(UserError, match=r"Unknown site `blocks\.0\.hook_resid_pst`"):
        net.capture(net.grid, "blocks.0.hook_resid_pst")


def test_pairs_are_split_once_and_wholly() -> None:
    seen, unseen = split_pairs(113, 0.3, seed=0)
    assert len(seen) == 3830
    assert torch.equal(torch.cat([seen, unseen]).sort().values, torch.arange(113**2))


def test_the_embedded_adder_has_grokked() -> None:
    net = load_modular_addition()
    targets = answers(net.grid, net.p)
    logits = net.logits(net.grid)
    assert (logits.argmax(1) == targets).all()
    _, unseen = split_pairs(net.p, 0.3, 0)
    assert pair_losses(logits, targets)[unseen].mean() < 1e-3


def test_a_folder_without_a_model_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no `model.safetensors`; train one"):
        load_modular_addition(tmp_path)
