"""Explaining and testing against a server on this machine; nothing leaves it."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from sae.base.errors import UserError
from sae.explain import Endpoint, Explainer
from sae.explain.answers import LONGEST_EXPLANATION
from sae.explain.explainer import FAILURES
from sae.explain.journal import Journal
from sae.explain.prompts import estimated_tokens
from sae.features import FeatureIndex
from tests.explain.conftest import WORDS
from tests.explain.stub import (
    Answer,
    Reply,
    Stub,
    good,
    is_explaining,
    passages,
    said,
    serving,
    yes,
)


def endpoint(stub: Stub, **options: Any) -> Endpoint:
    return Endpoint(stub.url, "stub", **{"patience": 0.005, **options})


FEW = WORDS[:3]


def explained(
    index: FeatureIndex, journal: Path, answer: Answer, features: Any = FEW, **options: Any
) -> tuple[dict[str, Any], Stub]:
    with serving(answer) as stub:
        report = Explainer(index, features, endpoint(stub, **options), journal).run()
    return report, stub


def test_a_good_explainer_is_told_from_chance(index: FeatureIndex, journal: Path) -> None:
    report, stub = explained(index, journal, good, features=WORDS)
    summary = report["summary"]
    assert summary["explained"] == summary["features"] == len(WORDS)
    assert report["features"]["0"]["explanation"] == "the word return"
    for test in ("detection", "fuzzing"):
        found = summary[test]["balanced_accuracy"]
        assert found["explanation"]["value"] > 0.75
        assert found["shuffled"]["value"] < 0.65
        assert found["difference"]["value"] > 0.2
        assert (found["difference"]["low"], found["difference"]["units"]) == (None, len(WORDS))
    exact = report["features"]["0"]["detection"]  # fires on every " return"
    assert exact["balanced_accuracy"] == exact["f1"] == exact["high"] == 1.0
    assert 0.7 < exact["low"] < 1.0
    assert report["usage"]["requests"] == len(stub.asked)
    assert report["usage"]["prompt_tokens"] > 0


def test_one_who_says_yes_to_all_is_at_chance(index: FeatureIndex, journal: Path) -> None:
    report, _ = explained(index, journal, yes)
    for test in ("detection", "fuzzing"):
        found = report["summary"][test]["balanced_accuracy"]
        assert found["explanation"]["value"] == found["shuffled"]["value"] == 0.5
        assert found["difference"]["value"] == 0.0


def test_of_one_feature_there_is_a_score_and_no_control(index: FeatureIndex, journal: Path) -> None:
    report, stub = explained(index, journal, good, features=[0])
    found = report["summary"]["detection"]["balanced_accuracy"]
    assert found["explanation"]["value"] == 1.0
    assert found["shuffled"]["value"] is found["difference"]["value"] is None
    assert report["features"]["0"]["shuffled"]["explanation_of"] is None
    assert len(stub.asked) == 1 + sum(map(len, requests_of(report["features"]["0"])))


def requests_of(record: dict[str, Any]) -> list[range]:
    return [range(-(-record[test]["scored"] // 10)) for test in ("detection", "fuzzing")]


GARBAGE: list[Reply] = [
    (200, {}, b""),
    (200, {}, b"<html>busy</html>"),
    (200, {}, b"[" * 100_000),
    (200, {}, b'{"choices": []}'),
    (200, {}, b'{"choices": [{"message": {"content": {"a": 1}}}], "usage": "none"}'),
    (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b\x08nonsense"),
    (200, {}, b'{"choices": "' + b"x" * 2**21 + b'"}'),
    said(None),
    said(""),
    said("[1, 0]"),
    said("[1, 0, maybe, 1, 1, 1, 1, 1, 1, 1]"),
    said("{" * 30_000),
    said("\ud800 \x00 \u202e"),
]


@pytest.mark.parametrize("number", range(len(GARBAGE)))
def test_garbage_is_unscored_and_stops_nothing(
    index: FeatureIndex, journal: Path, number: int
) -> None:
    def answer(stub: Stub, body: dict[str, Any]) -> Reply:
        return good(stub, body) if is_explaining(body) else GARBAGE[number]

    report, stub = explained(index, journal, answer, features=WORDS[:2])
    record = report["features"]["0"]
    assert record["unscored"]
    assert record["detection"]["balanced_accuracy"] is None
    assert record["detection"]["scored"] == 0
    assert report["summary"]["passages_unscored"] == sum(
        len(passages(body)) for body in stub.asked if not is_explaining(body)
    )
    assert report["requests_failed"] == 0


def test_an_explanation_that_cannot_be_read_costs_no_tests(
    index: FeatureIndex, journal: Path
) -> None:
    with serving(lambda stub, body: GARBAGE[1]) as stub:
        explainer = Explainer(index, WORDS, endpoint(stub), journal)
        report = explainer.run()
        assert len(stub.asked) == len(WORDS)
        assert report["summary"]["explained"] == 0
        # its answer was paid for: it is asked again when that is wished, and not before
        assert Explainer(index, WORDS, endpoint(stub), journal).estimate().requests == 0
        stub.answer = good
        again = Explainer(index, WORDS, endpoint(stub), journal, ask_again=True)
        assert again.run()["summary"]["explained"] == len(WORDS)


def test_one_who_is_busy_is_asked_again(index: FeatureIndex, journal: Path) -> None:
    seen: set[str] = set()

    def answer(stub: Stub, body: dict[str, Any]) -> Reply:
        question = json.dumps(body)
        if question not in seen:
            seen.add(question)
            status = 429 if len(seen) % 2 else 503
            return status, {"Retry-After": "0"}, b'{"error": {"message": "slow down"}}'
        return good(stub, body)

    report, stub = explained(index, journal, answer, features=FEW[:2])
    plain, once = explained(index, journal.with_name("other.jsonl"), good, features=FEW[:2])
    assert len(stub.asked) == 2 * len(once.asked)
    assert report["features"] == plain["features"]


@pytest.mark.parametrize("status", [500, 429, 400])
def test_one_who_never_answers_ends_in_one_sentence(
    index: FeatureIndex, journal: Path, status: int
) -> None:
    with serving(lambda stub, body: (status, {}, b"\x1b[31mno\r\n")) as stub:
        explainer = Explainer(index, WORDS, endpoint(stub, tries=2, concurrency=1), journal)
        with pytest.raises(UserError, match=rf"does not answer \({status} \[31mno\)"):
            explainer.run()
        assert len(stub.asked) == FAILURES * (1 if status == 400 else 2)
    assert Journal(journal).answers == {}


def test_a_failure_now_and_then_is_counted_and_asked_again(
    index: FeatureIndex, journal: Path
) -> None:
    def answer(stub: Stub, body: dict[str, Any]) -> Reply:
        return good(stub, body) if len(stub.asked) % 4 else (400, {}, b"content filter")

    with serving(answer) as stub:
        explainer = Explainer(index, FEW, endpoint(stub, concurrency=1), journal)
        report = explainer.run()
        assert report["requests_failed"] == len(explainer.failed) > 0
        unscored = [r for r in report["features"].values() if r["unscored"]]
        assert unscored
        stub.answer, before = good, len(stub.asked)
        report = Explainer(index, FEW, endpoint(stub), journal).run()
        assert not any(record["unscored"] for record in report["features"].values())
        assert 0 < len(stub.asked) - before < before


def test_one_who_hangs_is_given_up(index: FeatureIndex, journal: Path) -> None:
    def answer(stub: Stub, body: dict[str, Any]) -> Reply:
        stub.stop.wait(20)
        return said("late")

    with serving(answer) as stub:
        asked = endpoint(stub, timeout=0.1, tries=2)
        began = time.monotonic()
        with pytest.raises(UserError, match=r"no answer within 0\.1 s"):
            Explainer(index, WORDS, asked, journal).run()
        assert time.monotonic() - began < 5
        stub.stop.set()


def test_nobody_there_is_one_sentence(index: FeatureIndex, journal: Path) -> None:
    with serving(good) as stub:
        asked = endpoint(stub, tries=1)
    with pytest.raises(UserError, match=r"does not answer .*ConnectError"):
        Explainer(index, WORDS, asked, journal).run()


@pytest.mark.parametrize("features", [FEW, WORDS[:1]])
def test_the_estimate_is_what_is_sent(
    index: FeatureIndex, journal: Path, features: tuple[int, ...]
) -> None:
    """With explanations as long as they may be; of shorter ones it is an upper bound."""

    def answer(stub: Stub, body: dict[str, Any]) -> Reply:
        return said("x" * 5000 if is_explaining(body) else json.dumps([1] * len(passages(body))))

    with serving(answer) as stub:
        explainer = Explainer(index, features, endpoint(stub, answer_tokens=77), journal)
        estimate = explainer.estimate()
        assert not stub.asked
        explainer.run()
    # another feature's explanation is here the same text, and so the same question, asked once
    assert len(stub.asked) <= estimate.requests
    with serving(lambda stub, body: numbered(stub, body)) as stub:
        explainer = Explainer(index, features, endpoint(stub, answer_tokens=77), journal)
        estimate = explainer.estimate()
        explainer.run()
    assert len(stub.asked) == estimate.requests
    tokens = sum(estimated_tokens(body["messages"]) for body in stub.asked)
    assert tokens == estimate.prompt_tokens
    assert estimate.completion_tokens == sum(body["max_tokens"] for body in stub.asked)
    assert estimate.cost(1.0, 0.0) == tokens / 1e6


def numbered(stub: Stub, body: dict[str, Any]) -> Reply:
    """Explanations of full length, no two alike."""
    if is_explaining(body):
        return said(f"{len(stub.asked):03}" + "x" * (LONGEST_EXPLANATION - 3))
    return said(json.dumps([1] * len(passages(body))))


def test_what_was_answered_is_never_asked_again(index: FeatureIndex, tmp_path: Path) -> None:
    journal, report_file = tmp_path / "topk.jsonl", tmp_path / "report.json"

    def dies(stub: Stub, body: dict[str, Any]) -> Reply:
        return good(stub, body) if len(stub.asked) <= 20 else (500, {}, b"")

    with serving(dies) as stub:
        first = Explainer(index, WORDS[:2], endpoint(stub, tries=1, concurrency=1), journal)
        planned = first.estimate().requests
        with pytest.raises(UserError, match=r"20 answers in .* are kept"):
            first.run()
        stub.answer = good
        second = Explainer(index, WORDS[:2], endpoint(stub), journal)
        assert second.estimate().requests == planned - 20
        before = len(stub.asked)
        report = second.run()
        assert len(stub.asked) - before == planned - 20
        report_file.write_text(json.dumps(report))
        # more features: only those are asked about, and the report has all
        before = len(stub.asked)
        more = Explainer(index, FEW, endpoint(stub), journal, before=report_file)
        grown = more.run()
        asked = stub.texts()[before:]
        assert not set(asked) & set(stub.texts()[:before])
        assert set(grown["features"]) == {str(feature) for feature in FEW}
        assert {f: grown["features"][f] for f in report["features"]} == report["features"]
        # nothing is left to ask
        report_file.write_text(json.dumps(grown))
        before = len(stub.asked)
        done = Explainer(index, FEW, endpoint(stub), journal, before=report_file)
        assert done.estimate().requests == 0
        assert done.run()["features"] == grown["features"]
        assert len(stub.asked) == before


def test_another_model_is_another_question(index: FeatureIndex, journal: Path) -> None:
    with serving(good) as stub:
        Explainer(index, WORDS[:2], endpoint(stub), journal).run()
        other = Endpoint(stub.url, "other")
        assert Explainer(index, WORDS[:2], other, journal).estimate().requests == len(stub.asked)


def test_the_same_whatever_comes_at_a_time(index: FeatureIndex, tmp_path: Path) -> None:
    alone, _ = explained(index, tmp_path / "a.jsonl", good, features=FEW[:2], concurrency=1)
    many, _ = explained(index, tmp_path / "b.jsonl", good, features=FEW[:2], concurrency=8)
    assert alone["features"] == many["features"]


def test_it_runs_where_an_event_loop_runs(index: FeatureIndex, journal: Path) -> None:
    async def notebook(explainer: Explainer) -> dict[str, Any]:
        return explainer.run()

    with serving(good) as stub:
        report = asyncio.run(notebook(Explainer(index, WORDS[:2], endpoint(stub), journal)))
    assert report["summary"]["explained"] == 2


def test_features_that_cannot_be_tested_are_left_out(index: FeatureIndex, journal: Path) -> None:
    dead, dense = 4, 5
    with serving(good) as stub:
        explainer = Explainer(index, [dead, dense], endpoint(stub), journal)
        assert explainer.left_out == [dead, dense]
        assert explainer.estimate().requests == 0
        report = explainer.run()
    assert report["left_out"] == [dead, dense]
    assert report["summary"]["detection"]["balanced_accuracy"]["explanation"]["value"] is None


def test_mistakes_are_one_sentence(index: FeatureIndex, journal: Path) -> None:
    asked = Endpoint("http://localhost:9/v1", "stub")
    with pytest.raises(UserError, match="Feature 4000 does not exist"):
        Explainer(index, [4000], asked, journal)
    with pytest.raises(UserError, match="4 passages are too few"):
        Explainer(index, [0], asked, journal, passages=4)
