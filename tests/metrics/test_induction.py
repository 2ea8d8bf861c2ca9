"""Induction features: a planted copier is found, one that knows its position is not."""

from typing import Any

import numpy as np
import pytest
import torch

from sae.base.errors import UserError
from sae.coders import Coder, make_coder
from sae.lm import load_lm
from sae.metrics.ablation import Ablation
from sae.metrics.continuation import constant
from sae.metrics.copying import CopyingBench, Repeats, equal_density, equal_firing
from sae.metrics.induction import find, induction_report, ranked

SITE = "blocks.5.hook_resid_post"  # the heads that copy are in its last two blocks


class Planted:
    """x = (the pair was seen before, second half of the row, token is even, 1) + a little noise."""

    bos_id, vocab_size, tokenizer = 0, 400, None

    def capture(self, tokens_ST: torch.Tensor, sites: list[str]) -> dict[str, torch.Tensor]:
        rows, length = tokens_ST.shape
        x = torch.zeros(rows, length, 4)
        half = length // 2
        x[:, half + 1 :, 0] = (tokens_ST[:, half + 1 :] == tokens_ST[:, 1 : half + 1]).float()
        x[:, half + 1 :, 1] = 1
        x[..., 2] = (tokens_ST % 2 == 0).float()
        x[..., 3] = 1
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        return {sites[0]: x + 0.01 * noise}


def basis_coder() -> Coder:
    coder = make_coder("relu", 4, 4)
    with torch.no_grad():
        coder.W_enc_FD.copy_(torch.eye(4))
        coder.W_dec_FD.copy_(torch.diag(torch.tensor([2.0, 1, 1, 1])))
    return coder.requires_grad_(False).eval()


def test_only_what_depends_on_the_repetition_is_found() -> None:
    lm: Any = Planted()
    repeats = Repeats.draw(lm, 12, 20, seed=0)
    latents = find(basis_coder(), lm, SITE, repeats)
    assert latents.value_F[:2] == pytest.approx([1, 1], abs=0.01)  # the position looks the same
    assert latents.over_other_F[:2] == pytest.approx([1, 0], abs=0.02)
    assert ranked(basis_coder(), latents).tolist()[0] == 0
    assert not latents.found_F[1]
    assert latents.density_second_F[0] == pytest.approx(1)
    assert latents.density_first_F[2] == pytest.approx(latents.density_second_F[2], abs=0.3)


def test_sequences_repeat_and_the_others_do_not() -> None:
    lm: Any = Planted()
    repeats = Repeats.draw(lm, 5, 9, seed=3)
    assert repeats.tokens_ST.shape == (5, 19)
    assert torch.equal(repeats.tokens_ST[:, 1:10], repeats.tokens_ST[:, 10:])
    assert torch.equal(repeats.other_ST[:, 10:], repeats.tokens_ST[:, 10:])
    assert not torch.equal(repeats.other_ST[:, 1:10], repeats.tokens_ST[:, 1:10])
    assert (repeats.tokens_ST[:, 1:] != 0).all()
    assert repeats.predictions == 5 * 8


def test_random_features_are_of_equal_density() -> None:
    density = np.concatenate([[0.01, 0.3], np.geomspace(1e-4, 0.5, 400)])
    pool = np.arange(2, 402)
    chosen = equal_density(np.array([0, 1]), density, pool, np.random.default_rng(0))
    assert len(set(chosen)) == 2
    assert density[chosen] == pytest.approx([0.01, 0.3], rel=0.3)
    few = equal_density(np.arange(2), density, pool[:1], np.random.default_rng(0))
    assert few.tolist() == [2]


def test_random_features_fire_as_often_in_sum() -> None:
    density = np.concatenate([[0.3, 0.2], np.full(400, 0.01)])
    pool, rng = np.arange(2, 402), np.random.default_rng(0)
    chosen = equal_firing(np.array([0, 1]), density, pool, rng)
    assert len(set(chosen)) == 50
    assert equal_firing(np.array([0, 1]), density, pool[:9], rng).size == 9  # all there are


@pytest.fixture(scope="module")
def copier() -> Coder:
    """On pocket-gpt2: one latent along what the second occurrence adds, 63 random ones."""
    lm = load_lm("pocket", device="cpu", dtype="float32")
    repeats = Repeats.draw(lm, 8, 32, seed=9)
    x_STD = lm.capture(repeats.tokens_ST, [SITE])[SITE].clone()
    first, second = x_STD[:, repeats.first].mean((0, 1)), x_STD[:, repeats.second].mean((0, 1))
    rows = torch.randn(64, lm.d_model, generator=torch.Generator().manual_seed(0))
    rows[0] = second - first
    coder = make_coder("relu", lm.d_model, 64)
    with torch.no_grad():
        coder.W_dec_FD.copy_(torch.nn.functional.normalize(rows, dim=1))
        coder.W_enc_FD.copy_(coder.W_dec_FD)
        coder.b_dec_D.copy_(first)
    coder.metadata = {"hook_name": SITE}
    return coder.requires_grad_(False).eval()


def test_the_report_of_a_model_that_copies(copier: Coder) -> None:
    lm = load_lm("pocket", device="cpu", dtype="float32")
    report = induction_report(copier, lm, sequences=12, length=32, counts=(1, 64))
    clean, [one, *_] = report["clean"], report["ablations"]
    assert clean["loss_first"]["value"] - clean["loss_second"]["value"] > 3
    assert clean["copied"]["value"] > 0.5
    found = {feature["latent"]: feature for feature in report["features"]}
    assert found[0]["low"] > 0
    assert found[0]["over_other"] > 0
    assert report["tokens"] == 3 * 31
    assert report["sequences"] == {"found_on": 9, "tested_on": 3}
    assert report["ablations"][-1]["latents"] == report["found"]
    assert one["latents"] == 1
    lost = one["features"]["delta_second"]["value"]
    gap = clean["loss_first"]["value"] - clean["loss_second"]["value"]
    assert one["features"]["removed"]["value"] == pytest.approx(lost / gap)


def test_taking_nothing_costs_nothing_and_taking_all_ends_copying(copier: Coder) -> None:
    lm = load_lm("pocket", device="cpu", dtype="float32")
    bench = CopyingBench(copier, lm, SITE, Repeats.draw(lm, 6, 32, seed=1), seed=0)
    nothing = bench.effect([Ablation(copier, [])])
    assert nothing["delta_second"]["value"] == pytest.approx(0, abs=1e-6)
    assert nothing["removed"]["value"] == pytest.approx(0, abs=1e-6)
    assert nothing["removed"]["high"] is None  # of six sequences
    all_of_it = bench.effect([constant(copier.b_dec_D)])
    assert all_of_it["removed"]["value"] > 0.5
    assert all_of_it["copied"]["value"] < 0.05


def test_what_cannot_be_measured_is_refused(copier: Coder) -> None:
    lm: Any = Planted()
    transcoder = make_coder("transcoder", 4, 8, k=2)
    transcoder.metadata = {"hook_name": "a", "hook_name_out": "b"}
    with pytest.raises(UserError, match="reads `a` and writes `b`"):
        induction_report(transcoder, lm)
    with pytest.raises(UserError, match=r"`sequences` is 2; .* at least 4"):
        induction_report(copier, lm, sequences=2)
