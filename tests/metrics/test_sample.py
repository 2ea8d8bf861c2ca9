"""Which tokens count."""

from pathlib import Path

import numpy as np
import pytest

from sae.base.errors import UserError
from sae.lm import LanguageModel
from sae.metrics.sample import draw
from sae.store import ActivationStore
from tests.metrics.conftest import END, HELD, SITE, TRAIN, T, build_store


def test_position_0_and_special_tokens_are_not_scored(store: ActivationStore) -> None:
    sample = draw(store, "heldout", 10**9, {END})
    tokens = store.tokens(TRAIN, TRAIN + HELD)
    assert (sample.tokens_ST == tokens).all()
    assert (tokens[:, 1:] == END).any()  # documents do begin inside rows
    assert (sample.scored_ST == ((tokens != END) & (np.arange(T) > 0))).all()
    assert sample.over == "documents"
    rows = np.arange(TRAIN * T, (TRAIN + HELD) * T)
    documents = store.documents.of_rows(rows)
    same = sample.unit_ST.reshape(-1)
    assert (np.diff(documents) != 0).tolist() == (np.diff(same) != 0).tolist()


def test_batches_are_the_stored_rows_scored_ones_and_position_0(store: ActivationStore) -> None:
    sample = draw(store, "heldout", 10**9, {END}, block_rows=5 * T)
    batches = list(sample.batches(SITE))
    assert sum(len(b.x_BD) for b in batches) == (sample.scored_ST.sum() + HELD)
    scored = np.concatenate([b.x_BD[b.scored_B].numpy() for b in batches])
    first = np.concatenate([b.x_BD[~b.scored_B].numpy() for b in batches])
    stored = store.read(SITE, TRAIN * T, (TRAIN + HELD) * T).reshape(HELD, T, -1)
    assert (scored == stored[sample.scored_ST]).all()
    assert (first == stored[:, 0]).all()


def test_a_budget_is_met_and_spread_over_the_split(store: ActivationStore) -> None:
    sample = draw(store, "heldout", 400, {END}, block_rows=2 * T)
    assert 400 <= sample.tokens <= 400 + 3 * T
    assert sample.runs[0].start == TRAIN
    assert sample.runs[-1].stop >= TRAIN + HELD - 2
    assert len({i for run in sample.runs for i in run}) == len(sample.tokens_ST)
    few = sample.some(4)
    assert len(few.tokens_ST) == sum(map(len, few.runs)) == 4
    for run, where in few:
        assert (few.tokens_ST[where] == store.tokens(run.start, run.stop)).all()


@pytest.mark.parametrize("sequences", [1, 2, 3, 7, 13, 39, HELD, 1000])
def test_a_part_is_spread_over_its_sample(store: ActivationStore, sequences: int) -> None:
    sample = draw(store, "heldout", 10**9, {END}, block_rows=8 * T)
    part = sample.some(sequences)
    numbers = part.numbers
    assert len(numbers) == min(sequences, HELD)
    gaps = np.diff(numbers)
    assert (gaps > 0).all()
    if 1 < sequences < HELD:
        assert (numbers[0], numbers[-1]) == (TRAIN, TRAIN + HELD - 1)
        assert gaps.max() - gaps.min() <= 1
    assert (part.scored_ST == sample.scored_ST[numbers - TRAIN]).all()
    x = np.concatenate([b.x_BD.numpy() for b in part.batches(SITE)])
    stored = store.read(SITE, TRAIN * T, (TRAIN + HELD) * T).reshape(HELD, T, -1)
    wanted = sample.scored_ST | (np.arange(T) == 0)
    assert (x == stored[numbers - TRAIN][wanted[numbers - TRAIN]]).all()


def test_a_part_of_few_documents_resamples_its_sequences(tmp_path: Path, lm: LanguageModel) -> None:
    """Forty sequences of twenty documents: the whole has documents enough, six of them not."""
    store = build_store(tmp_path / "a.zarr", lm, document_length=2 * T)
    sample = draw(store, "heldout", 10**9, {END})
    assert sample.over == "documents"
    part = sample.some(6)
    assert (part.over, part.units) == ("sequences", 6)
    assert sample.some(30).over == "documents"


def test_more_units_than_a_table_holds_are_resampled_in_groups(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.metrics.sample.MAX_UNITS", 7)
    sample = draw(store, "heldout", 10**9, {END})
    assert (sample.over, sample.units) == ("groups of documents", 7)
    assert set(sample.unit_ST.reshape(-1).tolist()) == set(range(7))


def test_few_documents_fall_back_to_sequences(tmp_path: Path, lm: LanguageModel) -> None:
    store = build_store(tmp_path / "long.zarr", lm, document_length=10_000)
    sample = draw(store, "heldout", 10**9, {END})
    assert (sample.over, sample.units) == ("sequences", HELD)
    assert (sample.unit_ST == np.arange(HELD)[:, None]).all()


def test_nothing_to_score_is_refused(store: ActivationStore, lm: LanguageModel) -> None:
    with pytest.raises(UserError, match="no token to score"):
        draw(store, "heldout", 100, set(range(lm.vocab_size)))
    with pytest.raises(UserError, match="heldout"):
        draw(store, "held-out", 100, {END})


def test_a_thinned_sample_has_few_tokens_of_all_its_sequences(store: ActivationStore) -> None:
    sample = draw(store, "heldout", 10**9, {END}, block_rows=T)
    thin = sample.thinned(200, seed=1)
    assert (thin.tokens, thin.runs) == (200, sample.runs)
    assert not (thin.scored_ST & ~sample.scored_ST).any()
    assert (thin.scored_ST.sum(1) > 0).mean() > 0.9
    scored = [b.x_BD[b.scored_B] for b in thin.batches(SITE)]
    assert sum(map(len, scored)) == 200
    assert (sample.thinned(200, seed=2).scored_ST != thin.scored_ST).any()
    assert sample.thinned(10**6, seed=1).tokens == sample.tokens
