import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from synthetic import CONTEXT, TOKENS, TRAIN, make_documents, make_tokens, token

from sae.base.errors import UserError
from sae.features import FeatureIndex
from sae.features.windows import gather_windows


def test_reading_an_index_never_imports_torch(index_folder: Path) -> None:
    code = (
        "import sys, sae.features as f\n"
        f"index = f.FeatureIndex.open({str(index_folder)!r})\n"
        "index.examples(0); index.examples(0, 'near-miss'); index.enrichment(0)\n"
        "index.neighbours(0, 'coactivation'); index.view(); f.select(index, 'density>0')\n"
        "f.verify_index(index.folder); import sae.io.hdf5\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_firings_are_the_nonzero_activations(index: FeatureIndex, dense_acts: np.ndarray) -> None:
    assert index.width == dense_acts.shape[1]
    for feature in range(index.width):
        rows, acts = index.firings(feature)
        np.testing.assert_array_equal(rows, np.flatnonzero(dense_acts[:, feature]))
        np.testing.assert_array_equal(acts, dense_acts[rows, feature])


def test_activations_at_any_rows(index: FeatureIndex, dense_acts: np.ndarray) -> None:
    rows = np.arange(len(dense_acts))
    for feature in (0, 4, 5):  # usual, dead, dense
        np.testing.assert_array_equal(index.acts_at(feature, rows), dense_acts[:, feature])


def test_what_fires_at_a_row(index: FeatureIndex, dense_acts: np.ndarray) -> None:
    row = int(np.argmax((dense_acts > 0).sum(axis=1)))
    found = index.active_at(row)
    assert {feature for feature, _ in found} == set(np.flatnonzero(dense_acts[row]).tolist())
    assert [act for _, act in found] == sorted(dense_acts[row][dense_acts[row] > 0])[::-1]


def test_a_window_stays_in_its_packed_row(index: FeatureIndex, dense_acts: np.ndarray) -> None:
    tokens = make_tokens().reshape(-1)
    for row, context, start, stop in [
        (5 * CONTEXT + 2, 4, 5 * CONTEXT, 5 * CONTEXT + 7),
        (6 * CONTEXT - 1, 4, 6 * CONTEXT - 5, 6 * CONTEXT),
        (5 * CONTEXT + 9, None, 5 * CONTEXT, 6 * CONTEXT),
    ]:
        window = index.window(row, 5, context)
        assert window.start_row == start
        assert window.start_row + window.focus == row
        np.testing.assert_array_equal(window.token_ids, tokens[start:stop])
        np.testing.assert_array_equal(window.acts, dense_acts[start:stop, 5])


def test_documents_of_rows(index: FeatureIndex) -> None:
    documents = make_documents()
    found = index.document_of(3 * CONTEXT)
    assert (found.number, found.start, found.stop) == (1, 3 * CONTEXT, 6 * CONTEXT)
    assert found.id == documents["id"][1]
    assert index.document_of(3 * CONTEXT - 1).number == 0
    assert index.document_of(TRAIN * CONTEXT).split == "heldout"
    last = index.document(len(documents) - 1)
    assert last.stop == index.sequences * CONTEXT
    with pytest.raises(UserError, match="documents 0 to"):
        index.document(len(documents))


def test_gathered_windows_mark_what_lies_beyond_the_row() -> None:
    tokens = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(
        gather_windows(tokens, np.array([0, 7, 11]), 2, 1),
        [[-1, -1, 0, 1], [-1, 6, 7, 8], [9, 10, 11, -1]],
    )


def test_enrichment_counts_what_the_corpus_has(index: FeatureIndex) -> None:
    tokens = make_tokens()[:, 1:]
    table = index.enrichment(3, n=None).set_index("token_id")
    for word in (" Mr", " Holmes"):  # the feature fires on every one of them
        row = table.loc[token(word)]
        assert row["count"] == row["corpus_count"] == (tokens == token(word)).sum()
        assert row["p_fires"] == 1.0
        assert row["lift"] == pytest.approx(1 / index.table["density"][3])
    assert table["mass_share"].sum() == pytest.approx(1.0)
    assert table["mass_share"].is_monotonic_decreasing


def test_coactivation_is_the_jaccard_index(index: FeatureIndex, dense_acts: np.ndarray) -> None:
    fires = dense_acts > 0
    both, either = (fires[:, [3]] & fires).sum(0), (fires[:, [3]] | fires).sum(0)
    expected = both / either
    found = index.neighbours(3, "coactivation", n=5)
    assert len(found) == 5
    for feature, value in found:
        assert feature != 3
        assert value == pytest.approx(expected[feature])
    assert found[0].value == pytest.approx(np.sort(expected)[-2])


def test_coactivation_of_a_frequent_feature_is_a_good_estimate(
    index: FeatureIndex, dense_acts: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.features.enrichment.SAMPLED_ROWS", 4000)
    found = dict(index.neighbours(5, "coactivation", n=40))
    for feature in (1, 7):
        share = (dense_acts[:, feature] > 0).sum() / (dense_acts[:, 5] > 0).sum()
        assert found[feature] == pytest.approx(share, rel=0.1)


def test_stored_neighbours_and_unknown_kinds(index: FeatureIndex) -> None:
    found = index.neighbours(0, "decoder", n=4)
    assert len(found) == 4
    assert all(a.value >= b.value for a, b in pairwise(found))
    with pytest.raises(UserError, match="decoder, encoder or coactivation"):
        index.neighbours(0, "cousin")  # pyright: ignore[reportArgumentType]


def test_dead_features_have_empty_answers(index: FeatureIndex) -> None:
    assert len(index.firings(4)[0]) == 0
    assert index.enrichment(4).empty
    assert index.neighbours(4, "coactivation") == []
    assert index.histogram(4).counts.sum() == 0
    for kind in ("top", "quantiles", "random", "near-miss"):
        assert index.examples(4, kind) == []


def test_mistakes_are_told_in_a_sentence(index: FeatureIndex, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features 0 to 39"):
        index.firings(40)
    with pytest.raises(UserError, match="sae index"):
        FeatureIndex.open(tmp_path)


def test_token_counts_leave_bos_out(index: FeatureIndex) -> None:
    counts = index.token_counts_V
    assert len(counts) == len(TOKENS)
    assert counts[0] == 0
    assert counts.sum() == index.tokens_indexed
