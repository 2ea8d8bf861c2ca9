from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import CONTEXT, DIGITS, make_tokens, token

from sae.features import FeatureIndex
from sae.features.scatter import scatter
from sae.features.statistics import feature_blocks, feature_statistics


def test_statistics_are_those_of_the_nonzero_activations(
    index: FeatureIndex, dense_acts: np.ndarray
) -> None:
    for feature, row in index.table.iterrows():
        values = dense_acts[:, feature][dense_acts[:, feature] > 0].astype(np.float64)
        assert row["count"] == len(values)
        assert row["density"] == pytest.approx(len(values) / index.tokens_indexed)
        if not len(values):
            assert row["mean"] == row["max"] == row["std"] == row["p50"] == 0
            continue
        assert row["mean"] == pytest.approx(values.mean())
        assert row["std"] == pytest.approx(values.std(), abs=1e-6)
        assert row["max"] == values.max()
        for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            assert row[name] == np.quantile(values, q, method="inverted_cdf")


def test_top_tokens_are_counted_exactly(index: FeatureIndex, dense_acts: np.ndarray) -> None:
    tokens = make_tokens().reshape(-1)
    for feature in (1, 5, 7):
        counts = np.bincount(tokens[dense_acts[:, feature] > 0])
        row = index.table.loc[feature]
        assert row["top_token_counts"].tolist() == np.sort(counts)[::-1][:10].tolist()
        assert counts[row["top_token_ids"]].tolist() == row["top_token_counts"].tolist()


def test_flags(index: FeatureIndex) -> None:
    table = index.table
    assert table["single_token"][[0, 8]].all()
    assert not table["single_token"][[1, 3, 4, 5]].any()
    assert table.index[table["position_only"]].tolist() == [6]
    assert table["position_entropy"][6] == 0.0
    assert table["position_entropy"][5] == pytest.approx(1.0, abs=1e-6)


def test_histograms_reach_from_zero_to_the_maximum(
    index: FeatureIndex, dense_acts: np.ndarray
) -> None:
    for feature in (0, 5):
        found = index.histogram(feature)
        values = dense_acts[:, feature][dense_acts[:, feature] > 0]
        expected, edges = np.histogram(values, bins=30, range=(0, values.max()))
        np.testing.assert_allclose(found.edges, edges, rtol=1e-6)
        np.testing.assert_array_equal(found.counts, expected)


def test_blocks_do_not_change_the_numbers(
    index: FeatureIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sae.features.statistics.feature_blocks", lambda indptr: feature_blocks(indptr, 300)
    )
    table, edges, counts = feature_statistics(index.indptr, index.rows, index.acts, index.tokens_ST)
    pd.testing.assert_frame_equal(
        table, index.table[table.columns], check_dtype=False, check_exact=True
    )
    np.testing.assert_array_equal(counts[3], index.histogram(3).counts)
    assert len(edges) == index.width


def test_blocks_cover_every_feature_once() -> None:
    indptr = np.array([0, 5, 5, 100, 101, 102, 102])
    for firings in (1, 6, 50, 1000):
        blocks = list(feature_blocks(indptr, firings))
        assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
        assert blocks[-1][1] == 6


@pytest.mark.parametrize("block", [7, 64, 10**6])
def test_scattering_in_blocks_sorts_by_feature_then_row(tmp_path: Path, block: int) -> None:
    rng = np.random.default_rng(0)
    acts = rng.random((50, 9)).astype(np.float16) * (rng.random((50, 9)) < 0.3)
    acts[10:20] = 0
    acts[:, 4] = 0
    rows, features = np.nonzero(acts)
    row_indptr = np.searchsorted(rows, np.arange(51)).astype(np.int64)
    counts = np.bincount(features, minlength=9)
    scatter(tmp_path, row_indptr, features.astype(np.uint16), acts[rows, features], counts, block)
    by_feature, expected_rows = np.nonzero(acts.T)
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), expected_rows)
    np.testing.assert_array_equal(np.load(tmp_path / "acts.npy"), acts[expected_rows, by_feature])
    np.testing.assert_array_equal(np.diff(np.load(tmp_path / "indptr.npy")), counts)


def test_synthetic_features_are_what_they_say(dense_acts: np.ndarray) -> None:
    """Guards the other tests: the digits feature fires on every digit and nothing else."""
    tokens = make_tokens()
    fires = (dense_acts[:, 1] > 0).reshape(-1, CONTEXT)
    np.testing.assert_array_equal(fires, np.isin(tokens, [token(digit) for digit in DIGITS]))
