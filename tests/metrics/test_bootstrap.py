"""Intervals: right width, right unit, right failure."""

import numpy as np
import pytest

from sae.metrics.bootstrap import MIN_UNITS, draws, entries
from sae.metrics.estimate import estimate_mean
from sae.metrics.registry import REGISTRY, Metric
from sae.metrics.sums import DocumentSums, Sums

MEAN = Metric("mean", "codes", "E v", "", "", "neither", lambda s: s["v"] / s["count"])


def test_interval_of_a_mean_is_that_of_theory() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, size=400)
    found = entries({"count": np.ones(400), "v": values}, [MEAN], seed=1)["mean"]
    half = 1.96 * values.std() / np.sqrt(400)
    assert found["value"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert found["tokens"] == 400


def test_documents_not_tokens_are_resampled() -> None:
    """Ten documents of equal tokens are ten observations, however many tokens they have."""
    means = np.arange(10.0)
    short = entries({"count": np.full(10, 1.0), "v": means}, [MEAN])["mean"]
    long = entries({"count": np.full(10, 1e5), "v": means * 1e5}, [MEAN])["mean"]
    assert (short["low"], short["high"]) == pytest.approx((long["low"], long["high"]))


def test_value_is_a_ratio_of_sums() -> None:
    found = entries({"count": np.array([1.0, 99.0]), "v": np.array([0.0, 99.0])}, [MEAN])["mean"]
    assert found["value"] == pytest.approx(0.99)  # not the mean of 0 and 1


def test_same_seed_same_interval_and_paired_draws() -> None:
    assert (draws(20, 7) == draws(20, 7)).all()
    assert (draws(20, 7) != draws(20, 8)).any()
    assert (draws(20, 7).sum(1) == 20).all()


def test_units_without_tokens_are_no_part_of_the_sample() -> None:
    table = {"count": np.ones(12), "v": np.arange(12.0)}
    padded = {k: np.concatenate([v, np.zeros(50)]) for k, v in table.items()}
    found = entries(padded, [MEAN])
    assert found == entries(table, [MEAN])
    assert found["mean"]["units"] == 12


@pytest.mark.parametrize("padding", [0, 50])
def test_a_handful_of_units_has_no_interval(padding: int) -> None:
    """Percentiles of few units cover far less than they say; empty units do not help."""
    few, enough = (
        entries({"count": np.r_[np.ones(n), np.zeros(padding)], "v": np.arange(n + padding) * 1.0},
                [MEAN])["mean"]
        for n in (MIN_UNITS - 1, MIN_UNITS)
    )  # fmt: skip
    assert few == {"value": 4.0, "low": None, "high": None, "tokens": 9, "units": 9}
    assert enough["units"] == MIN_UNITS
    assert enough["low"] is not None
    assert enough["high"] is not None
    assert enough["low"] < 4.5 < enough["high"]


def test_an_estimate_says_its_units_too() -> None:
    assert estimate_mean(np.arange(3.0), 30)["units"] == 3
    assert estimate_mean(np.arange(3.0), 30)["low"] is None
    assert estimate_mean(np.empty(0), 0)["units"] == 0


def test_an_empty_ratio_has_no_value() -> None:
    ratio = Metric("r", "codes", "", "", "", "neither", lambda s: s["v"] / s["zero"])
    table = {"count": np.ones(3), "v": np.ones(3), "zero": np.zeros(3)}
    assert entries(table, [ratio])["r"]["value"] is None


def test_alive_interval_holds_its_value() -> None:
    """A resample misses a third of the documents, and with them the latents only they fire."""
    fires = np.eye(40, 50, dtype=np.float32)  # latent i fires in document i alone
    found = entries({"count": np.ones(40), "fires": fires}, [REGISTRY["alive"]])["alive"]
    assert found["value"] == pytest.approx(0.8)
    assert found["low"] is not None
    assert found["high"] is not None
    assert found["low"] < 0.8 < found["high"] <= 1


def test_tokens_are_rounded_not_cut_off() -> None:
    """Geometry's counts are shares of a whole number, and a hair below it in floating point."""
    shares = np.full(49, 1e6 / 49 * (1 - 1e-15))
    assert int(shares.sum()) == 999_999
    found = entries({"count": shares, "v": shares}, [MEAN], resamples=2)["mean"]
    assert found["tokens"] == 1_000_000


def test_sums_merge_over_tokens_and_over_terms() -> None:
    import torch

    one, two = DocumentSums(3), DocumentSums(3)
    one.add(torch.tensor([0, 2, 2]), a=torch.tensor([1, 2, 3]))
    two.add(torch.tensor([1]), a=torch.tensor([5.0]), b=torch.ones(1, 2))
    both = one + two
    assert both.arrays()["a"].tolist() == [1, 5, 5]
    assert (one | two).arrays()["a"].tolist() == [0, 5, 0]
    weights = np.array([[1.0, 1, 1], [0, 0, 2]])
    assert Sums(both.arrays(), weights)["a"].tolist() == [11, 10]
    assert Sums(both.arrays(), weights)["b"].shape == (2, 2)


def test_what_some_resamples_make_infinite_has_no_such_end() -> None:
    """One unit of thirty holds all that the logarithm is of: a third of the resamples lack it."""
    log = Metric(
        "log", "codes", "log E v", "", "", "neither", lambda s: np.log(s["v"] / s["count"])
    )
    v = np.zeros(30)
    v[0] = 30 * np.e
    found = entries({"count": np.ones(30), "v": v}, [log])["log"]
    assert found["value"] == pytest.approx(1)
    assert found["low"] is None
    assert found["high"] is not None
    assert found["high"] > 1


def test_what_many_resamples_leave_undefined_has_no_interval() -> None:
    ratio = Metric("ratio", "codes", "v / w", "", "", "neither", lambda s: s["v"] / s["w"])
    only = np.zeros(30)
    only[0] = 2.0
    found = entries({"count": np.ones(30), "v": only, "w": only}, [ratio])["ratio"]
    assert (found["value"], found["low"], found["high"]) == (1.0, None, None)
