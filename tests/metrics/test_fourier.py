"""Shares of Fourier power have closed forms for waves, half-waves and their sums."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.base.errors import UserError
from sae.metrics import fourier

P = 113
A, B = (part.ravel() for part in np.meshgrid(np.arange(P), np.arange(P), indexing="ij"))


def wave(values: np.ndarray, k: int, phase: float = 0.0, p: int = P) -> np.ndarray:
    return np.cos(2 * math.pi * k * values / p - phase)


def shares(*functions: np.ndarray, harmonics: int = 0) -> np.ndarray:
    return fourier.frequency_shares(np.stack(functions, axis=1), P, harmonics)


def test_a_wave_of_the_sum_or_of_a_term_is_of_its_frequency() -> None:
    found = shares(wave(A + B, 7, 0.3), wave(A, 20), wave(B, 56, 1.0))
    for column, k in enumerate((7, 20, 56)):
        assert found[k - 1, column] == pytest.approx(1, abs=1e-12)
        assert found[:, column].sum() == pytest.approx(1, abs=1e-12)


def test_power_adds_up_and_the_mean_does_not_count() -> None:
    mixed = 5 + math.sqrt(3) * wave(A + B, 9) + wave(A, 30, 0.5)
    found = shares(mixed, np.ones(P * P))
    assert found[8, 0] == pytest.approx(0.75)
    assert found[29, 0] == pytest.approx(0.25)
    assert found[:, 1].max() == 0  # a constant has no frequency
    power = fourier.grid_power(mixed[:, None], P)
    assert power.sum() == pytest.approx(mixed.var())


def test_waves_of_the_difference_are_of_no_frequency() -> None:
    assert shares(wave(A - B, 7))[:, 0].max() < 1e-20


def test_a_half_wave_has_084_alone_and_nearly_all_with_its_harmonics() -> None:
    half = np.maximum(0, wave(A + B, 11))
    exact = (1 / 8) / (1 / 4 - 1 / math.pi**2)
    assert shares(half)[10, 0] == pytest.approx(exact, abs=1e-3)
    second = 0.5 * (2 / (3 * math.pi)) ** 2
    with_second = (1 / 8 + second) / (1 / 4 - 1 / math.pi**2)
    assert shares(half, harmonics=2)[10, 0] == pytest.approx(with_second, abs=1e-3)
    assert shares(half, harmonics=4)[10, 0] > 0.998


def test_mixed_harmonics_count_to_their_fundamental() -> None:
    product = wave(A, 5) * wave(B, 5)  # half on a + b, half on a - b
    assert shares(product)[4, 0] == pytest.approx(0.5)
    assert shares(product, harmonics=1)[4, 0] == pytest.approx(1)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 112), st.floats(0.1, 100), st.floats(-100, 100), st.integers(0, 5))
def test_relabelling_moves_frequencies_and_units_do_not_matter(
    factor: int, scale: float, offset: float, seed: int
) -> None:
    """a → ra, b → rb moves frequency k to rk; scale and offset change nothing."""
    rng = np.random.default_rng(seed)
    weight = rng.random(56)
    function = sum(w * wave(A + B, k + 1, w) + w * wave(A, k + 1) for k, w in enumerate(weight))
    moved = np.asarray(function).reshape(P, P)[np.ix_(*[np.arange(P) * factor % P] * 2)].ravel()
    before = shares(np.asarray(function))[:, 0]
    after = shares(offset + scale * moved)[:, 0]
    k = np.arange(1, 57) * factor % P
    assert np.allclose(after[np.minimum(k, P - k) - 1], before, atol=1e-9)


def test_phases_and_the_gap_between_them() -> None:
    values = np.stack([wave(A + B, 7, 1.25), wave(A + B, 9, 6.0)], axis=1)
    assert fourier.phases(values, P, np.array([7, 9])) == pytest.approx([1.25, 6.0])
    assert fourier.largest_gap(np.array([0, math.pi / 2, math.pi])) == pytest.approx(math.pi)
    assert fourier.largest_gap(np.array([6.2, 0.1])) == pytest.approx(6.1)
    assert fourier.largest_gap(np.array([1.0])) == pytest.approx(2 * math.pi)


def adding_logits(powers: dict[int, float]) -> np.ndarray:
    """Σ amplitude · cos 2πk(a + b − c)/p, whose variance is Σ amplitude² / 2."""
    offsets = (A + B)[:, None] - np.arange(P)
    return sum(np.sqrt(2 * power) * wave(offsets, k) for k, power in powers.items())


def test_the_key_frequencies_are_those_of_the_logits() -> None:
    rng = np.random.default_rng(0)
    logits = adding_logits({4: 6.0, 40: 3.0, 17: 1.0, 50: 0.01})
    common = rng.normal(size=(P * P, 1)) * 50 + rng.normal(size=P) * 50
    found = fourier.logit_shares(logits + common, P)
    assert found[[3, 39, 16]] == pytest.approx(np.array([6, 3, 1]) / 10.01)
    assert fourier.key_frequencies(logits + common, P).tolist() == [4, 40, 17]
    noise = fourier.logit_shares(rng.normal(size=(P * P, P)), P)
    assert noise.max() < 1e-4


def test_restricted_and_excluded_loss() -> None:
    logits = adding_logits({4: 6000.0, 40: 3000.0})
    both = fourier.progress_losses(logits, P, np.array([4, 40]))
    assert both["restricted"] == pytest.approx(both["loss"])
    assert both["loss"] < 0.01
    assert both["excluded"] == pytest.approx(math.log(P))  # nothing is left: a guess
    one = fourier.progress_losses(logits, P, np.array([4]))
    alone = adding_logits({40: 3000.0})
    assert one["excluded"] == pytest.approx(fourier.grid_loss(alone, P))
    none = fourier.progress_losses(logits, P, np.array([9]))
    assert none["excluded"] == pytest.approx(none["loss"])


def test_a_grid_of_another_size_is_refused() -> None:
    with pytest.raises(UserError, match="100 rows; the grid of p = 113"):
        fourier.frequency_shares(np.zeros((100, 1)), P)
