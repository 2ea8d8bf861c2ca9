"""The error budget against errors that were put there, and its parts against each other."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae.coders import Coder, Codes, make_coder
from sae.metrics.error_budget import PARTS, STEPS, Rows, error_budget

D, ACTIVE = 16, 3
EVERYTHING = np.ones(D, bool)


def data(rows: int, seed: int = 0, dims: int = D) -> Rows:
    """Three of the first `dims` axes in each row, of amounts from 1 to 2."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.rand(rows, dims, generator=generator).topk(ACTIVE, dim=1).indices
    amount = 1 + torch.rand(rows, ACTIVE, generator=generator)
    x = torch.zeros(rows, D).scatter_(1, which, amount)
    return Rows(x, x, torch.arange(rows) // 10, -(-rows // 10))


class Wrong(torch.nn.Module):
    """The true dictionary, its codes spoilt by a function of (activations, indices)."""

    def __init__(self, spoil: Any) -> None:
        super().__init__()
        self.true = oracle()
        self.spoil, self.d_sae, self.W_dec_FD = spoil, D, self.true.W_dec_FD

    def encode(self, x_BD: Tensor) -> Codes:
        codes = self.true.encode(x_BD)
        acts_BK, indices_BK = self.spoil(codes.acts_BK, codes.indices_BK)
        return Codes.fixed(acts_BK, indices_BK, D)

    def decode(self, codes: Codes, x_BD: Tensor | None = None) -> Tensor:
        return self.true.decode(codes)

    def without_codes(self, x_BD: Tensor | None = None) -> Tensor:
        return self.true.without_codes()


def oracle(width: int = D) -> Coder:
    coder = make_coder("topk", D, width, k=ACTIVE)
    coder.W_enc_FD.data.copy_(torch.eye(width, D))
    coder.W_dec_FD.data.copy_(torch.eye(width, D))
    return coder.requires_grad_(False).eval()


def budget(coder: Any, held: Rows, alive: np.ndarray = EVERYTHING) -> dict[str, Any]:
    found = error_budget(coder, held, data(200, seed=9), alive, 1000, 0, lambda _done, _total: None)
    assert list(found["parts"]) == list(PARTS)
    assert sum(found["parts"].values()) == pytest.approx(1, abs=1e-6)
    assert list(found["fvu"]) == list(STEPS)
    return found


def test_codes_that_are_all_too_small_are_shrinkage() -> None:
    found = budget(Wrong(lambda acts, indices: (0.8 * acts, indices)), data(300))
    assert found["parts"]["shrinkage"] == pytest.approx(1, abs=1e-5)
    assert found["fvu"]["rescaled"]["value"] == pytest.approx(0, abs=1e-6)
    x = data(300).wanted_BD
    expected = 0.04 * x.square().sum() / (x - x.mean(0)).square().sum()
    assert found["fvu"]["encoder"]["value"] == pytest.approx(float(expected), rel=1e-5)


def test_wrong_amounts_on_the_right_latents() -> None:
    generator = torch.Generator().manual_seed(1)

    def noisy(acts: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        return acts * (1 + 0.5 * torch.randn(acts.shape, generator=generator)).abs(), indices

    found = budget(Wrong(noisy), data(300))
    assert found["parts"]["amounts"] > 0.7
    assert found["fvu"]["refitted"]["value"] == pytest.approx(0, abs=1e-6)


def test_wrong_latents() -> None:
    def one_wrong(acts: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        return acts, torch.cat([indices[:, :-1], (indices.sum(1, keepdim=True)) % D], dim=1)

    found = budget(Wrong(one_wrong), data(300))
    assert found["parts"]["choice"] > 0.4
    assert found["fvu"]["pursued"]["value"] == pytest.approx(0, abs=1e-6)


def test_latents_that_are_dead() -> None:
    """Half of the dictionary never fires, and has rows that no data need."""
    coder = oracle()
    coder.W_enc_FD[D // 2 :] = -1
    coder.W_dec_FD[D // 2 :] = coder.W_dec_FD[: D // 2]
    alive = np.arange(D) < D // 2
    found = budget(coder, data(300), alive)
    assert found["parts"]["dead_width"] > 0.1
    assert found["silent"] == {"latents": D // 2, "tokens": 1000}  # dead means: within so many
    none = budget(coder, data(300))
    assert none["parts"]["dead_width"] == 0
    assert none["parts"]["rest"] + none["parts"]["linear"] > found["parts"]["rest"]


def trap(seed: int = 5) -> tuple[Coder, Rows]:
    """Rows of two directions that pursuit misses for a third, which lies between these.

    The encoder finds the two, and codes them too small; a fourth dimension is in no latent.
    """
    rows = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0.7, 0.7, 0.14, 0]])
    coder = make_coder("topk", 4, 3, k=2)
    coder.W_dec_FD.data.copy_(rows)
    coder.W_enc_FD.data.copy_(0.8 * rows * torch.tensor([[1.0], [1.0], [0.0]]))
    generator = torch.Generator().manual_seed(seed)
    x = torch.cat([1 + 0.1 * torch.rand(200, 2, generator=generator), torch.zeros(200, 1),
                   torch.randn(200, 1, generator=generator)], dim=1)  # fmt: skip
    return coder.requires_grad_(False).eval(), Rows(x, x, torch.arange(200) // 10, 20)


def test_where_pursuit_does_worse_the_encoders_latents_are_kept() -> None:
    coder, held = trap()
    found = error_budget(coder, held, held, np.ones(3, bool), 1000, 0, lambda *_: None)
    parts, fvu = found["parts"], found["fvu"]
    assert parts["choice"] == 0
    assert found["pursuit_alone"]["better_on"] == 0
    assert found["pursuit_alone"]["fvu"]["value"] > fvu["refitted"]["value"] + 0.01
    assert fvu["pursued"]["value"] == fvu["refitted"]["value"]
    after = parts["linear"] + parts["rest"]  # of the fourth dimension, and of nothing else
    assert after * fvu["encoder"]["value"] == pytest.approx(fvu["refitted"]["value"])
    assert parts["linear"] == pytest.approx(after, rel=0.01)


def test_no_step_but_the_linear_one_makes_it_worse_on_any_token() -> None:
    coder = make_coder("relu", D, 24)
    coder.initialise(torch.zeros(D), torch.Generator().manual_seed(4))
    held, alive = data(300), np.arange(24) < 20
    found = error_budget(
        coder.requires_grad_(False), held, data(200, seed=9), alive, 1000, 0, lambda *_: None
    )
    gained = [found["parts"][part] for part in ("shrinkage", "amounts", "choice", "dead_width")]
    assert min(gained) >= -1e-9
    assert found["parts"]["choice"] > 0
    assert set(found["lower_bounds"]) == {"choice", "dead_width", "linear"}


def test_pursuit_takes_as_many_latents_on_a_token_as_the_encoder() -> None:
    """Half of the tokens have one latent and half have three; on average two would miss some."""

    def uneven(acts: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        kept = acts == acts.max(1, keepdim=True).values
        kept[1::2] = True
        return acts * kept, indices

    found = budget(Wrong(uneven), data(640))
    assert found["pursued_latents"] == 2
    assert found["parts"]["choice"] == pytest.approx(0, abs=0.02)
    left = found["fvu"]["pursued"]["value"] / found["fvu"]["encoder"]["value"]
    assert left == pytest.approx(1, abs=0.05)  # one latent does not make up for three


def test_what_is_linear_in_the_input_is_found_and_what_is_not_is_rest() -> None:
    """Half of the axes are in no latent: they are in x, so that a linear map gives them."""
    half = oracle(D // 2)
    held = data(2000)
    found = budget(half, held, np.ones(D // 2, bool))
    assert found["parts"]["linear"] > 0.9
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(held.wanted_BD.shape, generator=generator)
    beyond = Rows(held.given_BD, held.wanted_BD + noise, held.unit_B, held.units)
    found = budget(oracle(), beyond)
    assert abs(found["parts"]["linear"]) < 0.05  # noise that x says nothing of: no linear gain
    assert found["parts"]["rest"] > 0.3


def test_intervals_hold_their_values_and_the_budget_is_of_every_row() -> None:
    found = budget(Wrong(lambda acts, indices: (0.8 * acts, indices)), data(300))
    assert (found["tokens"], found["over"], found["units"]) == (300, "documents", 30)
    assert found["pursued_latents"] == ACTIVE
    for part, (low, high) in found["intervals"].items():
        assert low <= found["parts"][part] + 1e-9
        assert high >= found["parts"][part] - 1e-9


def test_a_coder_that_does_nothing_at_all_has_a_budget() -> None:
    silent = oracle()
    silent.b_enc_F.fill_(-100)
    found = budget(silent, data(100), ~EVERYTHING)
    assert found["parts"]["choice"] > 0.1  # the dictionary is sound: only its encoder is not


def test_scale_rotation_and_order_of_latents_change_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    plain = make_coder("topk", D, 24, k=ACTIVE)
    plain.initialise(torch.zeros(D), generator)
    plain.requires_grad_(False)
    held, train = data(200), data(200, seed=9)
    turn = 7 * torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    order = torch.randperm(24, generator=generator)
    turned = make_coder("topk", D, 24, k=ACTIVE).requires_grad_(False)
    turned.W_enc_FD.copy_((plain.W_enc_FD @ turn)[order] / 7)
    turned.W_dec_FD.copy_((plain.W_dec_FD @ turn)[order] / 7)

    def parts(coder: Coder, *rows: Rows) -> dict[str, float]:
        return error_budget(coder, *rows, np.ones(24, bool), 1000, 0, lambda *_: None)["parts"]

    def moved(rows: Rows) -> Rows:
        return Rows(rows.given_BD @ turn, rows.wanted_BD @ turn, rows.unit_B, rows.units)

    assert parts(turned, moved(held), moved(train)) == pytest.approx(
        parts(plain, held, train), abs=1e-4
    )
