"""Fronts and matched errors against closed forms."""

import copy
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae.base.errors import UserError
from sae.metrics import compare, write_comparison
from sae.metrics.front import Point, behind, front, levels, matched


def entry(value: float, spread: float | None = None) -> dict[str, float | None]:
    if spread is None:
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": value - spread, "high": value + spread}


def point(l0: float, error: float, spread: float | None = 0.001) -> Point:
    return entry(l0, 0.0), entry(error, spread)


def test_the_front_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    points = {
        str(i): point(float(rng.integers(1, 12)), float(rng.integers(1, 12))) for i in range(60)
    }
    at = {n: (p[0]["value"], p[1]["value"]) for n, p in points.items()}

    def beaten(name: str) -> bool:
        x, y = at[name]
        return any(a <= x and b <= y and (a, b) != (x, y) for a, b in at.values())

    found = front(points)
    assert set(found) == {name for name in points if not beaten(name)}
    assert [at[n][0] for n in found] == sorted(at[n][0] for n in found)
    assert set(behind(points)) == set(points) - set(found)


def test_behind_says_by_whom_and_whether_it_is_certain() -> None:
    points = {
        "sparse": point(16, 0.20),
        "dense": point(64, 0.05),
        "near": point(64, 0.0515),  # its interval touches that of `dense`
        "far": point(70, 0.3),  # behind both; `dense` is the better of them
        "unsure": point(16, 0.3, None),
    }
    assert front(points) == ["sparse", "dense"]
    assert behind(points) == {
        "near": {"by": "dense", "certain": False},
        "far": {"by": "dense", "certain": True},
        "unsure": {"by": "sparse", "certain": False},
    }


def test_a_power_law_is_matched_exactly() -> None:
    curve = [point(l0, 3 * l0**-0.7, 0.1 * l0**-0.7) for l0 in (60, 10, 25)]
    for l0 in (10, 16, 25, 31.4, 60, 62, 9.6):
        found = matched(curve, l0)
        assert found is not None
        assert found["value"] == pytest.approx(3 * l0**-0.7)
        assert found["low"] == pytest.approx(2.9 * l0**-0.7)
        assert found["high"] == pytest.approx(3.1 * l0**-0.7)


def test_nothing_is_read_far_beyond_a_curve_or_off_a_single_coder() -> None:
    curve = [point(10, 0.3), point(20, 0.2)]
    assert matched(curve, 22) is None
    assert matched(curve, 9) is None
    assert matched([point(32, 0.3)], 32) == entry(0.3, 0.001)
    assert matched([point(32, 0.3)], 32.5) is None
    assert matched([], 8) is None
    assert matched([point(0, 0.3), point(20, 0.2)], 20) is None


def test_coders_at_one_place_of_a_curve_are_averaged_not_chosen_from() -> None:
    curve = [point(16, 0.4), point(32, 0.3), point(32, 0.1)]
    assert matched(curve, 32) == {key: pytest.approx(v) for key, v in entry(0.2, 0.001).items()}
    near = [point(16, 0.4), point(31.98, 0.3), point(31.99, 0.1)]
    found = matched(near, 32)  # a line through the last two would point far below
    assert found is not None
    assert found["value"] == pytest.approx(0.2, abs=0.001)
    odd = [point(32, 0.3), point(32, 0.1, None)]
    assert matched(odd, 32) == {"value": pytest.approx(0.2), "low": None, "high": None}


def test_an_error_that_is_not_positive_is_interpolated_as_it_is() -> None:
    """ΔCE may be nought within its interval; bounds stay around the value."""
    curve = [
        (entry(16.0), {"value": 0.0001, "low": -0.001, "high": 0.001}),
        (entry(64.0), {"value": 0.95, "low": 0.9, "high": 1.0}),
    ]
    found = matched(curve, 32)
    assert found is not None
    assert found["value"] == pytest.approx((0.0001 + 0.95) / 2)
    assert found["low"] == pytest.approx((0.9 - 0.001) / 2)
    missing = [(entry(16.0), entry(0.4)), (entry(64.0), entry(0.1, 0.01))]
    assert matched(missing, 32) == {"value": pytest.approx(0.2), "low": None, "high": None}


def test_levels_are_where_a_curve_can_be_read() -> None:
    assert levels([[point(15.8, 0.3), point(63, 0.1)], [point(128, 0.05)]]) == [16, 32, 64, 128]
    assert levels([[point(20, 0.3)]]) == []
    assert levels([]) == []


def evaluation(
    l0: float, fvu: float, site: str = "a", tokens: int = 1000, target: str | None = None
) -> dict[str, Any]:
    metrics = {name: entry(fvu, 0.001) for name in ("fvu", "delta_ce", "ev", "kl", "alive")}
    return {
        "metrics": {**metrics, "l0": entry(l0, 0.0)},
        "provenance": {
            "coder": {
                "site": site,
                "target_site": target or site,  # as `provenance.describe_coder` says it
                "architecture": "topk",
                "d_sae": 64,
            },
            "model": {"name": "m", "hash": "h"},
            "store": {"split": "heldout", "corpus": {"hash": "c"}},
            "tokens": tokens,
            "loss_tokens": 100,
        },
    }


def test_seeds_are_averaged_and_kept_and_families_compared_at_equal_l0() -> None:
    found = compare(
        {
            "a-k16": evaluation(16, 0.4),
            "a-k64": evaluation(64, 0.1),
            "a-k16-s1": evaluation(16, 0.6),
            "a-k64-s1": evaluation(64, 0.15),
            "b": evaluation(32, 0.3),
        },
        {
            "a-k16": ("a", 0),
            "a-k64": ("a", 0),
            "a-k16-s1": ("a", 1),
            "a-k64-s1": ("a", 1),
            "b": ("b", 0),
        },
    )
    (group,) = found["groups"]
    assert group["fronts"]["fvu"] == ["a-k16", "b", "a-k64"]
    matched_fvu = group["matched"]["fvu"]
    assert matched_fvu["l0"] == [16, 32, 64]
    middle = matched_fvu["families"]["a"][1]
    assert middle["seeds"] == pytest.approx([0.2, 0.3])
    assert middle["value"] == pytest.approx(0.25)
    assert (middle["reached"], middle["of"]) == (2, 2)
    assert matched_fvu["families"]["b"][0] is None
    assert matched_fvu["families"]["b"][1]["value"] == pytest.approx(0.3)


def test_a_mean_says_how_many_of_the_seeds_it_rests_on(tmp_path: Path) -> None:
    found = compare(
        {"a": evaluation(16, 0.4), "a-s1": evaluation(16, 0.6), "a-s2": evaluation(40, 0.1)},
        {"a": ("a", 0), "a-s1": ("a", 1), "a-s2": ("a", 2)},
    )
    (at_16,) = found["groups"][0]["matched"]["fvu"]["families"]["a"]
    assert (at_16["value"], at_16["reached"], at_16["of"]) == (0.5, 2, 3)
    text = write_comparison(found, tmp_path / "compare.html").read_text()
    assert "2 of 3 seeds: 0.4000, 0.6000" in text


def test_different_sites_and_texts_are_never_ranked_together() -> None:
    found = compare(
        {
            "one": evaluation(16, 0.4),
            "other site": evaluation(16, 0.1, site="b"),
            "other text": evaluation(16, 0.1, tokens=999),
            "transcoder": evaluation(16, 0.1, target="b"),
            "other target": evaluation(16, 0.05, target="c"),
            "same target": evaluation(8, 0.2, target="c"),
        }
    )
    assert [list(group["coders"]) for group in found["groups"]] == [
        ["one"],
        ["other site"],
        ["other text"],
        ["transcoder"],
        ["other target", "same target"],
    ]
    assert [group["target_site"] for group in found["groups"]] == ["a", "b", "a", "b", "c"]
    assert all(not group["behind"]["fvu"] for group in found["groups"])


def test_a_value_that_does_not_exist_is_left_out_of_the_front() -> None:
    odd = copy.deepcopy(evaluation(16, 0.4))
    odd["metrics"]["delta_ce"] = entry(0.0) | {"value": None}
    (group,) = compare({"odd": odd, "even": evaluation(32, 0.5)})["groups"]
    assert group["fronts"] == {"fvu": ["odd"], "delta_ce": ["even"]}
    with pytest.raises(UserError, match="no evaluation to compare"):
        compare({})


def test_the_page_is_whole_and_says_what_the_json_says(tmp_path: Path) -> None:
    """Twenty-four coders of two sites, one without an interval; names stay text."""
    evaluations = {
        f"{family}-k{k}-{site}": evaluation(k, 2 / k + 0.01 * i, site)
        for site in ("blocks.0", "blocks.1")
        for i, family in enumerate(("topk", "<b>&$x$"))
        for k in (8, 12, 16, 24, 32, 48)
    }
    evaluations["topk-k8-blocks.0"]["metrics"]["delta_ce"] = entry(0.25)
    curves = {name: (name.split("-k")[0], 0) for name in evaluations}
    found = compare(evaluations, curves)
    json.dumps(found, allow_nan=False)
    text = write_comparison(found, tmp_path / "compare.html").read_text()
    for name in evaluations:
        assert name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in text
    assert "<b>" not in text
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)", text)
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) == 4
    for svg in figures:
        ElementTree.fromstring(svg)
    best = [name for name in evaluations if name.startswith("topk")]
    assert text.count("on the front</span>") == 2 * len(best)
    assert text.count("behind topk") == 2 * (len(evaluations) - len(best))
    assert text.count("at equal L0</h3>") == 4
    assert "L0 = 16" in text
    assert "</code> to <code>" not in text


def test_the_page_names_what_a_transcoder_predicts(tmp_path: Path) -> None:
    found = compare({"t": evaluation(16, 0.4, site="in", target="out")})
    text = write_comparison(found, tmp_path / "compare.html").read_text()
    assert "<h2><code>in</code> to <code>out</code></h2>" in text
