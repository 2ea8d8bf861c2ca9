from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sae.base.errors import UserError
from sae.features.effects import (
    _logit_chunk,
    logit_effect,
    nearest_by_cosine,
    to_residual,
    unembedding,
)
from sae.lm import parse_site

D, V = 12, 70


@pytest.fixture(scope="module")
def lm() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=V, n_embd=D, n_layer=2, n_head=2, n_positions=8)
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    model.transformer.ln_f.weight.uniform_(0.5, 2)
    model.transformer.ln_f.bias.normal_()
    return SimpleNamespace(
        model=model,
        d_model=D,
        device=torch.device("cpu"),
        name="tiny",
        site=lambda name: parse_site(name, 2),
        site_width=lambda name: parse_site(name, 2).width(D, 4 * D),
    )


def test_the_effect_is_what_the_head_does_to_a_direction(lm: Any) -> None:
    """ln_f(x) = γ (x - mean) / σ + β: with σ held, a step of σ along d moves the logits so."""
    torch.manual_seed(1)
    d_FD, x_D = torch.randn(3, D), torch.randn(D)
    ln_f, head = lm.model.transformer.ln_f, lm.model.lm_head

    def logits(y_D: torch.Tensor) -> torch.Tensor:
        normal_D = (y_D - y_D.mean()) / x_D.var(unbiased=False).sqrt()
        return head(normal_D * ln_f.weight + ln_f.bias)

    step = x_D.var(unbiased=False).sqrt()
    moved_FV = torch.stack([logits(x_D + step * d_D) - logits(x_D) for d_D in d_FD])
    expected_FV = moved_FV - moved_FV.mean(dim=1, keepdim=True)
    torch.testing.assert_close(
        logit_effect(d_FD, unembedding(lm)), expected_FV, rtol=1e-4, atol=1e-5
    )


def test_what_changes_no_probability_has_no_effect(lm: Any) -> None:
    d_FD = torch.randn(2, D)
    effect_FV = logit_effect(d_FD, unembedding(lm))
    torch.testing.assert_close(
        effect_FV, logit_effect(d_FD + 5, unembedding(lm)), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(effect_FV.sum(dim=1), torch.zeros(2), atol=1e-4, rtol=0)


def test_directions_inside_an_mlp_go_through_its_projection(lm: Any) -> None:
    W_dec_FD = torch.randn(3, 4 * D)
    found = to_residual(W_dec_FD, lm, "blocks.1.mlp.hook_post")
    projection = lm.model.transformer.h[1].mlp.c_proj
    torch.testing.assert_close(found, projection(W_dec_FD) - projection.bias)
    with pytest.raises(UserError, match="does not fit"):
        to_residual(torch.randn(3, D + 1), lm, "blocks.1.hook_resid_pre")


def test_tokens_and_histograms_of_logits() -> None:
    logits_FV = torch.randn(4, V, dtype=torch.float64)
    high, high_ids, low, low_ids, edges, counts = _logit_chunk(logits_FV)
    for row in range(4):
        order = np.argsort(logits_FV[row].numpy())
        assert high_ids[row].tolist() == order[::-1][:10].tolist()
        assert low_ids[row].tolist() == order[:10].tolist()
        assert high[row, 0] == logits_FV[row].max()
        assert low[row, 0] == logits_FV[row].min()
        expected, expected_edges = np.histogram(logits_FV[row].numpy(), bins=30)
        assert counts[row].tolist() == expected.tolist()
        np.testing.assert_allclose(edges[row], expected_edges, rtol=1e-5, atol=1e-6)


def test_neighbours_are_the_largest_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    W_FD = torch.randn(25, 6)
    W_FD[3] = 4 * W_FD[8]
    monkeypatch.setattr("sae.features.effects.ELEMENTS", 100)  # four rows at a time
    ids, cosines = nearest_by_cosine(W_FD)
    unit = torch.nn.functional.normalize(W_FD, dim=1)
    exact = (unit @ unit.T).fill_diagonal_(-9)
    np.testing.assert_array_equal(ids, exact.argsort(dim=1, descending=True)[:, :10])
    assert (ids[3, 0], ids[8, 0]) == (8, 3)
    assert cosines[3, 0] == pytest.approx(1.0, abs=1e-6)


def test_a_tiny_dictionary_has_few_neighbours() -> None:
    ids, cosines = nearest_by_cosine(torch.eye(3))
    assert (ids[:, 2:] == -1).all()
    assert (cosines[:, 2:] == 0).all()
    assert sorted(ids[0, :2]) == [1, 2]
