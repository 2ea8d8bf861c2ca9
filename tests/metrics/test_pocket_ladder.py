"""A coder that was trained for seconds on a model that learned something, against its controls."""

from typing import Any

import pytest

from pipelines import harvest, train
from pipelines.config import RunConfig
from sae.coders import load_coder
from sae.lm import load_lm
from sae.metrics import evaluate
from sae.store import ActivationStore

UNTRAINED = ("pca", "random_dictionary", "shuffled_decoder", "raw_neurons")
K = 16


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    config = RunConfig.model_validate(
        {
            "folder": tmp_path_factory.mktemp("pocket"),
            "corpus": {"train_tokens": 160_000, "heldout_tokens": 40_000},
            "harvest": {"sites": ["blocks.2.hook_resid_post"]},
            "train": {
                "tokens": 400_000,
                "batch": 512,
                "auxk_k": 32,
                "dead_after": 50_000,
                "coders": [{"name": "topk", "k": K, "width": 1024, "learning_rate": 2e-3}],
            },
        }
    )
    harvest.run(config)
    train.run(config, ["topk"])
    return evaluate(
        load_coder(config.coder_folder("topk")),
        ActivationStore.open(config.store),
        load_lm("pocket", device="cpu", dtype="float32"),
        quick=True,
        tokens=30_000,
        controls=UNTRAINED,
    )


def test_at_equal_l0_a_trained_coder_beats_what_learns_no_features(found: dict[str, Any]) -> None:
    """On explained variance and on the model's loss, by paired intervals."""
    assert found["metrics"]["l0"]["value"] == pytest.approx(K, abs=0.1)
    for control in UNTRAINED:
        assert found["controls"][control]["l0"]["value"] == pytest.approx(K, abs=0.1), control
    for metric in ("ev", "delta_ce"):
        rung = found["ladder"][metric]
        assert rung["won_by"] == rung["undecided"] == rung["by_value"] == [], metric
        assert 0 < rung["low"] < rung["lift"]


def test_its_controls_are_heard_all_over_the_held_out_text(found: dict[str, Any]) -> None:
    """With the quick budget on real documents."""
    said = found["provenance"]
    assert said["control_loss_tokens"] > 3000
    interval = said["interval"]
    assert interval["control_loss_units"] >= 10  # documents, or sequences where these are fewer
    details = found["error_budget_details"]
    assert details["tokens"] == 2048
    assert details["units"] >= 10
