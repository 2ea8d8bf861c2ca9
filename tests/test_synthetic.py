"""The data's truth is what its recipe says, and a batch is a pure function of its number."""

from pathlib import Path

import numpy as np
import pytest

import sae.store.schema as schema
from sae.base.errors import UserError
from sae.synthetic import (
    SITE,
    Recipe,
    SyntheticStream,
    SyntheticTruth,
    write_store,
    zipf_probabilities,
)

ROWS = 60_000
STRUCTURED = Recipe(
    d=16,
    features=60,
    l0=5.0,
    families=4,
    children=3,
    exclusive=(3, 4),
    correlated=(4, 3),
    correlation=0.7,
)


@pytest.fixture(scope="module")
def truth() -> SyntheticTruth:
    return SyntheticTruth(STRUCTURED)


@pytest.fixture(scope="module")
def fires(truth: SyntheticTruth) -> np.ndarray:
    return truth.fire(np.random.default_rng(0), ROWS).astype(np.float64)


def test_zipf_sums_to_l0_and_falls_by_the_law() -> None:
    p = zipf_probabilities(100, 1.0, 4.0)
    assert p.sum() == pytest.approx(4.0, abs=1e-9)
    below = p[p < 0.5]
    ranks = np.arange(101 - len(below), 101)
    np.testing.assert_allclose(below * ranks, below[0] * ranks[0])
    np.testing.assert_allclose(zipf_probabilities(10, 0.0, 5.0), 0.5)


def test_structure_leaves_every_probability_as_it_is(
    truth: SyntheticTruth, fires: np.ndarray
) -> None:
    deviation = np.sqrt(truth.probability_n * (1 - truth.probability_n) / ROWS)
    assert (np.abs(fires.mean(0) - truth.probability_n) < 5 * deviation).all()


def test_children_fire_only_with_their_parent(truth: SyntheticTruth, fires: np.ndarray) -> None:
    children = np.flatnonzero(truth.parent_n >= 0)
    assert len(children) == 12
    assert fires[:, children].any(axis=0).all()
    assert (fires[:, children] <= fires[:, truth.parent_n[children]]).all()


def test_exclusive_groups_fire_one_at_most(truth: SyntheticTruth, fires: np.ndarray) -> None:
    for group in range(3):
        members = np.flatnonzero(truth.exclusive_n == group)
        assert len(members) == 4
        assert fires[:, members].sum(axis=1).max() == 1


def test_correlation_is_that_of_the_copula(truth: SyntheticTruth, fires: np.ndarray) -> None:
    """P(both fire) of a Gaussian copula, against SciPy's bivariate normal; others independent."""
    from scipy.stats import multivariate_normal, norm

    i, j = np.flatnonzero(truth.correlated_n == 0)[:2]
    p = truth.probability_n
    expected = multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]]).cdf(norm.ppf(p[[i, j]]))
    assert (fires[:, i] * fires[:, j]).mean() == pytest.approx(expected, rel=0.1)
    assert expected > 2 * p[i] * p[j]
    free = (truth.parent_n < 0) & (truth.exclusive_n < 0) & (truth.correlated_n < 0)
    free[:4] = False
    together = np.corrcoef(fires[:, free].T) - np.eye(free.sum())
    assert np.abs(together).max() < 5 / np.sqrt(ROWS)


def test_rows_are_what_their_truth_says() -> None:
    truth = SyntheticTruth(Recipe(d=8, features=20, l0=3.0, offset=2.0, noise=0.0))
    sample = SyntheticStream(truth, batch=500).sample(3)
    expected = sample.acts.toarray().astype(np.float64) @ truth.dictionary_nD + truth.offset_D
    np.testing.assert_allclose(sample.x_BD, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(truth.dictionary_nD, axis=1), 1)
    assert np.linalg.norm(truth.offset_D) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("magnitude", "mean"), [("folded_normal", 1.0), ("log_normal", np.exp(0.09 / 2))]
)
def test_magnitudes(magnitude: str, mean: float) -> None:
    recipe = Recipe(d=8, features=20, l0=5.0, magnitude=magnitude, spread=0.3)  # pyright: ignore
    values = SyntheticStream(SyntheticTruth(recipe), batch=10_000).sample(0).acts.data
    assert values.min() > 0
    assert values.mean() == pytest.approx(mean, abs=0.01)


def test_noise_has_its_variance() -> None:
    quiet, loud = (
        SyntheticStream(SyntheticTruth(Recipe(d=8, features=20, l0=3.0, noise=s)), 20_000).sample(0)
        for s in (0.0, 0.5)
    )
    assert (loud.x_BD - quiet.x_BD).std() == pytest.approx(0.5, rel=0.02)


def test_a_batch_is_a_function_of_its_number(truth: SyntheticTruth) -> None:
    stream = SyntheticStream(truth, batch=64, seed=5)
    later = stream.batches(start=7)
    np.testing.assert_array_equal(next(later)[SITE], stream.sample(7).x_BD)
    np.testing.assert_array_equal(next(later)[SITE], stream.sample(8).x_BD)
    again = SyntheticStream(SyntheticTruth(STRUCTURED), batch=64, seed=5)
    np.testing.assert_array_equal(again.sample(7).x_BD, stream.sample(7).x_BD)
    other = SyntheticStream(truth, batch=64, seed=6)
    assert not np.array_equal(other.sample(7).x_BD, stream.sample(7).x_BD)


def test_statistics_are_those_of_the_rows(truth: SyntheticTruth) -> None:
    stream = SyntheticStream(truth, batch=256)
    rows = np.concatenate([stream.sample(i).x_BD for i in range(4)]).astype(np.float64)
    stats = stream.stats(batches=4)
    assert stats.count == 1024
    np.testing.assert_allclose(stats.mean_D, rows.mean(0), atol=1e-6)
    assert stats.variance == pytest.approx(rows.var(axis=0).sum(), rel=1e-5)


def test_store_holds_the_stream(
    truth: SyntheticTruth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "CHUNK_ROWS", 64)
    monkeypatch.setattr(schema, "SHARD_ROWS", 256)
    store = write_store(tmp_path / "s.zarr", truth, 900, context=16, seed=3)
    assert store.spec.shards == 4
    assert store.spec.rows == 912
    second = SyntheticStream(truth, 256, seed=3).sample(1).x_BD
    np.testing.assert_array_equal(store.read(SITE, 256, 512), second.astype(np.float16))
    assert store.stats(SITE).variance == pytest.approx(second.var(axis=0).sum(), rel=0.2)
    assert len(store.rows_of("heldout")) == 6 * 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 10, "families": 5}, "need 20 features"),
        ({"features": 10, "l0": 6.0}, "at most at 5"),
        ({"correlation": 1.0}, "must lie in"),
        ({"zipf": -0.5}, "`zipf` is -0.5; it must not be negative"),
        ({"spread": -0.3}, "`spread` is -0.3"),
        ({"noise": float("nan")}, "`noise` is nan"),
        ({"offset": -1.0}, "`offset` is -1.0"),
        ({"magnitude": "uniform"}, "folded_normal, log_normal"),
    ],
)
def test_mistakes_get_a_sentence(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe(**settings)


def test_groups_that_cannot_exclude_each_other() -> None:
    with pytest.raises(UserError, match="must not exceed 1"):
        SyntheticTruth(Recipe(features=12, l0=5.0, zipf=0.0, exclusive=(1, 4)))
