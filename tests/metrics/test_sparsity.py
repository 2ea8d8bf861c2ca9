"""Firing counts on a pattern that is known by hand."""

from itertools import combinations

import numpy as np
import pytest
import torch

from sae.coders import Codes
from sae.metrics.bootstrap import entries
from sae.metrics.registry import metrics_of
from sae.metrics.sparsity import Firings

WIDTH = 8


def codes(dense: list[list[float]]) -> Codes:
    acts = torch.tensor(dense)
    index = torch.arange(acts.shape[1]).expand_as(acts)
    return Codes.fixed(acts, index, WIDTH)


@pytest.fixture
def firings() -> Firings:
    """Latent 0 fires on all 4 scored tokens, 1 on one, 2 only on the row that is not scored."""
    counts = Firings(WIDTH, units=2, norms_F=torch.arange(1.0, WIDTH + 1))
    rows = codes([[1, 0, 9], [2, -3, 0], [1, 0, 0]])
    scored = torch.tensor([False, True, True])
    first = counts.add(rows, torch.tensor([0, 0, 0]), scored)
    assert first["l0"].tolist() == [2, 1]
    assert first["l1"].tolist() == [2 * 1 + 3 * 2, 1]  # |f_i| ‖d_i‖
    counts.add(codes([[1, 0, 0], [1, 0, 0]]), torch.tensor([1, 1]), torch.ones(2, dtype=torch.bool))
    return counts


def test_density_alive_and_dense_shares(firings: Firings) -> None:
    assert firings.tokens == 4
    assert firings.density_F.tolist() == [1, 0.25, 0, 0, 0, 0, 0, 0]
    assert firings.alive_F.tolist() == [True, True] + [False] * 6
    found = entries(firings.table(), metrics_of("sparsity"))
    assert found["alive"]["value"] == pytest.approx(2 / 8)
    assert found["dense_1pct"]["value"] == pytest.approx(2 / 8)
    assert found["dense_10pct"]["value"] == pytest.approx(2 / 8)
    assert found["alive"]["tokens"] == 4


def test_order_of_latents_and_size_of_activations_do_not_matter_to_firing() -> None:
    generator = torch.Generator().manual_seed(3)
    acts = (torch.rand(200, 5, generator=generator) - 0.8).relu()
    order = torch.randperm(5, generator=generator)
    unit, scored = torch.arange(200) // 20, torch.arange(200) % 9 > 0
    tables = []
    for rows in (acts, 7 * acts[:, order]):
        counts = Firings(5, 10, torch.ones(5))
        index = torch.arange(5).expand_as(rows)
        counts.add(Codes.fixed(rows, index, 5), unit, scored)
        tables.append(counts)
    plain, changed = tables
    assert changed.density_F == pytest.approx(plain.density_F[order.numpy()])
    assert changed.alive_curve() == plain.alive_curve()
    found = [entries(t.table(), metrics_of("sparsity")) for t in tables]
    assert found[0] == found[1]


def test_alive_curve_ends_at_alive(firings: Firings) -> None:
    curve = firings.alive_curve()
    assert curve["tokens"] == [1, 2, 3, 4]
    once = [n / 4 for n in (1, 2, 3, 4)]  # how likely n of the 4 tokens have that of latent 1
    assert curve["alive"] == pytest.approx([(1 + share) / 8 for share in once])
    assert curve["alive"][-1] == 2 / 8


def test_alive_curve_is_the_mean_over_all_choices_of_n_tokens() -> None:
    fires = torch.rand(9, 6, generator=torch.Generator().manual_seed(0)) < 0.3
    fires[:, 5] = False
    counts = Firings(6, 1, torch.ones(6))
    index = torch.arange(6).expand(9, 6)
    counts.add(Codes.fixed(fires.float(), index, 6), torch.zeros(9).long(), torch.ones(9).bool())
    curve = counts.alive_curve()
    assert curve["tokens"] == list(range(1, 10))
    for n, share in zip(curve["tokens"], curve["alive"], strict=True):
        chosen = [fires[list(rows)].any(0).double().mean() for rows in combinations(range(9), n)]
        assert share == pytest.approx(float(sum(chosen)) / len(chosen))


def test_alive_curve_is_exact_over_a_million_tokens() -> None:
    """A latent that fires on a tenth of the tokens, and one that fires once."""
    counts = Firings(2, 1, torch.ones(2))
    counts.tokens = 10**6
    counts.fires_UF = torch.tensor([1e5, 1.0])
    curve = counts.alive_curve()
    n = np.array(curve["tokens"])
    expected = ((1 - 0.9**n) + n / 1e6) / 2
    assert curve["alive"] == pytest.approx(expected, abs=1e-5)
    assert (np.diff(curve["alive"]) > 0).all()
    assert curve["alive"][-1] == 1


def test_alive_curve_does_not_depend_on_the_order_of_the_text() -> None:
    """Its first half has one document, of one latent."""
    fires = torch.eye(2).repeat_interleave(50, dim=0)
    curves = []
    for order in (torch.arange(100), torch.arange(100).view(2, 50).T.flatten()):
        counts = Firings(2, 1, torch.ones(2))
        rows = Codes.fixed(fires[order], torch.arange(2).expand(100, 2), 2)
        counts.add(rows, torch.zeros(100).long(), torch.ones(100).bool())
        curves.append(counts.alive_curve())
    assert curves[0] == curves[1]
    assert dict(zip(curves[0]["tokens"], curves[0]["alive"], strict=True))[10] > 0.99


def test_histograms_hold_every_latent_and_token(firings: Firings) -> None:
    histogram = firings.density_histogram()
    assert sum(histogram["latents"]) + histogram["silent"] == WIDTH
    assert len(histogram["log10_density_edges"]) == len(histogram["latents"]) + 1
    active = firings.l0_histogram()
    assert sum(active["tokens"]) == 4
    assert dict(zip(active["l0_edges"][:-1], active["tokens"], strict=True)) == {1: 3, 2: 1}


def test_folding_documents_keeps_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae.metrics import sparsity

    monkeypatch.setattr(sparsity, "TABLE_ENTRIES", 64 * WIDTH)
    counts = Firings(WIDTH, units=1000, norms_F=torch.ones(WIDTH))
    assert counts.units == 64
    assert counts.resampled("documents") == ("groups of documents", 0)
    assert counts.resampled("groups of sequences") == ("groups of sequences", 0)
    rows = codes(np.eye(3).tolist())
    counts.add(rows, torch.tensor([3, 500, 999]), torch.ones(3, dtype=torch.bool))
    assert counts.density_F[:3].tolist() == pytest.approx([1 / 3] * 3)
    assert counts.table()["count"].sum() == 3
    assert counts.resampled("documents") == ("groups of documents", 3)  # 3, 500 % 64, 999 % 64
    assert Firings(WIDTH, 60, torch.ones(WIDTH)).resampled("documents") == ("documents", 0)
