"""Controls are as strong as they claim to be."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.base.files import write_json
from sae.coders import Coder, make_coder
from sae.lm import LanguageModel
from sae.metrics import evaluate, write_report
from sae.metrics.controls import (
    NAMES,
    Cache,
    TrainData,
    controls_of,
    factorised,
    fit_pca,
    frozen_decoder,
    independent_components,
    left_out,
    matched_l0,
    random_dictionary,
    raw_neurons,
    shuffled_decoder,
    train_rows,
    trained,
)
from sae.metrics.controls.dictionaries import Basis
from sae.metrics.controls.random_model import activations, random_model, random_model_coder
from sae.metrics.controls.trained import at_best_rate
from sae.metrics.identity import decoder_identity
from sae.metrics.numbers import apart_numbers
from sae.metrics.sample import Batch, Sample, draw
from sae.metrics.scoring import score_random_model
from sae.store import ActivationStore
from sae.training import Settings
from tests.metrics.conftest import END, SITE


@pytest.fixture
def data(store: ActivationStore) -> TrainData:
    mean = torch.from_numpy(store.stats(SITE).mean_D).float()
    sample = draw(store, "train", 10**9, {END}, block_rows=96)
    return TrainData(sample, SITE, mean, torch.device("cpu"))


def test_pca_is_that_of_a_decomposition_of_the_train_rows(coder: Coder, data: TrainData) -> None:
    pca = fit_pca(coder, data, l0=5)
    x = torch.cat(list(data.batches())).double().numpy()
    centred = x - x.mean(0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    overlap = np.linalg.svd(rows[:5] @ pca.W_dec_FD.double().numpy().T, compute_uv=False)
    assert overlap == pytest.approx(np.ones(5), abs=1e-5)
    lost = (x - pca(torch.from_numpy(x).float()).double().numpy()) ** 2
    assert lost.sum() == pytest.approx((singular[5:] ** 2).sum(), rel=1e-5)  # Eckart-Young


def test_pca_speaks_as_a_coder(coder: Coder, data: TrainData) -> None:
    pca = fit_pca(coder, data, l0=5)
    x = data.some()
    codes = pca.encode(x)
    assert (codes.rows, codes.width) == (len(x), 5)
    assert codes.l0().float().mean() == 5
    assert torch.equal(pca.decode(codes), pca(x))
    assert len(fit_pca(coder, data, l0=1000).W_dec_FD) == coder.d_in  # never more than D


def test_random_dictionary_is_scaled_by_least_squares(coder: Coder, data: TrainData) -> None:
    control = random_dictionary(coder, data, l0=6, seed=1)
    assert (control.d_sae, control.d_in) == (coder.d_sae, coder.d_in)
    assert control.W_dec_FD.norm(dim=1) == pytest.approx(torch.ones(coder.d_sae), abs=1e-5)
    ratio = control.W_enc_FD / control.W_dec_FD
    assert ratio == pytest.approx(torch.full_like(ratio, float(ratio.mean())), rel=1e-4)
    x = data.some()
    assert control.encode(x).l0().max() <= 6
    base = control.b_dec_D

    def error(factor: float) -> float:
        return float((x - base - factor * (control(x) - base)).square().sum())

    assert error(1) < min(error(0.97), error(1.03))
    other = random_dictionary(coder, data, l0=6, seed=2)
    assert not torch.equal(other.W_dec_FD, control.W_dec_FD)


def test_controls_get_the_coders_own_l0(coder: Coder, data: TrainData) -> None:
    assert matched_l0(coder, data) == 6
    quick, whole = controls_of(coder, quick=True), controls_of(coder)
    assert len(quick) >= 6
    assert set(quick) < set(whole)
    assert {"dictionary_learning", "frozen_decoder", "random_model"} <= set(whole)


def test_raw_neurons_keep_the_largest_coordinates(coder: Coder, data: TrainData) -> None:
    control, x = raw_neurons(coder, data, l0=5), data.some()
    away = (x - data.mean_D).square().sort(dim=1).values
    lost = (x - control(x)).square().sum(1)
    assert lost == pytest.approx(away[:, :-5].sum(1), rel=1e-4)
    assert control.encode(x).l0().max() <= 5


def test_a_shuffled_decoder_has_the_coders_codes_and_rows(coder: Coder, data: TrainData) -> None:
    control, x = shuffled_decoder(coder, data, l0=6, seed=1), data.some()
    assert torch.equal(control.encode(x).dense(), coder.encode(x).dense())
    cosines = F.normalize(control.W_dec_FD, dim=1) @ coder.W_dec_FD.T
    assert cosines.abs().amax(1) == pytest.approx(torch.ones(coder.d_sae), abs=1e-5)
    assert sorted(cosines.abs().argmax(1).tolist()) == list(range(coder.d_sae))
    assert (cosines.abs().argmax(1) != torch.arange(coder.d_sae)).float().mean() > 0.9
    error = (x - control(x)).square().sum()
    assert error <= (x - control.b_dec_D).square().sum() * (1 + 1e-5)  # never worse than no codes


@pytest.mark.parametrize("architecture", ["matching_pursuit", "ista"])
def test_a_shuffled_decoder_does_not_shuffle_an_encoder_that_reads_it(
    architecture: str, data: TrainData
) -> None:
    """Matching pursuit over permuted rows is matching pursuit over the same rows."""
    coder = make_coder(architecture, 32, 128)
    coder.initialise(data.mean_D, torch.Generator().manual_seed(3))
    coder.requires_grad_(False).eval()
    control, x = shuffled_decoder(coder, data, l0=6, seed=1), data.some()
    assert torch.equal(control.encode(x).dense(), coder.encode(x).dense())
    variance = (x - x.mean(0)).square().sum()
    own, others = ((x - c(x)).square().sum() / variance for c in (coder, control))
    assert own < min(0.75, others - 0.15)  # of an untrained dictionary
    batch = Batch(x, torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x), dtype=torch.bool))
    assert decoder_identity(coder, batch).value < 0.9


def test_train_rows_are_rows_of_the_train_split(coder: Coder, data: TrainData) -> None:
    control = train_rows(coder, data, l0=6)
    rows = F.normalize(torch.cat(list(data.batches())) - data.mean_D, dim=1)
    nearest = (control.W_dec_FD @ rows.T).amax(1)
    assert nearest == pytest.approx(torch.ones(coder.d_sae), abs=1e-5)


def test_all_independent_components_are_a_change_of_basis(coder: Coder, data: TrainData) -> None:
    x = data.some()
    whole = independent_components(coder, data, l0=32)
    torch.testing.assert_close(whole(x), x, rtol=1e-3, atol=1e-3)
    few = independent_components(coder, data, l0=4)
    assert few.encode(x).l0().max() <= 4
    lost = (x - few(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert 0.2 < lost < 1


def test_independent_components_that_are_kept_get_the_best_amounts(
    coder: Coder, data: TrainData
) -> None:
    """They are not orthogonal: what each would write beside all others is not its best alone."""
    x, few = data.some(64), independent_components(coder, data, l0=4)
    codes = few.encode(x)
    for row, chosen in enumerate(codes.indices_BK):
        wanted = (x[row] - few.b_dec_D).double()[:, None]
        directions = few.W_dec_FD[chosen].double().T
        best = torch.linalg.lstsq(directions, wanted).solution[:, 0]
        torch.testing.assert_close(codes.acts_BK[row].double(), best, rtol=1e-3, atol=1e-5)
    kept = Basis(few.b_dec_D, few.W_read_FD, few.W_dec_FD, 4)
    assert torch.equal(kept.encode(x).indices_BK, codes.indices_BK)
    assert (x - few(x)).square().sum() < 0.999 * (x - kept(x)).square().sum()


def test_dictionary_learning_chooses_its_penalty_at_the_coders_own_l0(
    coder: Coder, data: TrainData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials and the dictionary of a penalty are learned once for all L0s."""
    learned: list[tuple[float, int]] = []
    honest = factorised._learn

    def watched(rows: Any, model: Any, steps: int, tell: Any) -> torch.Tensor:
        learned.append((model.alpha, steps))
        return honest(rows, model, 1, tell) * 0 + model.alpha

    def left(atoms: torch.Tensor, rows: torch.Tensor, l0: int) -> float:
        return abs(float(atoms[0, 0]) - {4: 0.5, 5: 0.5, 16: 2.0}[l0])

    monkeypatch.setattr(factorised, "_learn", watched)
    monkeypatch.setattr(factorised, "_left", left)
    data = replace(data, cache=Cache(tmp_path))
    found = [factorised.dictionary_learning(coder, data, l0=l0) for l0 in (4, 5, 16)]
    assert [float(control.W_dec_FD[0, 0]) for control in found] == [0.5, 0.5, 2.0]
    trials, steps = factorised.TRIAL_STEPS, factorised.MOST_STEPS
    assert sorted(learned) == sorted(
        [*((alpha, trials) for alpha in factorised.ALPHAS), (0.5, steps), (2.0, steps)]
    )


def test_dictionary_learning_learns_and_is_kept(
    coder: Coder, data: TrainData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, x = replace(data, cache=Cache(tmp_path)), data.some()
    first = factorised.dictionary_learning(coder, data, l0=4)
    monkeypatch.setattr(factorised, "_learn", lambda *_: pytest.fail("it was learned again"))
    again = factorised.dictionary_learning(coder, data, l0=4)
    assert torch.equal(first.W_dec_FD, again.W_dec_FD)
    assert first.encode(x).l0().max() <= 4
    assert factorised.dictionary_learning(coder, data, l0=7).encode(x).l0().max() == 7
    random = factorised.Pursued(data.mean_D, torch.randn(128, 32), 4)

    def lost(control: factorised.Pursued) -> float:
        return float((x - control(x)).square().sum())

    assert lost(first) < 0.9 * lost(random)
    with pytest.raises(pytest.fail.Exception):  # another seed is another control
        factorised.dictionary_learning(coder, data, l0=4, seed=1)


def test_a_frozen_decoder_learns_all_but_its_decoder(
    coder: Coder, data: TrainData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder.metadata["loupe"] = {"settings": {"steps": 300, "batch": 128, "not_ours": 1}}
    data, x = replace(data, cache=Cache(tmp_path)), data.some()
    control = frozen_decoder(coder, data, l0=6, seed=3)
    fresh = make_coder("topk", 32, 128, k=6)
    fresh.initialise(data.mean_D, torch.Generator().manual_seed(3))
    assert torch.equal(control.W_dec_FD, fresh.W_dec_FD)
    coder.metadata["loupe"]["settings"]["steps"] = 2
    early = frozen_decoder(coder, data, l0=6, seed=3)
    assert (x - control(x)).square().sum() < 0.7 * (x - early(x)).square().sum()
    coder.metadata["loupe"]["settings"]["steps"] = 300
    monkeypatch.setattr(trained, "train_topk", lambda *_, **__: pytest.fail("trained again"))
    again = frozen_decoder(coder, data, l0=6, seed=3)
    assert torch.equal(again(x), control(x))


def test_a_frozen_decoder_reads_the_store_in_the_coders_own_order(
    coder: Coder, data: TrainData, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = []
    honest = trained.ShuffledReader

    def watched(*args: Any, **order: int) -> Any:
        orders.append(order)
        return honest(*args, **order)

    monkeypatch.setattr(trained, "ShuffledReader", watched)
    for order in ({"seed": 5, "window": 2}, {"seed": 6, "window": 2}, None):
        coder.metadata["loupe"] = {"settings": {"steps": 3, "batch": 128}}
        coder.metadata["loupe"] |= {"order": order} if order else {}
        frozen_decoder(coder, data, l0=6)
    assert orders == [{"seed": 5, "window": 2}, {"seed": 6, "window": 2}, {"seed": 0, "window": 64}]


def test_a_random_model_has_the_shape_and_nothing_else(
    lm: LanguageModel, store: ActivationStore, data: TrainData
) -> None:
    untrained, same, other = random_model(lm, 0), random_model(lm, 0), random_model(lm, 1)
    weights = [m.model.transformer.h[0].mlp.c_fc.weight for m in (untrained, same, other, lm)]
    assert torch.equal(weights[0], weights[1])
    assert not any(torch.equal(weights[0], w) for w in weights[2:])
    assert len({m.hash for m in (untrained, other, lm)}) == 3
    few = data.sample.some(20)
    of_store = torch.cat([b.x_BD for b in few.batches(SITE)])
    live = torch.cat([b.x_BD for b in activations(lm, few, SITE)])
    torch.testing.assert_close(live, of_store, rtol=2e-3, atol=2e-3)  # what its own store holds


def test_the_coder_of_a_random_model_is_scored_about_the_mean_of_its_own_train_activations(
    trained_coder: Coder, lm: LanguageModel, data: TrainData, tmp_path: Path
) -> None:
    """Not about that of the held-out ones, which no coder is told."""
    data = replace(data, cache=Cache(tmp_path))
    held = draw(data.sample.store, "heldout", 300, {END})
    scored = score_random_model(trained_coder, lm, data, held, 8, 0, lambda *_: None)
    found = apart_numbers(scored, "random_model", 0)["ev_legacy"]["value"]
    untrained = random_model(lm, 0)

    def rows(sample: Sample) -> torch.Tensor:
        return torch.cat([b.x_BD[b.scored_B] for b in activations(untrained, sample, SITE)])

    control, mean = random_model_coder(trained_coder, data, untrained, 8, 0)
    torch.testing.assert_close(mean, rows(data.sample).mean(0), rtol=1e-4, atol=1e-6)
    x = rows(held)

    def legacy(centre: torch.Tensor) -> float:
        return 1 - float(((x - control(x)).square().sum(1) / (x - centre).square().sum(1)).mean())

    assert found == pytest.approx(legacy(mean), rel=1e-4)
    assert found != pytest.approx(legacy(x.mean(0)), rel=1e-3)


def test_every_control_through_the_whole_evaluation(
    trained_coder: Coder, everywhere: ActivationStore, lm: LanguageModel, tmp_path: Path
) -> None:
    asked = [name for name in NAMES if not name.startswith("linear_map")]
    steps: list[tuple[Any, ...]] = []
    found = evaluate(
        trained_coder,
        everywhere,
        lm,
        loss_tokens=400,
        controls=asked,
        cache=Cache(tmp_path),
        progress=lambda *step: steps.append(step),
    )
    assert list(found["controls"]) == asked
    assert controls_of(trained_coder) == tuple(asked)
    assert {"control frozen_decoder", "control random_model"} <= {what for what, _, _ in steps}
    apart = found["controls"]["random_model"]
    assert "delta_ce" not in apart
    assert apart["l0"]["value"] <= 8
    assert all(entry["tokens"] > 0 for entry in apart.values())
    assert all(rung["best"] != "random_model" for rung in found["ladder"].values())
    assert found["ladder"]["ev"]["by_value"] == ["random_model"]
    assert found["ladder"]["mse"]["by_value"] == []  # another model's unit
    assert apart["mse"]["value"] > 0
    assert apart["ev"]["tokens"] == found["controls"]["pca"]["ev"]["tokens"]
    ev = {name: scores["ev"]["value"] for name, scores in found["controls"].items()}
    own = found["ladder"]["ev"]["coder"]
    for weak in ("random_dictionary", "shuffled_decoder", "train_rows"):
        assert ev[weak] < own
    write_json(tmp_path / "evaluation.json", found)
    text = write_report("a", found, tmp_path / "a.html").read_text()
    assert "coder of a random model" in text
    assert "It has no losses: " in text


@pytest.fixture
def trained_coder(request: pytest.FixtureRequest) -> Coder:
    return request.getfixturevalue("trained")


def test_independent_components_are_not_looked_for_in_wide_sites() -> None:
    narrow, wide = (make_coder("topk", d, 32, k=4) for d in (1024, 1025))
    assert "independent_components" in controls_of(narrow, quick=True)
    chosen = controls_of(wide)
    assert "independent_components" not in chosen
    assert "1,024 dimensions" in left_out(wide, chosen)["independent_components"]


def test_a_trained_control_takes_the_best_of_three_rates(data: TrainData) -> None:
    tried: list[tuple[int, float | None]] = []
    told: list[tuple[int, int]] = []

    def make(settings: Settings, data: TrainData) -> Any:
        tried.append((settings.steps, settings.learning_rate))
        data.tell(settings.steps, settings.steps)
        return lambda x: x if settings.learning_rate == 2e-3 else 0.5 * x

    data = replace(data, tell=lambda done, total: told.append((done, total)))
    settings = Settings(steps=800, batch=8, learning_rate=1e-3)
    at_best_rate(make, settings, data, 128, data.some)
    assert tried == [(100, 5e-4), (100, 1e-3), (100, 2e-3), (800, 2e-3)]
    assert told == [(100, 1100), (200, 1100), (300, 1100), (1100, 1100)]
    tried.clear()
    at_best_rate(make, replace(settings, steps=300), data, 128, data.some)
    assert tried == [(300, 1e-3)]  # too short to be tried out


def test_a_trained_control_that_diverged_is_none(data: TrainData) -> None:
    """A straw man would make any coder look good."""
    tried: list[tuple[int, float | None]] = []
    settings = Settings(steps=800, batch=8, learning_rate=1e-3)

    def make(settings: Settings, data: TrainData, diverges: Any) -> Any:
        tried.append((settings.steps, settings.learning_rate))
        return lambda x: x * (math.nan if diverges(settings) else 0.5)

    slow = partial(make, diverges=lambda s: s.steps == 100 and s.learning_rate == 5e-4)
    at_best_rate(slow, settings, data, 128, data.some)
    assert tried[-1] == (800, 1e-3)  # no trial is better than one that gave NaN, but any finite one
    whole = partial(make, diverges=lambda s: s.steps == 800 and s.learning_rate < 2e-3)
    at_best_rate(whole, settings, data, 128, data.some)
    assert tried[-3:] == [(800, 5e-4), (800, 1e-3), (800, 2e-3)]
    with pytest.raises(UserError, match="diverged at every learning rate"):
        at_best_rate(partial(make, diverges=lambda _: True), settings, data, 128, data.some)
