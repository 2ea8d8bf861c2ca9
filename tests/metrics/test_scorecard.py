"""The scorecard of coders whose latents have known effects, from the index to the file."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sae.base.errors import UserError
from sae.base.sums import seal, unseal
from sae.coders import Coder, make_coder
from sae.features import FeatureIndex, build_index, select, verify_index
from sae.features.ablation_sample import MOST, _firings, _sequences, _usable, draw_firings
from sae.features.layout import SCORECARD
from sae.features.scorecard import COLUMNS, FROM_INDEX, MEASURED, read_scorecard, scored_view
from sae.features.scorecard_builder import ablate, build_scorecard
from sae.lm import LanguageModel
from sae.store import ActivationStore
from tests.metrics.conftest import END, HELD, NEXT, TRAIN, T, build_store

F, SILENT, WRITER, DEAD, RARE = 64, 3, 5, 9, 40


def known_coder(store: ActivationStore, lm: LanguageModel) -> Coder:
    """At the model's last site: latent 3 writes nothing, 9 never fires, 40 and on seldom."""
    coder = make_coder("relu", 32, F)
    mean_D = torch.from_numpy(store.stats(NEXT).mean_D).float()
    coder.initialise(mean_D, torch.Generator().manual_seed(0))
    with torch.no_grad():
        coder.b_enc_F -= 0.15 * float(store.stats(NEXT).mean_norm)
        coder.b_enc_F[RARE:] -= 0.35 * float(store.stats(NEXT).mean_norm)
        coder.W_dec_FD[SILENT] = 0
        coder.W_enc_FD[DEAD], coder.b_enc_F[DEAD] = 0, -1
    coder.metadata = {"hook_name": NEXT, "model_name": lm.name}
    return coder.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> ActivationStore:
    return build_store(tmp_path_factory.mktemp("last") / "a.zarr", lm, 45, (NEXT,))


@pytest.fixture(scope="module")
def known(last: ActivationStore, lm: LanguageModel) -> Coder:
    return known_coder(last, lm)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, known: Coder, last: ActivationStore, lm: LanguageModel
) -> Path:
    where = tmp_path_factory.mktemp("features") / "relu"
    return build_index(known, last, where, lm=lm, tokens=(TRAIN + HELD) * (T - 1))


@pytest.fixture
def index(folder: Path, tmp_path: Path) -> FeatureIndex:
    return FeatureIndex.open(shutil.copytree(folder, tmp_path / "relu"))


def made(index: FeatureIndex, *given: object, **options: object) -> pd.DataFrame:
    build_scorecard(index, *given, **options)  # pyright: ignore
    seal(index.folder, [SCORECARD])
    found = read_scorecard(index)
    assert found is not None
    return found


def test_every_feature_has_a_row_and_every_number_its_count(
    index: FeatureIndex, known: Coder, lm: LanguageModel
) -> None:
    found = made(index, known, lm, tokens=2000)
    assert list(found) == list(COLUMNS)
    assert found["id"].tolist() == list(range(F))
    for name in FROM_INDEX:
        expected = index.table.get(name, index.tokens_indexed)
        np.testing.assert_array_equal(found[name], expected)
    counted = {name: c.rests_on for name, c in COLUMNS.items() if c.rests_on}
    for name, count in counted.items():
        assert (found[count][found[name].notna()] > 0).all(), name
        assert found[name][found[count] == 0].isna().all(), name
    assert found.loc[DEAD, [*counted][1:]].isna().all()
    assert verify_index(index.folder) == []
    view = scored_view(FeatureIndex.open(index.folder))
    assert set(MEASURED) < set(view)


def test_a_latent_that_writes_nothing_has_no_effect(
    index: FeatureIndex, known: Coder, lm: LanguageModel
) -> None:
    row = made(index, known, lm, tokens=2000).loc[SILENT]
    assert row["ablation_tokens"] == MOST
    for name in ("ablation_kl", "ablation_delta_ce", "ablation_kl_error"):
        assert row[name] == pytest.approx(0, abs=1e-6)


def test_a_latent_that_writes_one_token_is_missed_where_that_token_comes(
    index: FeatureIndex, known: Coder, lm: LanguageModel
) -> None:
    """Its decoder raises one token's logit, or lowers it: the loss without it has that sign."""
    firings = draw_firings(index, 2000, frozenset({END}))
    own = np.flatnonzero(firings.features_N == WRITER)
    following = index.tokens_ST.reshape(-1)[firings.rows_N[own] + 1]
    token = int(following[0])
    unembed_VD, norm = lm.model.lm_head.weight, lm.model.transformer.ln_f.weight
    direction_D = norm * (unembed_VD[token] - unembed_VD.mean(0))
    for sign in (1, -1):
        coder = known_coder_like(known)
        coder.W_dec_FD[WRITER] = sign * 0.1 * direction_D
        kl_N, lost_N = ablate(index, coder, lm, firings, lambda *_: None)
        assert (sign * lost_N[own[following == token]] > 1e-3).all()
        assert kl_N[own].max() > 1e-3
        assert np.abs(lost_N[firings.features_N == SILENT]).max() < 1e-5


def test_other_seeds_are_looked_up(index: FeatureIndex, known: Coder, lm: LanguageModel) -> None:
    same, strange = known_coder_like(known), known_coder_like(known)
    order = torch.randperm(F, generator=torch.Generator().manual_seed(1))
    same.W_dec_FD.copy_(known.W_dec_FD[order])
    same.W_enc_FD.copy_(known.W_enc_FD[order])
    strange.W_enc_FD.neg_()
    with_rows = np.setdiff1d(np.arange(F), [SILENT, DEAD])  # a row of noughts matches nothing
    alone = made(index, known, lm, tokens=300)
    assert alone["seed_replicated"].isna().all()
    assert (alone["seed_coders"] == 0).all()
    found = made(index, known, lm, [same], tokens=300, names=["same"])
    assert (found["seed_replicated"][with_rows] == 1).all()
    assert found["seed_decoder_cosine"][with_rows].to_numpy() == pytest.approx(1)
    assert found["seed_replicated"][SILENT] == 0
    both = made(index, known, lm, [same, strange], tokens=300)
    assert (both["seed_replicated"] == 0).all()  # half of them are not most
    assert (both["seed_coders"] == 2).all()


def known_coder_like(known: Coder) -> Coder:
    other = make_coder("relu", 32, F)
    other.load_state_dict(known.state_dict())
    return other.requires_grad_(False)


def test_the_sample_is_fair_and_keeps_to_what_is_scored(index: FeatureIndex) -> None:
    special = frozenset({END})
    for budget in (40, 400, 10_000):
        firings = draw_firings(index, budget, special)
        assert len(firings.rows_N) <= budget
        counts = np.bincount(firings.features_N, minlength=F)
        assert counts.max() <= MOST
        if budget > F:
            assert counts[counts > 0].max() - np.sort(counts[counts > 0])[0] < MOST
        sequence, position = np.divmod(firings.rows_N, T)
        assert (sequence >= index.meta["splits"]["heldout"][0]).all()
        assert ((position > 0) & (position < T - 1)).all()
        tokens = index.tokens_ST.reshape(-1)
        assert not np.isin(tokens[[firings.rows_N, firings.rows_N + 1]], [END]).any()
        assert (np.diff(firings.rows_N) >= 0).all()
        for feature in range(F):
            assert (index.acts_at(feature, firings.rows_N[firings.features_N == feature]) > 0).all()
    again = draw_firings(index, 400, special)
    np.testing.assert_array_equal(again.rows_N, draw_firings(index, 400, special).rows_N)


def test_rare_features_choose_their_sequences(index: FeatureIndex) -> None:
    """Of four sequences, two are spread evenly; the others bring most of what these lack."""
    usable_ST = _usable(index, frozenset({END}))
    held = np.arange(*index.meta["splits"]["heldout"])
    chosen = _sequences(index, usable_ST, 4)
    even = held[[0, -1]]
    assert set(even) < set(chosen.tolist()) <= set(held.tolist())
    fires_SF = np.zeros((index.sequences, F), bool)
    for s in held:
        fires_SF[s, _firings(index, usable_ST, s, s + 1)[1]] = True
    missing_F = ~fires_SF[even].any(0)
    gain = {int(s): int(fires_SF[s, missing_F].sum()) for s in held if s not in even}
    best = sorted(gain.values())[-2:]
    assert sorted(gain[int(s)] for s in chosen if s not in even) == best
    assert best[0] > 0


def test_filters_ask_the_scorecard(index: FeatureIndex, known: Coder, lm: LanguageModel) -> None:
    with pytest.raises(UserError, match="sae scorecard"):
        select(index, "ablation_kl>0.01")
    found = made(index, known, lm, tokens=2000)
    expected = np.flatnonzero(found["ablation_kl"] > 0.01)
    assert 0 < len(expected) < F
    np.testing.assert_array_equal(select(index, "ablation_kl>0.01"), expected)
    assert not len(select(index, "seed_replicated=1"))


def test_damage_is_found_and_the_wrong_file_refused(
    index: FeatureIndex, known: Coder, lm: LanguageModel
) -> None:
    made(index, known, lm, tokens=300)
    path = index.folder / SCORECARD
    whole = path.read_bytes()
    spoilt = bytearray(whole)
    spoilt[len(spoilt) // 2] ^= 1
    path.write_bytes(spoilt)
    assert SCORECARD in verify_index(index.folder)[0]
    with pytest.raises(UserError, match="is damaged"):
        FeatureIndex.open(index.folder)
    unseal(index.folder, [SCORECARD])
    assert verify_index(index.folder) == []
    assert read_scorecard(FeatureIndex.open(index.folder)) is None
    path.write_bytes(whole)  # whole, but of another coder
    index.meta["coder_hash"] = "0" * 64
    with pytest.raises(UserError, match="of another coder"):
        read_scorecard(index)
    pd.DataFrame({"id": [1]}).to_parquet(path)
    with pytest.raises(UserError, match="lacks the column"):
        read_scorecard(index)


def test_what_does_not_belong_together_is_refused(
    index: FeatureIndex, known: Coder, lm: LanguageModel
) -> None:
    with pytest.raises(UserError, match="give the coder that it was built from"):
        build_scorecard(index, make_coder("relu", 32, 8), lm)
    other = LanguageModel(lm.model, lm.tokenizer, "other", "x" * 8)
    with pytest.raises(UserError, match="was made with the model"):
        build_scorecard(index, known, other)
    index.table = index.table.drop(columns="specificity")
    with pytest.raises(UserError, match="earlier version"):
        build_scorecard(index, known, lm, tokens=64)


def test_every_column_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    section = text.split("## Scorecard")[1].split("\n## ")[0]
    for name in COLUMNS:
        assert f"`{name}`" in section, name
