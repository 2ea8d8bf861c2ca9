"""Random directions: they fire as often as asked, and are labelled as features are."""

import numpy as np
import pytest

from sae.base.errors import UserError
from sae.explain.control import label_control
from sae.explain.directions import firings_of, random_directions
from sae.features import FeatureIndex

D = 16


class Noise:
    """A store of activations that know nothing of the text."""

    def __init__(self, index: FeatureIndex) -> None:
        self.context = index.context
        self.x_RD = np.random.default_rng(0).normal(size=(index.tokens_ST.size, D))
        self.x_RD = self.x_RD.astype(np.float16)

    def read(self, site: str, start: int, stop: int) -> np.ndarray:
        return self.x_RD[start:stop]


def test_directions_are_unit_and_of_their_seed() -> None:
    first = random_directions(5, D, 0)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(first, random_directions(5, D, 0))
    assert not np.allclose(first, random_directions(5, D, 1))


def test_firings_are_the_largest_projections(
    index: FeatureIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.explain.directions.BLOCK_ROWS", 700)
    store, unit_ND, counts = Noise(index), random_directions(3, D, 0), [1, 40, 3000]
    ranges = [[320, 3200], [6400, 8320]]
    found = firings_of(store, "site", ranges, unit_ND, counts)  # pyright: ignore[reportArgumentType]
    x_RD = np.concatenate([store.x_RD[a:b] for a, b in ranges]).astype(np.float32)
    values_RN = x_RD @ unit_ND.T
    values_RN[:: store.context] = -np.inf
    for (rows, acts), values, count in zip(found, values_RN.T, counts, strict=True):
        order = np.argsort(-values)
        np.testing.assert_array_equal(rows, np.sort(order[:count]))
        expected = values[rows] - values[order[count]]
        np.testing.assert_allclose(acts, expected, rtol=2e-3, atol=1e-4)
        assert (acts > 0).all()


def test_directions_without_meaning_get_worse_labels(index: FeatureIndex) -> None:
    rows_FD = random_directions(index.width, D, 3)
    report = label_control(
        index,
        Noise(index),  # pyright: ignore[reportArgumentType]
        rows_FD,
        lambda unit_ND: np.zeros((len(unit_ND), 10), np.int64),
        n=20,
    )
    assert report["features"]["f1"]["median"] > 0.7
    assert report["random_directions"]["f1"]["value"] < 0.45
    difference = report["difference"]["f1"]
    assert difference["value"] > 0.3
    assert 3 <= difference["pairs"] <= len(report["pairs"])
    assert abs(report["random_directions"]["auc"]["value"] - 0.5) < 0.15
    assert report["features"]["auc"]["value"] > 0.8
    assert report["random_directions"]["has_rule"]["value"] < 0.5
    assert report["all_features"]["scored"] == index.table["label_score"].notna().sum()
    for pair in report["pairs"]:  # the very labels of the index
        row = index.table.loc[pair["feature"]]
        assert pair["of_feature"]["label"] == row["label"]
        assert pair["of_feature"]["f1"] == row["label_score"]


def test_an_index_without_scores_is_one_sentence(index: FeatureIndex) -> None:
    bare = FeatureIndex.open(index.folder)
    bare.table["label_score"] = np.nan
    with pytest.raises(UserError, match=r"No label of .* has a score"):
        label_control(bare, None, np.eye(D), np.eye)  # pyright: ignore[reportArgumentType]
