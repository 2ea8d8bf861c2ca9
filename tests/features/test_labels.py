import numpy as np
import pandas as pd
import pytest
from synthetic import BOS, CONTEXT, HELDOUT, TOKENS, TRAIN, make_documents, make_tokens, token

from sae.features import FeatureIndex, Vocabulary
from sae.features.contexts import (
    NONE,
    RowsByToken,
    Sample,
    Text,
    document_kind,
    draw_sample,
    line_starts,
    silent_rows,
    strong_rows,
)
from sae.features.label_text import describe, quoted
from sae.features.labels import FIRES_SHARE, label_features, score
from sae.features.rules import ANY, Condition, Rule, induce
from sae.features.token_classes import stem, token_facts

VOCABULARY = Vocabulary(TOKENS)
FACTS = token_facts(VOCABULARY)


@pytest.mark.parametrize(
    ("feature", "label", "kind"),
    [
        (0, '" return"', "token"),
        (1, "digits", "class"),
        (2, 'what follows " Mr"', "context"),
        (4, "dead", "dead"),
        (5, "nearly every token", "class"),
        (6, "the first token", "context"),
        (8, '"<script>alert(1)</script>"', "token"),
        (9, 'what follows " the"', "context"),
    ],
)
def test_known_features_get_their_rule(
    index: FeatureIndex, feature: int, label: str, kind: str
) -> None:
    row = index.table.loc[feature]
    assert (row["label"], row["label_kind"]) == (label, kind)


def test_scores_are_of_held_out_text(index: FeatureIndex, dense_acts: np.ndarray) -> None:
    table = index.table
    assert table["label_auc"][1] == 1.0
    assert table["label_score"][1] == table["label_precision"][1] == 1.0
    scores = table[["label_score", "label_precision", "label_recall"]]
    assert scores.loc[4].isna().all()
    train_max = dense_acts[: TRAIN * CONTEXT].max(axis=0)
    known = np.where(train_max > 0, train_max, dense_acts.max(axis=0))
    strong = (dense_acts >= FIRES_SHARE * known) & (dense_acts > 0)
    in_heldout = strong[TRAIN * CONTEXT :].sum(axis=0)
    rare = in_heldout < 5
    assert rare.any()
    assert scores["label_score"][rare].isna().all()
    assert scores["label_score"][in_heldout > 15].notna().all()
    assert table["label_auc"][in_heldout > 15].between(0, 1).sum() >= (in_heldout > 15).sum() - 1
    known = scores.dropna()
    p, r = known["label_precision"], known["label_recall"]
    np.testing.assert_allclose(known["label_score"], 2 * p * r / np.maximum(p + r, 1e-9))


def test_a_feature_without_a_pattern_speaks_of_logits() -> None:
    rng = np.random.default_rng(0)
    tokens = make_tokens()
    fires = np.flatnonzero(
        (rng.random(tokens.size) < 0.01) & (np.arange(tokens.size) % CONTEXT > 0)
    )
    promoted = [token(" Paris"), token(" London")]
    table = pd.DataFrame({"max": [1.0], "density": [0.01], "promoted_ids": [promoted]})
    found = label_features(
        np.array([0, len(fires)]),
        fires.astype(np.uint32),
        np.ones(len(fires), np.float16),
        tokens,
        table,
        VOCABULARY,
        make_documents(),
        {"train": [0, TRAIN], "heldout": [TRAIN, TRAIN + HELDOUT]},
    )
    assert found["label_kind"][0] == "logits"
    assert found["label"][0] == 'promotes " Paris" or " London"'
    assert found["label_score"][0] < 0.5


def draw(
    fires: np.ndarray,
    acts: np.ndarray | None = None,
    split: str = "train",
    n: int = 96,
    tokens: np.ndarray | None = None,
):
    tokens = make_tokens() if tokens is None else tokens
    text = Text(tokens, FACTS, make_documents())
    bounds = (0, TRAIN) if split == "train" else (TRAIN, TRAIN + HELDOUT)
    rows = np.flatnonzero(fires).astype(np.uint32)
    acts = np.ones(len(rows)) if acts is None else acts[rows]
    by_token = RowsByToken(tokens, bounds, FACTS)
    rng = np.random.default_rng(0)
    return text, draw_sample(text, by_token, rows, acts.astype(np.float16), 0.25, n, n // 2, rng)


def test_samples_keep_to_their_split_and_their_side() -> None:
    tokens = make_tokens().reshape(-1)
    fires = tokens == token(" the")
    fires[::3] = False
    for split in ("train", "heldout"):
        _, sample = draw(fires, split=split)
        assert sample is not None
        positives = sample.contexts[: len(sample.weights)]
        negatives = sample.contexts[len(sample.weights) :]
        assert (positives.current == token(" the")).all()
        # the token fires two times of three: so hard negatives there are, about one in three draws
        hard = (negatives.current == token(" the")).sum()
        assert 0.15 < hard / len(positives) < 0.75
        assert sample.weights.mean() == pytest.approx(1.0)


def test_a_feature_of_one_word_is_not_labelled_by_its_class() -> None:
    tokens = make_tokens().reshape(-1)
    text, sample = draw(tokens == token(" Paris"))
    assert sample is not None
    rule, f1 = induce(sample, FACTS, len(text.kinds), False)
    assert describe(rule, VOCABULARY, FACTS, text.kinds) == '" Paris"'
    assert f1 == 1.0
    negatives = sample.contexts.current[len(sample.weights) :]
    capitalised = FACTS.classes_CV[FACTS.names.index("capitalised words")]
    assert capitalised[negatives].mean() > 0.25  # or the class would have no false positives


def test_kin_are_rows_of_the_same_class_as_frequent_as_the_text_has_them() -> None:
    tokens = make_tokens()
    by_token = RowsByToken(tokens, (0, TRAIN), FACTS)
    seven = np.full(20_000, token("7"))
    drawn = tokens.reshape(-1)[by_token.draw_kin(seven, np.random.default_rng(0))]
    digits = FACTS.classes_CV[FACTS.names.index("digits")]
    assert digits[drawn].all()
    inside = tokens[:TRAIN, 1:]
    counts = np.bincount(inside[digits[inside]], minlength=len(TOKENS))
    expected = counts / counts.sum()
    found = np.bincount(drawn, minlength=len(TOKENS)) / len(drawn)
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert not len(by_token.draw_kin(np.array([token("<b>bold</b>")]), np.random.default_rng(0)))


def test_contexts_of_the_train_sample_are_no_held_out_contexts() -> None:
    """A header that stands in both splits is one context, in which the rule was induced."""
    tokens = make_tokens()
    header = [token(" " + word) for word in ("the", "king", "of", "the")]
    fires = np.zeros(tokens.shape, bool)
    for sequence in (3, 5, TRAIN + 2, TRAIN + 4, TRAIN + 6):
        tokens[sequence, 10:14], tokens[sequence, 15:19] = header, header
        tokens[sequence, 14], fires[sequence, 14] = token(" queen"), True
    tokens[TRAIN + 6, 16] = token(" river")
    text = Text(tokens, FACTS, make_documents())
    rows = np.flatnonzero(fires).astype(np.uint32)

    def drawn(first: int, last: int, seen: Sample | None = None) -> Sample | None:
        rng, by_token = np.random.default_rng(0), RowsByToken(tokens, (first, last), FACTS)
        acts = np.ones(len(rows), np.float16)
        return draw_sample(text, by_token, rows, acts, 0.5, 96, 0, rng, seen=seen)

    train = drawn(0, TRAIN)
    alone, heldout = (drawn(TRAIN, TRAIN + HELDOUT, seen) for seen in (None, train))
    assert train is not None
    assert alone is not None
    assert heldout is not None
    assert (len(train.weights), len(alone.weights), len(heldout.weights)) == (1, 2, 1)
    assert not np.isin(heldout.windows, train.windows).any()
    assert drawn(TRAIN, TRAIN + 6, train) is None
    assert np.array_equal(heldout.take(heldout.fires).windows, heldout.windows)


def test_strongest_firings_are_among_the_train_positives() -> None:
    tokens = make_tokens().reshape(-1)
    acts = np.random.default_rng(0).uniform(0.3, 1, tokens.size)
    fires = tokens == token(" of")
    text, sample = draw(fires, acts, n=20)
    assert sample is not None
    assert len(sample.weights) == 20
    inside = np.flatnonzero(fires[: TRAIN * CONTEXT])
    top = inside[np.argsort(-acts[inside])][:8]
    chosen = sample.weights * np.float16(1)
    assert chosen.max() / chosen.min() == pytest.approx(
        acts[top[0]] / (acts[top[0]] * chosen.min() / chosen.max()), rel=1e-3
    )
    assert text.context == CONTEXT


def test_weak_firings_are_neither_positive_nor_negative() -> None:
    tokens = make_tokens().reshape(-1)
    fires = np.isin(tokens, [token(" of"), token(" and")])
    acts = np.where(tokens == token(" of"), 1.0, 0.1)
    _, sample = draw(fires, acts)
    assert sample is not None
    assert token(" and") not in sample.contexts.current


def test_rule_scores_are_plain_f1() -> None:
    tokens = make_tokens().reshape(-1)
    fires = np.isin(tokens, [token(" of"), token(" and")])
    _, sample = draw(fires, split="heldout")
    assert sample is not None
    current = sample.contexts.current
    rule = Rule(Condition("current", "tokens", (token(" of"),)))
    f1, precision, recall, auc = score(rule, sample, FACTS)
    assert precision == 1.0
    of, positives = (current[: len(sample.weights)] == token(" of")).sum(), len(sample.weights)
    assert recall == of / positives
    # of a rule with one condition it is the mean of the shares on either side that are right
    assert auc == pytest.approx((recall + 1) / 2)
    assert f1 == pytest.approx(2 * recall / (1 + recall))
    nothing = Rule(Condition("current", "tokens", (0,)))
    assert score(nothing, sample, FACTS) == (0.0, 0.0, 0.0, 0.5)
    assert score(rule, None, FACTS) == (None, None, None, None)


def test_half_a_rule_ranks_between_all_of_it_and_none() -> None:
    tokens = make_tokens().reshape(-1)
    after = np.concatenate([[0], tokens[:-1]])
    fires = (tokens == token(" of")) & (after == token(" the"))
    _, sample = draw(fires)
    assert sample is not None
    whole = Rule(
        Condition("current", "tokens", (token(" of"),)),
        Condition("previous", "tokens", (token(" the"),)),
    )
    assert score(whole, sample, FACTS) == (1.0, 1.0, 1.0, 1.0)
    # a rule that asks for too much: it says no to all, and still ranks firings first
    narrow = Rule(whole.token, Condition("previous", "tokens", (token(" king"),)))
    f1, _, _, auc = score(narrow, sample, FACTS)
    assert f1 == 0.0
    assert auc is not None
    assert auc > 0.7


@pytest.mark.parametrize("current", [None, " king"])
def test_a_sequence_of_tokens_before_is_a_rule(current: str | None) -> None:
    """No one of its tokens would do: each stands before much else as well."""
    rng = np.random.default_rng(1)
    tokens = make_tokens()
    before = np.array([token(" of"), token(" the"), token(" river")])
    for sequence in tokens:
        end, elsewhere = rng.integers(20, CONTEXT - 1), rng.integers(4, 15)
        sequence[end - 3 : end], sequence[elsewhere - 1] = before, before[-1]
        if current and rng.random() < 0.5:
            sequence[end] = sequence[elsewhere] = token(current)
    flat = tokens.reshape(-1)
    fires = np.zeros(flat.size, bool)
    fires[3:] = (flat[:-3] == before[0]) & (flat[1:-2] == before[1]) & (flat[2:-1] == before[2])
    fires &= np.arange(flat.size) % CONTEXT > 3
    if current:
        fires &= flat == token(current)
    text, sample = draw(fires, tokens=tokens)
    assert sample is not None
    rule, f1 = induce(sample, FACTS, len(text.kinds), False)
    assert rule.around.what == "sequence"
    assert f1 > 0.9
    described = describe(rule, VOCABULARY, FACTS, text.kinds)
    lead = f'"{current}" after' if current else "what follows"
    assert described in (f'{lead} " of the river"', f'{lead} " the river"')
    _, heldout = draw(fires, split="heldout", tokens=tokens)
    assert score(rule, heldout, FACTS)[0] == pytest.approx(f1, abs=0.1)


def test_neighbours_firings_are_among_the_negatives() -> None:
    """Two features of one word, of which one fires before nouns alone: a token rule is not enough
    where the other fires."""
    tokens = make_tokens()
    flat = tokens.reshape(-1)
    text = Text(tokens, FACTS, make_documents())
    by_token = RowsByToken(tokens, (0, TRAIN), FACTS)
    inside = np.arange(flat.size) < TRAIN * CONTEXT
    fired = np.flatnonzero((flat == token(" king")) & inside).astype(np.uint32)
    rival = np.flatnonzero(flat == token(" queen")).astype(np.uint32)
    other = np.flatnonzero(flat == token(" river")).astype(np.uint32)[:3]

    def negatives(*rivals: np.ndarray) -> np.ndarray:
        return silent_rows(text, by_token, fired, fired, np.random.default_rng(0), rivals)

    plain, hard = negatives(), negatives(rival, other)
    for rows in (plain, hard):
        assert len(np.unique(rows)) == len(rows)
    assert np.isin(plain, hard).all()
    added = np.setdiff1d(hard, plain)
    assert np.isin(added, np.concatenate([rival, other])).all()
    assert np.isin(other, hard).all()  # each neighbour as often, so that few firings all come
    assert np.isin(added, rival).sum() > 5
    assert (added < TRAIN * CONTEXT).all()
    assert not len(negatives(fired)) > len(plain)  # where both fire is no negative


def test_strong_rows_are_those_at_or_above_the_threshold() -> None:
    acts = np.array([0.1, 0.5, 0.499, 7, 60000], np.float16)
    np.testing.assert_array_equal(strong_rows(np.arange(5), acts, 0.5), [1, 3, 4])


def test_simple_rules_win_where_they_say_as_much() -> None:
    tokens = make_tokens().reshape(-1)
    _, sample = draw(tokens == token(" king"))
    assert sample is not None
    rule, f1 = induce(sample, FACTS, kinds=2, dense=False)
    assert rule == Rule(Condition("current", "tokens", (token(" king"),)), ANY)
    assert f1 == pytest.approx(1.0)


def test_a_set_of_tokens_is_found() -> None:
    tokens = make_tokens().reshape(-1)
    verbs = [token(" " + word) for word in ("said", "replied", "asked", "cried")]
    others = [token(" " + word) for word in ("river", "import")]
    _, sample = draw(np.isin(tokens, verbs[:2] + others))
    assert sample is not None
    rule, f1 = induce(sample, FACTS, 2, dense=False)
    assert set(rule.token.values) == {*verbs[:2], *others}
    assert f1 > 0.95


def test_lines_begin_after_newlines() -> None:
    newline, spaces, a, b = token("\n"), token("    "), token(" a"), token(" for")
    row = np.array([[0, a, newline, spaces, b, a, newline, newline, a, b]])
    np.testing.assert_array_equal(line_starts(row, FACTS)[0], [-1, 1, 1, -1, 4, 4, 4, -1, 8, 8])


def test_contexts_do_not_reach_beyond_the_packed_row() -> None:
    tokens = make_tokens()
    text = Text(tokens, FACTS, make_documents())
    first, last = text.at(np.array([CONTEXT + 1])), text.at(np.array([2 * CONTEXT - 1]))
    assert (first.recent == NONE).all()  # BOS is not text
    assert first.following[0] == tokens[1, 2]
    assert last.following[0] == NONE
    np.testing.assert_array_equal(last.recent[0], tokens[1, -2:-14:-1])
    assert text.kinds == ["code", "prose"]


def test_document_kinds_are_endings_of_ids() -> None:
    names, numbers = document_kind(pd.DataFrame({"id": ["a:prose", "b:code", "c:prose", "plain"]}))
    assert names == ["code", "prose"]
    assert numbers.tolist() == [1, 0, 1, NONE]
    assert document_kind(pd.DataFrame({"id": [f"http://x:{n}" for n in range(20)]}))[0] == []


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("42", {"digits"}),
        (" 1984", {"digits", "years"}),
        ("0x1f", {"hexadecimal"}),
        (" Watson", {"capitalised words"}),
        ("\n    ", {"newlines", "newline and indentation"}),
        (" running", {"lower-case words", "words in -ing"}),
        (" March", {"capitalised words", "months"}),
        (" they", {"lower-case words", "subject pronouns"}),
        ("...", {"ends of sentences", "punctuation"}),
        (" import", {"lower-case words", "Python keywords"}),
    ],
)
def test_token_classes(text: str, classes: set[str]) -> None:
    facts = token_facts(Vocabulary([text.encode()]))
    assert {n for n, row in zip(facts.names, facts.classes_CV, strict=True) if row[0]} == classes


def test_forms_of_a_word_share_a_stem() -> None:
    assert {stem(word) for word in ("return", "returns", "returned", "returning")} == {"return"}
    assert stem("is") == "is"


def test_labels_show_what_cannot_be_seen() -> None:
    assert quoted(" a\n\tb") == '" a\\n\\tb"'
    assert quoted("x\u202ey\u0000") == '"x\\u202ey\\u0000"'
    assert quoted(" naïve") == '" naïve"'
    assert "\n" not in quoted(BOS.decode() + "\r\n\u2028")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Rule(Condition("current", "tokens", (1, 2))), '" the" or " of"'),
        (
            Rule(Condition("current", "class", (0,)), Condition("line", "tokens", (1,))),
            'digits in a line that begins with " the"',
        ),
        (Rule(ANY, Condition("recent", "tokens", (1,))), 'soon after " the"'),
        (Rule(ANY, Condition("kind", "number", (0,))), "anything in code"),
        (
            Rule(Condition("current", "tokens", (1,)), Condition("kind", "number", (1,))),
            '" the" in prose',
        ),
    ],
)
def test_rules_in_words(rule: Rule, text: str) -> None:
    assert describe(rule, VOCABULARY, FACTS, ["code", "prose"]) == text
