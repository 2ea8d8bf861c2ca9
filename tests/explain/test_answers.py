import json
from pathlib import Path

import pytest

from sae.base.errors import UserError
from sae.explain.answers import LONGEST_EXPLANATION, explanation_of, verdicts_of
from sae.explain.journal import Journal, Record, journal_problems
from sae.explain.plan import Planner
from sae.explain.scores import judged


@pytest.mark.parametrize(
    ("content", "explanation"),
    [
        ('{"explanation": "digits"}', "digits"),
        ('```json\n{"explanation": "digits"}\n```', "digits"),
        ('Sure! {"explanation": "a \\"{\\" that opens"} Hope it helps {}', 'a "{" that opens'),
        ('<think>maybe {"explanation": "no"}</think>\n{"explanation": "yes"}', "yes"),
        ("Digits of\nyears.", "Digits of years."),
        ('{"explanation": "a\\u0000b\\u202e c"}', "a b c"),
        ('{"explanation": 3}', None),
        ('{"explanation": "cut off', None),
        ('{"explanation": "  "}', None),
        ("<think>and so on", None),
        ("[1, 0]", None),
        ("", None),
        (None, None),
    ],
)
def test_explanations_are_read_with_patience(content: str | None, explanation: str | None) -> None:
    assert explanation_of(content) == explanation


@pytest.mark.parametrize("text", ["x" * 9000, "é" * 9000, '"' * 9000, "日本" * 400])
def test_explanations_are_of_bounded_length(text: str) -> None:
    found = explanation_of(text)
    assert found is not None
    size = len(json.dumps(found, ensure_ascii=False).encode()) - 2
    assert LONGEST_EXPLANATION - 6 <= size <= LONGEST_EXPLANATION


@pytest.mark.parametrize(
    ("content", "verdicts"),
    [
        ("[1, 0, 1]", [True, False, True]),
        ('{"answers": [1,0,1]}', [True, False, True]),
        ("First [0, 0, 0], no: [true, False, yes]", [True, False, True]),
        ('["1", "0", "1"]', [True, False, True]),
        ("[1, 0, 1] as in [3]", [True, False, True]),
        ("[1, 0]", None),
        ("[1, 0, 2]", None),
        ("1 0 1", None),
        ("[[1, 0, 1", None),
        (None, None),
    ],
)
def test_verdicts_are_read_with_patience(content: str | None, verdicts: list[bool] | None) -> None:
    assert verdicts_of(content, 3) == verdicts


def test_scores_by_hand() -> None:
    truth = [True] * 4 + [False] * 4
    says = [True, True, True, False, True, False, False, False]
    found = judged([(truth, says), ([True, False], None)])
    assert found["balanced_accuracy"] == 0.75
    assert found["precision"] == found["recall"] == found["f1"] == 0.75
    assert (found["scored"], found["unscored"]) == (8, 2)
    assert found["low"] < 0.5 < found["high"]  # of eight passages one cannot tell
    many = judged([(truth * 100, says * 100)])
    assert 0.70 < many["low"] < 0.75 < many["high"] < 0.80
    nothing = judged([([True, True], [True, True])])
    assert nothing["balanced_accuracy"] is None


def test_partners_are_others_and_mostly_stay() -> None:
    planner = Planner(("e", "m"))
    few: dict[int, str | None] = dict.fromkeys(range(50), "text")
    few[7] = None
    partners = {feature: planner.partner(feature, few) for feature in few}
    assert all(partner not in (feature, 7, None) for feature, partner in partners.items())
    assert len(set(partners.values())) > 20
    more = few | dict.fromkeys(range(50, 55), "text")
    moved = [feature for feature in few if planner.partner(feature, more) != partners[feature]]
    assert len(moved) < 15


def test_a_journal_keeps_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "topk.jsonl"
    record = Record("k", 3, "detection", "[1]\n\ud800", 5)
    with Journal(path) as journal:
        journal.add(record)
        journal.add(Record("other", 4, "explanation", None))
        with pytest.raises(UserError, match="in use by process"):
            Journal(path).__enter__()
    assert Journal(path).answers["k"] == record
    with path.open("ab") as file:
        file.write(b'{"key": "cut o')
    assert set(Journal(path).answers) == {"k", "other"}
    with Journal(path) as journal:
        journal.add(Record("third", 5, "explanation", "x"))
    assert set(Journal(path).answers) == {"k", "other", "third"}
    assert journal_problems(path) == []
    path.write_bytes(path.read_bytes().replace(b'"x"', b'"y"'))
    with pytest.raises(UserError, match="damaged at line 3"):
        Journal(path)
    assert len(journal_problems(path)) == 1
