"""Matched latents of two coders whose common ones are known."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.coders import Coder, make_coder
from sae.metrics import stability as module
from sae.metrics.sample import draw
from sae.metrics.stability import firing, stability
from sae.store import ActivationStore
from tests.metrics.conftest import SITE


def values(found: dict[str, Any]) -> list[float | None]:
    return [found[key]["value"] for key in ("shared", "decoder", "encoder", "mean_cosine")]


def random_coder(width: int, seed: int, d_in: int = 64) -> Coder:
    coder = make_coder("topk", d_in, width, k=4)
    coder.initialise(torch.zeros(d_in), torch.Generator().manual_seed(seed))
    return coder.requires_grad_(False)


@pytest.fixture(params=[module.HUNGARIAN, 1], ids=["hungarian", "mutual_nearest"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "HUNGARIAN", request.param)
    module._control.cache_clear()  # it holds for one limit
    return "hungarian" if request.param > 1 else "mutual_nearest"


def test_the_common_latents_are_found_in_any_order_and_scale(method: str) -> None:
    one, other = random_coder(40, 0), random_coder(40, 1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    common = order[:30]
    noise = 0.03 * torch.randn(30, 64, generator=torch.Generator().manual_seed(3))
    other.W_dec_FD[common] = 3 * F.normalize(one.W_dec_FD[:30] + noise, dim=1)
    other.W_enc_FD[common] = 0.5 * (one.W_enc_FD[:30] + noise)
    found = stability(one, other)
    assert (found["shared"]["value"], found["method"]) == (0.75, method)
    assert (values(found)[1:3], found["latents"]) == ([0.75, 0.75], 40)
    assert 0.5 < found["shared"]["low"] < 0.75 < found["shared"]["high"] < 0.95
    back = stability(other, one)
    assert values(back) == pytest.approx(values(found))
    assert back["control"] == found["control"]


def test_both_encoder_and_decoder_must_agree(method: str) -> None:
    one, other = random_coder(40, 0), random_coder(40, 1)
    other.W_dec_FD.copy_(one.W_dec_FD)
    found = stability(one, other)
    assert values(found)[:3] == [0, 1, 0]
    other.W_enc_FD.copy_(one.W_enc_FD.roll(1, 0))  # each matches, but not the same latent
    found = stability(one, other)
    assert values(found)[:3] == [0, 1, 1]


def test_between_widths_the_narrower_counts(method: str) -> None:
    narrow, wide = random_coder(20, 0), random_coder(60, 1)
    wide.W_dec_FD[10:20] = narrow.W_dec_FD[:10]
    wide.W_enc_FD[10:20] = narrow.W_enc_FD[:10]
    for found in (stability(narrow, wide), stability(wide, narrow)):
        assert (found["shared"]["value"], found["latents"]) == (0.5, 20)


def test_a_coder_shares_all_with_itself_and_nothing_with_its_negative(method: str) -> None:
    coder, negative = random_coder(30, 0), random_coder(30, 0)
    assert stability(coder, coder)["shared"]["value"] == 1
    negative.W_dec_FD.neg_()
    assert stability(coder, negative)["shared"]["value"] == 0


def test_dead_latents_do_not_count(method: str) -> None:
    one, other = random_coder(40, 0), random_coder(40, 1)
    other.W_dec_FD[:10] = one.W_dec_FD[:10]
    other.W_enc_FD[:10] = one.W_enc_FD[:10]
    assert stability(one, other)["shared"]["value"] == 0.25
    first, none = np.arange(40) < 20, np.zeros(40, bool)
    found = stability(one, other, (first, np.ones(40, bool)))
    assert (found["shared"]["value"], found["latents"]) == (0.5, 20)
    empty = stability(one, other, (first, none))
    assert (empty["shared"]["value"], empty["latents"], empty["control"]["shared"]) == (
        None,
        0,
        None,
    )


def test_the_control_is_of_random_dictionaries_as_large(method: str) -> None:
    """In few dimensions chance alone matches; in many it does not."""
    flat = stability(random_coder(200, 0, d_in=2), random_coder(200, 1, d_in=2))
    assert flat["control"]["shared"] == pytest.approx(flat["shared"]["value"], abs=0.2)
    assert flat["control"]["mean_cosine"] > 0.9
    deep = stability(random_coder(40, 0), random_coder(40, 1))
    assert deep["control"]["shared"] == deep["shared"]["value"] == 0
    assert deep["control"]["mean_cosine"] == pytest.approx(deep["mean_cosine"]["value"], abs=0.1)


def test_alive_are_latents_that_fire_on_the_sample(store: ActivationStore, coder: Coder) -> None:
    sample = draw(store, "heldout", 20, {0})
    alive_F = firing(coder, sample)
    codes = coder.encode(torch.cat([b.x_BD[b.scored_B] for b in sample.batches(SITE)]))
    assert set(np.flatnonzero(alive_F)) == set(codes.ragged()[1].tolist())
    assert 0 < alive_F.sum() < coder.d_sae


def test_coders_of_two_widths_of_activations_are_refused() -> None:
    with pytest.raises(UserError, match="not of one site"):
        stability(random_coder(8, 0), random_coder(8, 0, d_in=32))
