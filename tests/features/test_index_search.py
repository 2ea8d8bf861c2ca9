import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_tokens, token

from sae.base.errors import UserError
from sae.features import FeatureIndex, select
from sae.features.search import by_label, by_promoted, by_text, by_token, matching_tokens


def test_search_by_token_ranks_the_specific_feature_first(
    index: FeatureIndex, dense_acts: np.ndarray
) -> None:
    table = by_token(index, " return").set_index("feature")
    assert table.index[0] == 0
    assert 5 in table.index  # the dense feature fires there too
    here = make_tokens().reshape(-1) == token(" return")
    for feature, row in table.iterrows():
        fires = dense_acts[:, feature] > 0
        assert row["count"] == (fires & here).sum()
        assert row["p_fires"] == pytest.approx((fires & here).sum() / here.sum())
        assert row["share"] == pytest.approx((fires & here).sum() / fires.sum())
    assert by_token(index, "no such token").empty


def test_how_typed_text_is_read(index: FeatureIndex) -> None:
    assert matching_tokens(index, " Paris").tolist() == [token(" Paris")]
    assert matching_tokens(index, "paris").tolist() == [token(" Paris")]
    assert set(matching_tokens(index, "wat")) == {token(" Watson"), token(" water")}
    assert matching_tokens(index, "\n").tolist() == [token("\n")]


def test_search_by_promoted_and_suppressed_token(index: FeatureIndex) -> None:
    for name, suppressed in (("promoted", False), ("suppressed", True)):
        table = by_promoted(index, " Paris", suppressed=suppressed, n=None)
        having = [f for f, ids in enumerate(index.table[f"{name}_ids"]) if token(" Paris") in ids]
        assert sorted(table["feature"]) == having
        assert table["logit"].abs().is_monotonic_decreasing
        assert (table["logit"] < 0).all() == suppressed


def test_search_by_label_and_text(index: FeatureIndex) -> None:
    assert 1 in by_label(index, "DIG")
    assert len(by_label(index, "no such label")) == 0
    assert set(by_text(index, " return 7", 2)["feature"]) == {0, 1}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("3,17,38-39", {3, 17, 38, 39}),
        ("0-9 density>0.2", {5}),
        ("0-9 density<=0 count=0", {4}),
        ("position_only=1", {6}),
        ("0-9 label:digits", {1}),
        ('0-9 label:"what FOLLOWS"', {2, 9}),
        ('0-9 token:" Holmes"', {3}),
        ("kind:dead", {4}),
        ("0-3 density!=0", {0, 1, 2, 3}),
        ("tag:x", set()),
        ("starred", set()),
    ],
)
def test_filter_expressions(index: FeatureIndex, expression: str, expected: set[int]) -> None:
    assert set(select(index, expression).tolist()) == expected


def test_no_filter_is_everything(index: FeatureIndex) -> None:
    assert len(select(index, None)) == len(select(index, "  ")) == index.width


def test_promoted_tokens_filter(index: FeatureIndex) -> None:
    expected = [f for f, ids in enumerate(index.table["promoted_ids"]) if token(" Paris") in ids]
    assert select(index, 'promotes:" Paris"').tolist() == expected


def test_saved_filters(index: FeatureIndex, tmp_path: Path) -> None:
    saved = tmp_path / "saved filter.json"
    saved.write_text(json.dumps({"filter": "density>0.2"}))
    assert select(index, f'@"{saved}" 0-10').tolist() == [5]
    saved.write_text(json.dumps({"filter": f'@"{saved}"'}))
    with pytest.raises(UserError, match="leads back"):
        select(index, f'@"{saved}"')
    saved.write_text("[]")
    with pytest.raises(UserError, match="no saved filter"):
        select(index, f'@"{saved}"')
    with pytest.raises(UserError, match="does not exist"):
        select(index, "@nowhere.json")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("densty>1", "Did you mean `density`"),
        ("density>much", "not a number"),
        ("labl:x", "Did you mean `label`"),
        ("40", "features 0 to 39"),
        ("9-3", "runs backwards"),
        ("what", "cannot be read"),
        ('label:"open', "open quotation mark"),
        ("label>3", "numeric column"),
    ],
)
def test_bad_filters_are_told(index: FeatureIndex, expression: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(index, expression)
