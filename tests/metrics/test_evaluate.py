"""The evaluation JSON: its contract, its honesty, and what it refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae.base.errors import UserError
from sae.base.files import write_json
from sae.coders import Coder, coder_hash, make_coder, save_coder
from sae.lm import LanguageModel
from sae.metrics import REGISTRY, evaluate, formulas, scoring
from sae.metrics.bootstrap import MIN_UNITS
from sae.metrics.error_budget import Rows
from sae.metrics.registry import markdown_table
from sae.metrics.table import core_table
from sae.store import ActivationStore
from tests.metrics.conftest import END, HELD, MLP, SITE, TRAIN, T

NAMES = {
    "ev",
    "fvu",
    "l0",
    "alive",
    "gamma",
    "delta_ce",
    "kl",
    "ce_recovered_mean",
    "ce_recovered_zero",
}


@pytest.fixture(scope="session")
def found(store: ActivationStore, lm: LanguageModel) -> dict[str, Any]:
    coder = make_coder("topk", 32, 128, k=6)
    mean = torch.from_numpy(store.stats(SITE).mean_D).float()
    coder.initialise(mean, torch.Generator().manual_seed(3))
    coder.metadata = {"hook_name": SITE}
    return evaluate(
        coder.eval(), store, lm, quick=True, tokens=10**6, loss_tokens=900, control_tokens=500
    )


def test_the_contract(found: dict[str, Any], store: ActivationStore, tmp_path: Path) -> None:
    assert found["schema"] == 1
    assert set(found["metrics"]) >= NAMES
    assert set(found["metrics"]) <= set(REGISTRY)
    assert set(found["controls"]) == {
        "pca",
        "random_dictionary",
        "train_rows",
        "shuffled_decoder",
        "raw_neurons",
        "independent_components",
    }
    assert set(found["controls_left_out"]) == {
        "dictionary_learning",
        "frozen_decoder",
        "random_model",
        "nmf",
    }
    numbers = {"ev", "fvu", "l0", "delta_ce", "ce_recovered_mean", "fvu_ratio", "delta_ce_lift"}
    for values in found["controls"].values():
        assert set(values) >= numbers
    for entry in [e for v in (found["metrics"], *found["controls"].values()) for e in v.values()]:
        assert set(entry) == {"value", "low", "high", "tokens", "units"}
        assert isinstance(entry["tokens"], int)
        assert entry["tokens"] > 0
        assert entry["units"] >= MIN_UNITS
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert found["formulas"] == formulas()
    write_json(tmp_path / "e.json", found)  # strict: refuses NaN and anything that is not JSON
    assert json.loads((tmp_path / "e.json").read_text()) == found


def test_a_row_for_the_tables_of_others(found: dict[str, Any]) -> None:
    text = core_table({"a": found, "b": found}, "run")
    first, second = csv.DictReader(text.splitlines())
    assert (first["unique_id"], second["sae_id"]) == ("run-a", "b")
    ev = float(first["metrics.reconstruction_quality.explained_variance"])
    assert ev == found["metrics"]["ev"]["value"]
    assert int(first["metrics.token_stats.total_tokens_eval_reconstruction"]) > 0


def test_provenance(found: dict[str, Any], store: ActivationStore, lm: LanguageModel) -> None:
    said = found["provenance"]
    tokens = store.tokens(TRAIN, TRAIN + HELD)
    assert said["tokens"] == ((tokens != END) & (np.arange(T) > 0)).sum()
    assert said["model"] == {"name": lm.name, "hash": lm.hash}
    assert said["store"]["corpus"] == {"description": "random tokens", "hash": "c"}
    assert said["coder"]["site"] == SITE
    assert said["special"] == [END]
    interval, metrics = said["interval"], found["metrics"]
    assert interval["over"] == interval["sparsity_over"] == "documents"
    beside = found["coder_beside_controls"]
    for prefix, entry in (
        ("", metrics["ev"]),
        ("sparsity_", metrics["alive"]),
        ("loss_", metrics["delta_ce"]),
        ("control_", beside["ev"]),
        ("control_loss_", beside["delta_ce"]),
    ):
        assert interval[f"{prefix}units"] == entry["units"]
    assert set(said) >= {"seed", "versions", "created", "seconds", "command", "device"}


def test_the_numbers_agree_with_each_other(found: dict[str, Any]) -> None:
    value = {name: entry["value"] for name, entry in found["metrics"].items()}
    assert value["ev"] == pytest.approx(1 - value["fvu"])
    assert value["delta_ce"] == pytest.approx(value["ce_spliced"] - value["ce_clean"])
    assert value["l0"] <= 6
    curve = found["curves"]["alive"]
    assert curve["alive"][-1] == value["alive"]
    assert curve["tokens"][-1] == found["metrics"]["alive"]["tokens"]
    pca, random = found["controls"]["pca"], found["controls"]["random_dictionary"]
    assert pca["ev"]["tokens"] <= found["metrics"]["ev"]["tokens"]
    assert pca["ev"]["value"] > random["ev"]["value"]
    assert random["ev"]["value"] > value["ev"]  # the coder was never trained nor scaled
    assert random["fvu_ratio"]["value"] > 1
    rung = found["ladder"]["ev"]
    assert rung["best_value"] == found["controls"][rung["best"]]["ev"]["value"]
    assert rung["lift"] == pytest.approx(rung["coder"] - rung["best_value"])
    assert {"pca", "random_dictionary"} <= set(rung["won_by"])
    for name, rung in found["ladder"].items():
        assert rung["low"] <= rung["lift"] <= rung["high"]
        assert rung["tokens"] == found["controls"]["pca"][name]["tokens"]
        assert rung["by_value"] == []
    heard = found["controls"]["pca"]["delta_ce"]["value"]
    lift = found["controls"]["pca"]["delta_ce_lift"]["value"]
    assert lift == pytest.approx(heard - found["ladder"]["delta_ce"]["coder"])
    assert sum(found["error_budget"].values()) == pytest.approx(1)
    assert set(found["error_budget_details"]["lower_bounds"]) < set(found["error_budget"])
    details = found["error_budget_details"]
    assert details["fvu"]["encoder"]["value"] > details["fvu"]["pursued"]["value"]
    for rows in found["breakdown"].values():
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        mean = sum(row["share"] * row["delta_ce"]["value"] for row in rows)
        assert mean == pytest.approx(value["delta_ce"])
        assert all(row["ce_recovered_mean"]["value"] is not None for row in rows)
    assert random["fvu_ratio"]["low"] <= random["fvu_ratio"]["value"]


def test_the_coders_ev_is_that_of_a_direct_computation(
    found: dict[str, Any], coder: Coder, store: ActivationStore
) -> None:
    rows = store.read(SITE, TRAIN * T, (TRAIN + HELD) * T).astype(np.float64)
    tokens = store.tokens(TRAIN, TRAIN + HELD)
    x = rows[((tokens != END) & (np.arange(T) > 0)).reshape(-1)]
    x_hat = coder(torch.from_numpy(x).float()).double().numpy()
    expected = 1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert found["metrics"]["ev"]["value"] == pytest.approx(expected, abs=1e-5)


def test_controls_are_scored_all_over_the_split(
    coder: Coder, store: ActivationStore, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On sequences from its start to its end: not on whatever the first batches hold."""
    heard: list[tuple[set[str], np.ndarray]] = []
    honest = scoring.fidelity.language_model_sums

    def watched(*args: Any, **options: Any) -> Any:
        heard.append((set(args[2]), args[4].numbers - TRAIN))
        return honest(*args, **options)

    monkeypatch.setattr(scoring.fidelity, "language_model_sums", watched)
    found = evaluate(
        coder, store, lm, quick=True, loss_tokens=10**6, control_tokens=200, control_loss_tokens=200
    )
    [shared] = [numbers for names, numbers in heard if "pca" in names]
    assert len(shared) == 7
    assert (shared[0], shared[-1]) == (0, HELD - 1)
    assert np.ptp(np.diff(shared)) <= 1
    said, pca = found["provenance"], found["controls"]["pca"]
    assert 150 <= said["control_tokens"] == pca["ev"]["tokens"] <= 250
    assert pca["delta_ce"]["tokens"] <= 7 * T
    assert found["metrics"]["kl_error_ratio"]["tokens"] == pca["delta_ce"]["tokens"]
    assert said["interval"]["over"] == "documents"
    assert said["interval"]["control_loss_units"] >= 7  # sequences, or the documents in them


def test_the_error_budget_is_of_tokens_all_over_both_splits(
    coder: Coder, store: ActivationStore, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    honest = Rows.of
    monkeypatch.setattr(
        Rows, "of", lambda sample, *rest: drawn.append(sample) or honest(sample, *rest)
    )
    found = evaluate(coder, store, lm, quick=True, loss_tokens=200, controls=())
    held, train = drawn
    for sample, sequences in ((held, HELD), (train, TRAIN)):
        assert (sample.scored_ST.any(1)).sum() == sequences
    details = found["error_budget_details"]
    assert (details["tokens"], details["over"]) == (held.tokens, "documents")
    assert details["units"] > 20
    assert details["silent"]["tokens"] == found["metrics"]["alive"]["tokens"]
    silent = 1 - found["metrics"]["alive"]["value"]
    assert details["silent"]["latents"] == pytest.approx(silent * coder.d_sae)


def test_what_was_resampled_holds_tokens(
    coder: Coder, store: ActivationStore, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fewer groups for who fires; without documents of which no prediction counts."""
    monkeypatch.setattr("sae.metrics.sparsity.TABLE_ENTRIES", 1)
    monkeypatch.setattr("sae.metrics.sparsity.LEAST_GROUPS", 12)
    found = evaluate(coder, store, lm, quick=True, tokens=10**6, loss_tokens=300, controls=())
    interval, metrics = found["provenance"]["interval"], found["metrics"]
    assert (interval["sparsity_over"], interval["sparsity_units"]) == ("groups of documents", 12)
    assert metrics["alive"]["units"] == metrics["dense_1pct"]["units"] == 12
    assert interval["units"] == metrics["ev"]["units"] > 12
    assert interval["loss_units"] == metrics["delta_ce"]["units"]


def test_same_seed_same_numbers(coder: Coder, store: ActivationStore, lm: LanguageModel) -> None:
    def run(seed: int) -> dict[str, Any]:
        found = evaluate(coder, store, lm, quick=True, tokens=500, loss_tokens=200, seed=seed)
        return {k: found[k] for k in ("metrics", "controls", "curves", "histograms")}

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_progress_ends_at_its_total(
    coder: Coder, store: ActivationStore, lm: LanguageModel
) -> None:
    calls: list[tuple[str, int, int]] = []
    tell = lambda *a: calls.append(a)  # noqa: E731
    evaluate(coder, store, lm, quick=True, tokens=800, loss_tokens=300, progress=tell)
    for what in ("controls", "activations", "losses", "error budget"):
        done = [(d, total) for name, d, total in calls if name == what]
        assert done[-1][0] == done[-1][1] > 0
        assert done == sorted(done)


def test_the_hash_is_that_of_the_saved_folder(
    coder: Coder, store: ActivationStore, lm: LanguageModel, tmp_path: Path
) -> None:
    folder = save_coder(coder, tmp_path / "coder")
    found = evaluate(coder, store, lm, tokens=300, loss_tokens=100, controls=())
    assert found["provenance"]["coder"]["hash"] == coder_hash(folder)
    assert found["controls"] == {}


def test_other_sites_work_too(store: ActivationStore, lm: LanguageModel, coder: Coder) -> None:
    coder.metadata["hook_name"] = MLP
    found = evaluate(coder, store, lm, tokens=500, loss_tokens=200, controls=("pca",))
    assert found["provenance"]["coder"]["site"] == MLP
    assert found["metrics"]["delta_ce"]["value"] != 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda coder, lm: coder.metadata.pop("hook_name"), "hook_name"),
        (lambda coder, lm: coder.metadata.update(hook_name="blocks.1.hook_resid_post"), "harvest"),
        (lambda coder, lm: setattr(coder, "d_in", 64), "different models"),
        (lambda coder, lm: setattr(lm, "hash", "other"), "another model"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    coder: Coder, store: ActivationStore, lm: LanguageModel, change: Any, message: str
) -> None:
    kept = lm.hash
    change(coder, lm)
    try:
        with pytest.raises(UserError, match=message):
            evaluate(coder, store, lm, tokens=100, loss_tokens=100)
    finally:
        lm.hash = kept


def test_an_unknown_control_is_refused(
    coder: Coder, store: ActivationStore, lm: LanguageModel
) -> None:
    with pytest.raises(UserError, match="Did you mean `pca`"):
        evaluate(coder, store, lm, tokens=100, loss_tokens=100, controls=("pcs",))


def test_every_metric_says_what_it_is() -> None:
    for metric in REGISTRY.values():
        assert metric.formula
        assert metric.unit
        assert not metric.formula.endswith(".")


def test_the_documentation_has_the_table_of_the_registry() -> None:
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert markdown_table() in page.read_text(), "paste sae.metrics.registry.markdown_table()"
