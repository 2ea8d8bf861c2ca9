"""Coders of a network that adds by two frequencies: the true dictionary, and one that mixes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sae.coders import Coder, make_coder
from sae.lm.modular_addition import ModularAddition, Replace
from sae.metrics.addition import LatentFrequencies, addition_report, dimensions, summary

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


def wave(k: int, phase: float = 0.0) -> np.ndarray:
    """(p², 1): cos of the sum at frequency k."""
    sums = np.add.outer(np.arange(P), np.arange(P)).reshape(-1, 1)
    return np.cos(2 * math.pi * k * sums / P - phase)


class Neurons(ModularAddition):
    """One rectified wave for each of two frequencies, from two phases."""

    def __init__(self) -> None:
        super().__init__(P, 4, 1, 4)

    def capture(self, pairs_B2: Tensor, site: str) -> Tensor:
        waves = np.concatenate([wave(k, phase) for k in KEYS for phase in (0.0, 2.0)], axis=1)
        before_GD = torch.from_numpy(waves)
        return before_GD if site.endswith("hook_pre") else before_GD.relu()


def test_neurons_are_judged_by_what_their_relu_reads() -> None:
    """A pure half-wave has 0.84 of its power on the fundamental, and is no worse a neuron."""
    net, key = Neurons(), np.array(KEYS)
    x_GD = net.capture(net.grid, "blocks.0.mlp.hook_post")
    neurons = dimensions(net, "blocks.0.mlp.hook_post", x_GD)
    assert neurons.pre_F == pytest.approx(1, abs=1e-9)
    found = summary(neurons, key, P, 0)
    assert found["coverage"] == found["coverage_by_activation"] == 1
    for_both = dimensions(net, "blocks.0.hook_mlp_out", x_GD)
    assert for_both.pre_F == pytest.approx(0.84, abs=0.01)
    assert summary(for_both, key, P, 0)["coverage"] == 0


def test_coverage_by_activation_does_not_ask_for_the_preactivation() -> None:
    """A mixed pre-activation below a threshold of its own may leave one wave, and the reverse."""
    mixed, clean = wave(5) + wave(21), np.maximum(wave(42), 0)
    found = LatentFrequencies.of(mixed, clean, P)
    assert found.covering(5).size == found.covering(21).size == found.covering(42).size == 0
    assert found.covering_by_activation(42).tolist() == [0]
    assert found.covering_by_activation(21).size == 0  # of which 42 would be a harmonic
    shares = summary(found, np.array([42]), P, 0)
    assert (shares["coverage"], shares["coverage_by_activation"]) == (0, 1)
