from pathlib import Path

import numpy as np
import pytest
from synthetic import CONTEXT, DIGITS, make_index, make_tokens, token

from sae.base.errors import UserError
from sae.features import FeatureIndex
from sae.features.examples import strongest
from sae.features.windows import gather_windows


def test_top_examples_are_the_strongest(index: FeatureIndex, dense_acts: np.ndarray) -> None:
    found = index.examples(1, "top", 20)
    acts = [example.activation for example in found]
    assert acts == sorted(acts, reverse=True)
    assert acts[0] == dense_acts[:, 1].max() == found[0].window.acts[found[0].window.focus]
    assert found[0].percentile == 1.0
    values = dense_acts[:, 1][dense_acts[:, 1] > 0]
    for example in found:
        assert example.activation == dense_acts[example.row, 1]
        assert example.percentile == pytest.approx((values <= example.activation).mean())
        assert example.document == index.document_of(example.row)


def test_duplicate_contexts_are_folded(index: FeatureIndex) -> None:
    tokens = make_tokens()
    for kind in ("top", "random"):
        found = index.examples(5, kind, 300)  # fires everywhere, also in the three equal rows
        windows = gather_windows(tokens, np.array([one.row for one in found]), 10, 10)
        assert len(np.unique(windows, axis=0)) == len(found) == 300
    equal = index.examples(5, "bin", 10_000, low=0.0, high=1e4, context=2)
    assert max(one.copies for one in equal) >= 3


def test_folding_looks_past_duplicates(tmp_path: Path) -> None:
    """A feature whose strongest contexts are all the same still gets distinct examples."""
    tokens = make_tokens()
    tokens[:150] = tokens[0]
    acts = np.zeros((*tokens.shape, 1), np.float32)
    acts[:, 16] = 1.0
    acts[:150, 16] = 9.0
    index = FeatureIndex.open(make_index(tmp_path / "index", tokens_ST=tokens, acts_STF=acts))
    found = index.examples(0, "top", 20)
    assert [one.activation for one in found] == [9.0] + [1.0] * 19
    assert found[0].copies == 150


def test_strongest_is_a_stable_partial_sort() -> None:
    acts = np.array([1, 3, 2, 3, 1, 3], np.float16).view(np.uint16)
    for n, expected in [(2, [1, 3]), (3, [1, 3, 5]), (4, [1, 3, 5, 2]), (9, [1, 3, 5, 2, 0, 4])]:
        assert strongest(acts, n).tolist() == expected


def test_quantiles_hold_equally_many_nonzero_activations(
    index: FeatureIndex, dense_acts: np.ndarray
) -> None:
    values = np.sort(dense_acts[:, 1][dense_acts[:, 1] > 0])
    parts = np.array_split(values, 10)
    found = index.examples(1, "quantiles")
    numbers = [one.interval[0] for one in found if one.interval]
    assert numbers == sorted(numbers, reverse=True)
    assert len(found) == 50
    assert set(numbers) == set(range(10))
    for example in found:
        assert example.interval is not None
        number, low, high = example.interval
        assert (low, high) == (parts[number][0], parts[number][-1])
        assert low <= example.activation <= high
    assert min(one.activation for one in found) > 0


def test_few_firings_make_few_quantiles(index: FeatureIndex) -> None:
    found = index.examples(8, "quantiles", 500)
    assert len(found) == index.table["count"][8]


def test_bins_of_the_histogram_filter_examples(index: FeatureIndex, dense_acts: np.ndarray) -> None:
    histogram = index.histogram(3)
    assert histogram.counts.sum() == (dense_acts[:, 3] > 0).sum()
    total = 0
    for low, high, count in zip(
        histogram.edges, histogram.edges[1:], histogram.counts, strict=False
    ):
        found = index.examples(3, "bin", 10_000, low=low, high=high)
        assert sum(example.copies for example in found) == count
        total += count
    assert total == index.table["count"][3]


def test_random_examples_depend_on_the_seed_alone(index: FeatureIndex) -> None:
    rows = [[one.row for one in index.examples(5, "random", 10, seed=s)] for s in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_near_misses_have_the_token_and_no_activation(
    index: FeatureIndex, dense_acts: np.ndarray
) -> None:
    dot = [token(".")]
    found = index.examples(2, "near-miss")  # fires on "." after " Mr" alone
    assert len(found) == 20
    tokens = make_tokens().reshape(-1)
    for example in found:
        assert tokens[example.row] in dot
        assert example.activation == 0 == dense_acts[example.row, 2]
        assert example.row % CONTEXT > 0
    digits = {token(digit) for digit in DIGITS}
    assert index.examples(1, "near-miss") == []  # every digit fires it
    assert {tokens[one.row] for one in index.examples(1)} <= digits


def test_window_sizes(index: FeatureIndex) -> None:
    assert all(len(one.window) <= 5 for one in index.examples(0, context=2))
    assert all(len(one.window) == CONTEXT for one in index.examples(0, context=None))


def test_mistakes_are_told(index: FeatureIndex) -> None:
    with pytest.raises(UserError, match="Did you mean `quantiles`"):
        index.examples(0, "quantile")
    with pytest.raises(UserError, match="`low` and `high`"):
        index.examples(0, "bin")
