"""The ladder of controls: who is better, and when nobody can tell."""

from typing import Any

import numpy as np
import pytest
import torch

from sae.metrics.bootstrap import entries
from sae.metrics.controls import NAMES
from sae.metrics.ladder import ladder, lifts
from sae.metrics.reconstruction import add_data, add_errors
from sae.metrics.registry import REGISTRY, metrics_of
from sae.metrics.sample import Batch
from sae.metrics.sums import DocumentSums
from sae.metrics.wins import MEANINGS, wins


def scores(**values: float | None) -> dict[str, dict[str, float | int | None]]:
    return {name: {"value": value, "low": None, "high": None} for name, value in values.items()}


def test_lift_is_above_0_where_the_coder_is_better_whichever_way_a_metric_counts() -> None:
    own = scores(ev=0.9, delta_ce=0.2, kl=0.1, cosine=None)
    controls = {
        "a": scores(ev=0.5, delta_ce=0.5, kl=0.1, cosine=0.4),
        "b": scores(ev=0.7, delta_ce=0.1, kl=0.3),
        "c": scores(ev=None),
    }
    found = ladder(own, controls, {})
    assert set(found) == {"ev", "delta_ce", "kl"}
    assert found["ev"] == {
        "coder": 0.9,
        "best": "b",
        "best_value": 0.7,
        "lift": pytest.approx(0.2),
        "low": None,
        "high": None,
        "tokens": None,
        "units": None,
        "won_by": [],
        "undecided": [],
        "by_value": ["a", "b"],
    }
    assert (found["delta_ce"]["best"], found["delta_ce"]["won_by"]) == ("b", ["b"])
    assert found["delta_ce"]["lift"] == pytest.approx(-0.1)
    assert found["kl"]["won_by"] == ["a"]  # a draw is no win of the coder


def test_a_control_wins_by_its_paired_interval() -> None:
    own = scores(ev=0.5)
    controls = {name: scores(ev=value) for name, value in
                {"surely": 0.7, "perhaps": 0.6, "hardly": 0.45, "never": 0.1}.items()}  # fmt: skip
    paired: dict[str, dict[str, dict[str, float | int | None]]] = {
        "surely": {"ev": {"value": -0.2, "low": -0.3, "high": -0.1, "tokens": 7}},
        "perhaps": {"ev": {"value": -0.1, "low": -0.3, "high": 0.1, "tokens": 7}},
        "hardly": {"ev": {"value": 0.05, "low": -0.1, "high": 0.2, "tokens": 7}},
        "never": {"ev": {"value": 0.4, "low": 0.3, "high": 0.5, "tokens": 7}},
    }
    rung = ladder(own, controls, paired)["ev"]
    assert (rung["won_by"], rung["undecided"]) == (["surely"], ["perhaps", "hardly"])
    assert (rung["best"], rung["low"], rung["high"], rung["tokens"]) == ("surely", -0.3, -0.1, 7)
    assert rung["by_value"] == []


def test_a_coder_of_a_random_model_may_win_but_is_no_rung_to_stand_on() -> None:
    """Its variance is that of other activations: a difference to it is of two units."""
    own = scores(ev=0.5)
    found = ladder(own, {"random_model": scores(ev=0.8), "pca": scores(ev=0.3)}, {})["ev"]
    assert (found["best"], found["lift"]) == ("pca", pytest.approx(0.2))
    assert found["won_by"] == ["random_model"]
    assert "random_model" in found["by_value"]
    alone = ladder(own, {"random_model": scores(ev=0.8)}, {})["ev"]
    assert (alone["best"], alone["lift"], alone["won_by"]) == (None, None, ["random_model"])


def test_lifts_are_paired() -> None:
    """Documents differ far more than methods on them: only pairs see which is better."""
    rng = np.random.default_rng(0)
    hard = rng.gamma(1, 10, 60)
    data = {"count": np.ones(60), "ce_clean": np.ones(60), "ce_mean": np.full(60, 90.0),
            "ce_zero": np.full(60, 90.0), "kl_mean": np.full(60, 90.0),
            "kl_zero": np.full(60, 90.0)}  # fmt: skip
    coder = data | {"ce": 1 + hard, "kl": hard}
    control = data | {"ce": 1.1 + hard + rng.normal(0, 0.1, 60), "kl": hard}
    found = lifts(coder, control, "fidelity", seed=0)
    lift = found["delta_ce"]
    assert lift["value"] == pytest.approx((control["ce"] - coder["ce"]).mean())
    assert 0 < lift["low"] < lift["value"] < lift["high"] < 0.15
    apart = [entries(t, [REGISTRY["delta_ce"]], 0)["delta_ce"] for t in (coder, control)]
    assert apart[0]["high"] - apart[0]["low"] > 20 * (lift["high"] - lift["low"])
    assert found["kl"] == {"value": 0, "low": 0, "high": 0, "tokens": 60, "units": 60}
    of_kl = {"kl", "kl_recovered_mean", "kl_recovered_zero"}
    assert set(found) == {"delta_ce", "ce_recovered_mean", "ce_recovered_zero"} | of_kl


def test_what_is_compared_across_activations_does_not_depend_on_their_size() -> None:
    """A randomly initialised model has far smaller activations: its errors in their unit say
    nothing."""
    torch.manual_seed(0)
    x_BD, unit_B = torch.randn(60, 8), torch.arange(60) % 12
    x_hat_BD = x_BD + 0.3 * torch.randn(60, 8)

    def scored(size: float) -> dict[str, Any]:
        batch = Batch(size * x_BD, unit_B, torch.arange(60) > 4)
        sums, centre_D = DocumentSums(12), torch.zeros(8)
        add_data(sums, batch, centre_D)
        add_errors(sums, batch, size * x_hat_BD, centre_D)
        return entries(sums.arrays(), metrics_of("reconstruction"), 0)

    own = scored(1.0)
    found = ladder(own, {"random_model": scored(1e-2)}, {}, {"reconstruction": 12})
    assert {"ev", "fvu", "nmse", "cosine", "ev_legacy"} <= set(found)
    assert not {"mse", "mse_per_dimension"} & set(found)
    for name, entry in scored(1e-2).items():
        if name in found:
            assert entry["value"] == pytest.approx(own[name]["value"], rel=1e-5), name
    beside = ladder(own, {"random_model": scored(1e-2), "pca": scored(2.0)}, {})
    assert (beside["mse"]["won_by"], beside["mse"]["by_value"]) == ([], ["pca"])


def test_a_handful_of_units_decides_nothing() -> None:
    own = scores(ev=0.5, delta_ce=0.1)
    controls = {"pca": scores(ev=0.1, delta_ce=0.05), "random_model": scores(ev=0.9)}
    paired: dict[str, Any] = {
        "pca": {
            "ev": {"value": 0.4, "low": 0.3, "high": 0.5, "tokens": 7},
            "delta_ce": {"value": -0.05, "low": -0.06, "high": -0.04, "tokens": 7},
        }
    }
    few = ladder(own, controls, paired, {"reconstruction": 9, "fidelity": 10})
    assert few["ev"]["undecided"] == ["pca", "random_model"]
    assert few["ev"]["won_by"] == few["ev"]["by_value"] == []
    assert (few["ev"]["units"], few["delta_ce"]["units"]) == (9, 10)
    assert few["delta_ce"]["won_by"] == ["pca"]


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ({}, "undecided"),  # neither end is there
        ({"low": None, "high": None}, "undecided"),
        ({"low": None, "high": -0.1}, "won_by"),  # an end that is None is infinite
        ({"low": None, "high": 0.1}, "undecided"),
        ({"low": 0.1, "high": None}, None),
        ({"low": -0.1, "high": None}, "undecided"),
    ],
)
def test_without_an_end_of_the_interval_nothing_is_made_up(
    interval: dict[str, float | None], verdict: str | None
) -> None:
    pair: dict[str, Any] = {"pca": {"ev": {"value": -0.2, "tokens": 7, **interval}}}
    rung = ladder(scores(ev=0.5), {"pca": scores(ev=0.7)}, pair, {"reconstruction": 50})["ev"]
    for key in ("won_by", "undecided", "by_value"):
        assert rung[key] == (["pca"] if key == verdict else []), key


def test_every_control_has_a_sentence_for_its_wins() -> None:
    assert set(MEANINGS) == set(NAMES)
    rungs = {
        "ev": {"won_by": ["pca", "frozen_decoder"]},
        "kl": {"won_by": []},
        "delta_ce": {"won_by": ["frozen_decoder"]},
    }
    found = wins(rungs)
    assert list(found) == ["pca", "frozen_decoder"]
    assert found["frozen_decoder"]["metrics"] == ["ev", "delta_ce"]
    assert "decoder's directions" in found["frozen_decoder"]["meaning"]
