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
    assert len(batches) == HELD // 5
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
