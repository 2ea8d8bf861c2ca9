"""Specificity and sensitivity on all held-out rows, counted by hand."""

import numpy as np
import pytest
from synthetic import CONTEXT, HELDOUT, TOKENS, TRAIN, make_documents, make_tokens, token

from sae.features import FeatureIndex, Vocabulary, rule_counts
from sae.features.contexts import NONE, Text
from sae.features.rule_counts import HeldoutText, RuleCounts
from sae.features.rules import ANY, Condition, Rule
from sae.features.token_classes import token_facts

FACTS = token_facts(Vocabulary(TOKENS))
FIRST = TRAIN * CONTEXT
BOUNDS = (TRAIN, TRAIN + HELDOUT)


@pytest.fixture(scope="module")
def heldout() -> HeldoutText:
    return HeldoutText(Text(make_tokens(), FACTS, make_documents()), BOUNDS, FACTS)


def of_token(text: str) -> Rule:
    return Rule(Condition("current", "tokens", (token(text),)))


def test_each_number_is_its_ratio(heldout: HeldoutText) -> None:
    """Fires with 3 on every other held-out ` the`, with 1 on ten other tokens; and in training."""
    tokens = make_tokens().reshape(-1)
    held = np.arange(len(tokens)) >= FIRST
    the = np.flatnonzero((tokens == token(" the")) & held)
    others = np.flatnonzero((tokens == token(" of")) & held)[:10]
    acts = np.zeros(len(tokens), np.float16)
    acts[the[::2]], acts[others] = 3, 1
    acts[:FIRST:7] = 5  # of no concern
    acts[::CONTEXT] = 0
    rows = np.flatnonzero(acts).astype(np.uint32)
    found = heldout.count(of_token(" the"), rows, acts[rows])
    hits = len(the[::2])
    assert found == RuleCounts(
        specificity=hits / (hits + 10),
        specificity_mass=pytest.approx(3 * hits / (3 * hits + 10)),
        heldout_firings=hits + 10,
        sensitivity=hits / len(the),
        rule_tokens=len(the),
    )


def test_what_cannot_be_known_is_none(heldout: HeldoutText) -> None:
    nowhere, silent = np.empty(0, np.uint32), np.empty(0, np.float16)
    found = heldout.count(of_token(" the"), nowhere, silent)
    assert (found.specificity, found.specificity_mass, found.heldout_firings) == (None, None, 0)
    assert (found.sensitivity, found.rule_tokens > 0) == (0.0, True)
    bos = Rule(Condition("current", "tokens", (0,)))  # stands at position 0 alone
    found = heldout.count(bos, np.array([FIRST + 1], np.uint32), np.ones(1, np.float16))
    assert found == RuleCounts(0.0, 0.0, 1, None, 0)


def test_the_index_has_them_of_each_feature(index: FeatureIndex, dense_acts: np.ndarray) -> None:
    table = index.table
    tokens = make_tokens().reshape(-1)
    data = (np.arange(len(tokens)) >= FIRST) & (np.arange(len(tokens)) % CONTEXT > 0)
    fires = dense_acts > 0
    np.testing.assert_array_equal(table["heldout_firings"], fires[data].sum(axis=0))
    for feature in (0, 1, 2, 8):  # exact rules
        row = table.loc[feature]
        assert row["specificity"] == row["specificity_mass"] == row["sensitivity"] == 1.0
    after_the = np.roll(tokens == token(" the"), 1) & data & (np.arange(len(tokens)) % CONTEXT > 1)
    assert table["rule_tokens"][9] == after_the.sum()
    assert table["sensitivity"][9] == fires[after_the, 9].mean()  # nine times in ten
    assert table["specificity"][9] == 1.0
    dead = table.loc[4]
    assert np.isnan(dead["specificity"])
    assert np.isnan(dead["sensitivity"])
    assert (dead["heldout_firings"], dead["label_contexts"]) == (0, 0)
    scored = table["label_score"].notna()
    assert (table["label_positives"][scored] >= 5).all()
    assert (table["label_contexts"][scored] >= table["label_positives"][scored]).all()
    assert (table["label_contexts"][~scored] == 0).all()


def test_of_much_text_an_even_part_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_counts, "MOST_ROWS", 20 * (CONTEXT - 1))
    tokens = make_tokens().reshape(-1)
    part = HeldoutText(Text(make_tokens(), FACTS, make_documents()), BOUNDS, FACTS)
    assert len(part.contexts) == 20 * (CONTEXT - 1)
    rows = np.flatnonzero(tokens == token(" the")).astype(np.uint32)
    found = part.count(of_token(" the"), rows, np.ones(len(rows), np.float16))
    assert found.specificity == found.sensitivity == 1.0
    assert found.heldout_firings == found.rule_tokens < (rows >= FIRST).sum()


def test_a_looked_up_token_never_stands_beyond_the_row() -> None:
    text = Text(make_tokens(), FACTS, make_documents())
    contexts = text.at(np.arange(1, 4 * CONTEXT))
    last = len(TOKENS) - 1
    for where in ("current", "previous", "recent", "following", "line"):
        seen = getattr(contexts, where)
        for values in ((last,), (3, last), (NONE,)):
            wanted = np.isin(seen, values) & (seen != NONE)
            expected = wanted.any(axis=1) if wanted.ndim == 2 else wanted
            found = Rule(Condition(where, "tokens", values), ANY).test(contexts, FACTS)
            np.testing.assert_array_equal(found, expected)
