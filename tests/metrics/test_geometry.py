"""Geometry of dictionaries whose angles are known."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sae.metrics.bootstrap import entries
from sae.metrics.geometry import geometry_sums, neighbours
from sae.metrics.registry import metrics_of


def measure(enc: Tensor, dec: Tensor, alive: np.ndarray | None = None) -> dict[str, float]:
    alive = np.ones(len(dec), dtype=bool) if alive is None else alive
    sums, _ = geometry_sums(enc, dec, alive, tokens=1000)
    found = entries(sums.arrays(), metrics_of("geometry"))
    assert {e["tokens"] for e in found.values()} == {1000}
    return {name: float(e["value"]) for name, e in found.items() if e["value"] is not None}


def test_orthonormal_dictionary() -> None:
    rows = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    found = measure(-2 * rows, 5 * rows)
    assert found["encoder_decoder_cosine"] == pytest.approx(-1, abs=1e-6)
    assert found["max_decoder_cosine"] == pytest.approx(0, abs=1e-6)
    assert found["mean_abs_decoder_cosine"] == pytest.approx(0, abs=1e-6)
    assert found["max_decoder_cosine_excess"] < -0.2


def test_twins_and_the_dead_do_not_count() -> None:
    rows = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    twins = torch.cat([rows, rows])
    assert measure(twins, twins)["max_decoder_cosine"] == pytest.approx(1, abs=1e-6)
    alive = np.arange(32) < 16
    assert measure(twins, twins, alive)["max_decoder_cosine"] == pytest.approx(0, abs=1e-6)


def test_a_random_dictionary_has_no_excess() -> None:
    rows = torch.randn(800, 24, generator=torch.Generator().manual_seed(5))
    found = measure(rows, rows)
    assert found["max_decoder_cosine_excess"] == pytest.approx(0, abs=0.01)
    assert found["encoder_decoder_cosine"] == pytest.approx(1)


def test_scale_rotation_and_order_of_latents_change_nothing() -> None:
    generator = torch.Generator().manual_seed(7)
    enc, dec = torch.randn(2, 40, 12, generator=generator)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    order = torch.randperm(40, generator=generator)
    sizes = 0.1 + torch.rand(2, 40, 1, generator=generator)
    changed = measure((sizes[0] * enc @ turn)[order], (sizes[1] * dec @ turn)[order])
    assert changed == pytest.approx(measure(enc, dec), abs=1e-6)


def test_neighbours_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae.metrics import geometry

    rows = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    monkeypatch.setattr(geometry, "CHUNK", 7)
    largest, mean = neighbours(rows, torch.arange(50))
    cosines = rows @ rows.T
    cosines.fill_diagonal_(0)
    assert mean == pytest.approx(cosines.abs().sum(1) / 49)
    cosines.fill_diagonal_(-2)
    assert largest == pytest.approx(cosines.max(1).values)


def test_one_alive_latent_has_no_geometry() -> None:
    sums, plots = geometry_sums(torch.eye(4), torch.eye(4), np.arange(4) == 0, tokens=10)
    assert not sums.table
    assert not plots
