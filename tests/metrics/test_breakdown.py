"""Groups of predictions, on rows that can be checked by eye."""

import numpy as np
import pytest

from sae.metrics.bootstrap import entries
from sae.metrics.breakdown import FREQUENCY, REPETITION, breakdown, closely, labels
from sae.metrics.fidelity import GROUPED, Closely
from sae.metrics.registry import REGISTRY
from sae.metrics.sample import Sample


class Text:
    """As much of a store as the groups look at: the tokens of its train split."""

    def __init__(self, tokens_ST: np.ndarray) -> None:
        self.tokens_ST, self.context = tokens_ST, tokens_ST.shape[1]

    def rows_of(self, split: str) -> range:
        assert split == "train"
        return range(self.tokens_ST.size)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return self.tokens_ST[start:stop]


def look(rows: list[list[int]], counts: list[int], train: list[list[int]] | None = None) -> Closely:
    sample = Sample.__new__(Sample)
    object.__setattr__(sample, "tokens_ST", np.array(rows))
    object.__setattr__(sample, "store", Text(np.array(train or [[0, 0]])))
    return closely("coder", "by sequence", sample, np.array(counts))


def test_repetition_is_of_this_row_and_before_this_token() -> None:
    #        reads 0 5 6 5 6 | 7; its next tokens are 5 6 5 6 7
    found = look([[0, 5, 6, 5, 6, 7], [0, 7, 5, 6, 5, 5]], [1] * 8)
    again = found.groups["repetition"][:, :-1]
    assert again[0].tolist() == [0, 0, 1, 3, 0]  # "5 6" for the second time is what copying gets
    assert again[1].tolist() == [0, 0, 0, 1, 1]  # another row's tokens are not this row's context
    assert found.sizes["repetition"] == len(REPETITION)


def test_a_pair_that_text_has_anyway_is_no_sign_of_copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the train split 6 follows 5 one time in twenty, 8 follows 7 once in nineteen."""
    train = [[5, 6], *[[5, 9]] * 19, [7, 8], *[[7, 300]] * 18]
    rows = [[0, 5, 6, 5, 6], [0, 7, 8, 7, 8], [0, 250, 1, 250, 1]]  # 250 is not in it at all
    for block in (1 << 17, 6):
        monkeypatch.setattr("sae.metrics.breakdown.BLOCK", block)
        again = look(rows, [1] * 301, train).groups["repetition"]
        assert again[:, 3].tolist() == [3, 2, 3]
        assert again[:, :3].max() == 1


def test_pairs_are_counted_in_an_even_part_of_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.metrics.breakdown.BLOCK", 4)
    monkeypatch.setattr("sae.metrics.breakdown.PAIR_TOKENS", 8)
    train = [[5, 6], [5, 6], *[[1, 1]] * 40, [5, 9], [5, 9]]  # read: the first and the last two
    assert look([[5, 6, 5, 6]], [1] * 10, train).groups["repetition"][0, 2] == 2
    train[0] = train[1] = [5, 9]
    assert look([[5, 6, 5, 6]], [1] * 10, train).groups["repetition"][0, 2] == 3


def test_frequency_is_of_the_token_to_be_predicted() -> None:
    counts = [50_000, 0, 1, 40, 49_959]
    found = look([[0, 1, 2, 3, 4, 0]], counts)
    group = [FREQUENCY[i] for i in found.groups["frequency"][0, :-1]]
    assert group == [
        "not in the train split",
        "1e-5 to 1e-4",
        "1e-4 to 1e-3",
        "above 1e-2",
        "above 1e-2",
    ]


def test_positions_are_in_powers_of_two() -> None:
    found = look([[0] * 9], [1])
    assert found.groups["position"][0].tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 3]
    assert labels("position", 4) == ["1", "2 to 3", "4 to 7", "8 to 15"]


def test_each_group_is_scored_like_all_tokens_together() -> None:
    rng = np.random.default_rng(0)
    table = {f"{term}@repetition": rng.random((20, 4)) for term in GROUPED}
    table["count@repetition"] = rng.integers(1, 9, (20, 4)).astype(float)
    for term in GROUPED:
        table[f"{term}@repetition"][:, 1] = 0  # a group that no token is in
    rows = breakdown(table, table, "documents", seed=0)["repetition"]
    assert [row["group"] for row in rows] == [REPETITION[0], *REPETITION[2:]]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    counts = table["count@repetition"][:, 2].sum()
    expected = (table["ce@repetition"] - table["ce_clean@repetition"])[:, 2].sum() / counts
    entry = rows[1]["delta_ce"]
    assert entry["value"] == pytest.approx(expected)
    assert entry["low"] <= entry["value"] <= entry["high"]
    assert entry["tokens"] == counts
    assert {(row["over"], row["units"]) for row in rows} == {("documents", 20)}
    kept, lost, all_of_it = (table[f"{term}@repetition"][:, 2].sum()
                             for term in ("ce", "ce_clean", "ce_mean"))  # fmt: skip
    share = (all_of_it - kept) / (all_of_it - lost)
    assert rows[1]["ce_recovered_mean"]["value"] == pytest.approx(share)


def test_a_group_of_few_documents_resamples_sequences() -> None:
    """Three documents in thirty sequences: a percentile interval of three would be a fiction."""
    rng = np.random.default_rng(0)
    by_sequence = {f"{term}@repetition": rng.random((30, 4)) for term in GROUPED}
    by_sequence["count@repetition"] = np.full((30, 4), 2.0)
    document = np.concatenate([np.zeros(10, int), np.ones(5, int), np.full(15, 2)])
    table = {}
    for term, values in by_sequence.items():
        table[term] = np.zeros((12, 4))
        np.add.at(table[term], document, values)
        np.add.at(table[term][:, 1], np.arange(3, 12), values[:9, 1])  # this group has twelve
    few, enough, *_ = breakdown(table, by_sequence, "documents", seed=0)["repetition"]
    assert (few["over"], few["units"]) == ("sequences", 30)
    assert (enough["over"], enough["units"]) == ("documents", 12)
    column = {term: by_sequence[f"{term}@repetition"][:, 0] for term in GROUPED}
    assert few["delta_ce"] == entries(column, [REGISTRY["delta_ce"]], 0)["delta_ce"]


def test_a_group_of_few_sequences_has_values_alone() -> None:
    table = {f"{term}@repetition": np.full((9, 4), 2.0) for term in GROUPED}
    row, *_ = breakdown(table, table, "documents", seed=0)["repetition"]
    assert (row["over"], row["units"]) == ("sequences", 9)
    for name in ("delta_ce", "kl", "ce_clean", "ce_recovered_mean"):
        assert (row[name]["low"], row[name]["high"]) == (None, None)
