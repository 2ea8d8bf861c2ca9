"""Coders of a network that adds by two frequencies: the true dictionary, and one that mixes."""

import math

import pytest
import torch
from torch import Tensor

from sae.coders import Coder, make_coder
from sae.lm.modular_addition import ModularAddition, Replace
from sae.metrics.addition import addition_report

P, KEYS = 113, (5, 21)
SITE = "blocks.0.hook_mlp_out"


class TwoWaves(ModularAddition):
    """x = (cos, sin) of two frequencies of a + b; logits = 30 Σ cos 2πk(a + b − c)/p."""

    def __init__(self) -> None:
        super().__init__(P, 4, 1, 4)

    def logits(self, pairs_B2: Tensor, site: str = SITE, replace: Replace | None = None) -> Tensor:
        def waves(n: Tensor) -> Tensor:
            angles = [2 * math.pi * k * n.double() / P for k in KEYS]
            parts = [f(angle) for angle in angles for f in (torch.cos, torch.sin)]
            return torch.stack(parts, dim=1).float()

        x_BD = waves(pairs_B2.sum(1))
        x_BD = replace(x_BD) if replace else x_BD
        return 30 * x_BD @ waves(torch.arange(P)).T


def signed_dictionary(directions_FD: Tensor) -> Coder:
    """ReLU latents along each direction of an orthonormal basis and its negative: x̂ = x."""
    both = torch.cat([directions_FD, -directions_FD])
    coder = make_coder("relu", 4, len(both))
    with torch.no_grad():
        coder.W_enc_FD.copy_(both)
        coder.W_dec_FD.copy_(both)
    coder.metadata = {"hook_name": SITE}
    return coder.requires_grad_(False).eval()


def test_the_true_dictionary_covers_every_key_frequency() -> None:
    report = addition_report(signed_dictionary(torch.eye(4)), TwoWaves())
    assert [row["frequency"] for row in report["key_frequencies"]] in ([5, 21], [21, 5])
    assert report["summary"]["coverage"] == report["summary"]["coverage_by_activation"] == 1
    assert report["controls"]["dimensions"]["coverage"] == 1  # they are the waves themselves
    assert report["summary"]["preactivation"]["value"] == pytest.approx(1, abs=1e-6)
    assert report["summary"]["activation"]["value"] > 0.99
    assert report["reconstruction"]["ev"] == pytest.approx(1, abs=1e-9)
    assert report["losses"]["spliced"]["loss"] == pytest.approx(report["losses"]["clean"]["loss"])
    assert report["losses"]["clean"]["excluded"] == pytest.approx(math.log(P), abs=1e-3)
    for row in report["key_frequencies"]:
        assert row["latents"] == row["latents_by_activation"] == 4
        assert row["logit_share"] == pytest.approx(0.5, abs=1e-5)
        assert row["largest_phase_gap"] == pytest.approx(math.pi / 2, abs=1e-4)
        assert row["logit_power_spliced"] == pytest.approx(1, abs=1e-5)
        assert row["logit_power_ablated"] == pytest.approx(0, abs=1e-9)
        assert row["loss_ablated"] > report["losses"]["clean"]["loss"]


def test_latents_that_mix_two_frequencies_cover_none() -> None:
    """Perfect reconstruction says nothing about it: EV is 1 here too."""
    half = math.sqrt(0.5)
    mixing = half * torch.tensor([[1.0, 0, 1, 0], [1, 0, -1, 0], [0, 1, 0, 1], [0, 1, 0, -1]])
    report = addition_report(signed_dictionary(mixing), TwoWaves())
    assert report["reconstruction"]["ev"] == pytest.approx(1, abs=1e-9)
    assert report["summary"]["coverage"] == 0
    assert report["summary"]["preactivation"]["value"] == pytest.approx(0.5, abs=1e-5)
    assert all(row["latents"] == 0 for row in report["key_frequencies"])
    assert all(row["largest_phase_gap"] == 2 * math.pi for row in report["key_frequencies"])
