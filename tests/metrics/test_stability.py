"""Matched latents of two coders whose common ones are known."""

import pytest
import torch
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.coders import Coder, make_coder
from sae.metrics import stability as module
from sae.metrics.stability import stability


def random_coder(width: int, seed: int, d_in: int = 64) -> Coder:
    coder = make_coder("topk", d_in, width, k=4)
    coder.initialise(torch.zeros(d_in), torch.Generator().manual_seed(seed))
    return coder.requires_grad_(False)


@pytest.fixture(params=[module.HUNGARIAN, 1], ids=["hungarian", "mutual_nearest"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "HUNGARIAN", request.param)
    return "hungarian" if request.param > 1 else "mutual_nearest"


def test_the_common_latents_are_found_in_any_order_and_scale(method: str) -> None:
    one, other = random_coder(40, 0), random_coder(40, 1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    common = order[:30]
    noise = 0.03 * torch.randn(30, 64, generator=torch.Generator().manual_seed(3))
    other.W_dec_FD[common] = 3 * F.normalize(one.W_dec_FD[:30] + noise, dim=1)
    other.W_enc_FD[common] = 0.5 * (one.W_enc_FD[:30] + noise)
    found = stability(one, other)
    assert (found["shared"], found["method"]) == (0.75, method)
    assert (found["decoder"], found["encoder"], found["latents"]) == (0.75, 0.75, 40)
    back = stability(other, one)
    assert back.pop("mean_cosine") == pytest.approx(found.pop("mean_cosine"))
    assert back == found


def test_both_encoder_and_decoder_must_agree(method: str) -> None:
    one, other = random_coder(40, 0), random_coder(40, 1)
    other.W_dec_FD.copy_(one.W_dec_FD)
    found = stability(one, other)
    assert found["decoder"] == 1
    assert found["shared"] == found["encoder"] == 0
    other.W_enc_FD.copy_(one.W_enc_FD.roll(1, 0))  # each matches, but not the same latent
    found = stability(one, other)
    assert (found["decoder"], found["encoder"], found["shared"]) == (1, 1, 0)


def test_between_widths_the_narrower_counts(method: str) -> None:
    narrow, wide = random_coder(20, 0), random_coder(60, 1)
    wide.W_dec_FD[10:20] = narrow.W_dec_FD[:10]
    wide.W_enc_FD[10:20] = narrow.W_enc_FD[:10]
    for found in (stability(narrow, wide), stability(wide, narrow)):
        assert (found["shared"], found["latents"]) == (0.5, 20)


def test_a_coder_shares_all_with_itself_and_nothing_with_its_negative(method: str) -> None:
    coder, negative = random_coder(30, 0), random_coder(30, 0)
    assert stability(coder, coder)["shared"] == 1
    negative.W_dec_FD.neg_()
    assert stability(coder, negative)["shared"] == 0


def test_coders_of_two_widths_of_activations_are_refused() -> None:
    with pytest.raises(UserError, match="not of one site"):
        stability(random_coder(8, 0), random_coder(8, 0, d_in=32))
