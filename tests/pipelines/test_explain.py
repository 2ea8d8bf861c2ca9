"""`sae explain`: consent, a kill, what lies in the run after, and what is never in it."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines import explain as command
from sae.base.files import read_json
from sae.base.sums import problems_of
from sae.explain.journal import Journal
from tests.explain.stub import Reply, Stub, good, serving
from tests.features.synthetic import make_index
from tests.pipelines.command import sae

ROOT = Path(__file__).parents[2]
KEY = "sk-secret-0123456789"
CHOSEN = ("--features", "0,11,12")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    folder = tmp_path / "run"
    make_index(folder / "features" / "topk")
    return folder


def arguments(run: Path, stub: Stub, *more: str) -> list[str]:
    return ["explain", str(run), "--endpoint", stub.url, "--model", "stub", *CHOSEN, *more]


def test_nothing_is_sent_without_consent(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(good) as stub:
        output = sae(*arguments(run, stub), code=2)
        assert "no terminal" in output
        assert re.search(r"to send +\d+ requests", output)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr(command.click, "confirm", lambda *_, **__: False)
        assert "Nothing was sent" in sae(*arguments(run, stub))
        assert not stub.asked
        assert not (run / "explanations").exists()
        assert not (run / "evaluation").exists()
        monkeypatch.setattr(command.click, "confirm", lambda *_, **__: True)
        sae(*arguments(run, stub))
        assert stub.asked


def test_what_is_said_is_what_is_sent(run: Path) -> None:
    with serving(good) as stub:
        more = ("--yes", "--price-in", "1000", "--price-out", "0", "--answer-tokens", "50")
        output = sae(*arguments(run, stub, *more))
    found = re.search(r"to send +(\d+) requests", output)
    assert found is not None
    assert int(found[1]) == len(stub.asked)
    assert f"{50 * len(stub.asked):,} completion tokens" in output
    assert re.search(r"costs +about \d+\.\d\d", output)
    assert "Explanations: 3 of 3" in output
    assert problems_of(run / "evaluation") == []
    report = read_json(run / "evaluation/mechanisms/topk.explanations.json")
    assert report["features"]["0"]["explanation"] == "the word return"
    # nothing is left to ask, and so to consent to; the server is gone
    assert "3 are in the report already" in sae(*arguments(run, stub))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_without_asking_twice(run: Path, number: signal.Signals) -> None:
    def slow(stub: Stub, body: dict[str, Any]) -> Reply:
        time.sleep(0.05)
        return good(stub, body)

    with serving(slow) as stub:
        command = [sys.executable, "-m", "pipelines.cli", *arguments(run, stub, "--yes")]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while len(stub.asked) < 15 and child.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        os.kill(child.pid, number)
        assert child.wait(10) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        time.sleep(0.1)
        kept = set(Journal(run / "explanations" / "topk.jsonl").answers)
        first = len(stub.asked)
        assert 0 < len(kept) < first + 1
        assert not (run / "evaluation").exists()
        output = sae(*arguments(run, stub, "--yes"))
        assert "Explanations: 3 of 3" in output
        texts = stub.texts()
        twice = len(texts) - len(set(texts))
        assert twice == first - len(kept) <= 4  # those that were on their way
    assert problems_of(run / "evaluation") == []


def test_the_key_is_nowhere(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", KEY)

    number = itertools.count()

    def parrot(stub: Stub, body: dict[str, Any]) -> Reply:
        status, headers, data = good(stub, body)
        if next(number) == 2:
            return 400, {}, f"what is {KEY}?".encode()
        return status, {**headers, "X-Key": KEY}, data.replace(b"word", f"word {KEY}".encode(), 1)

    with serving(parrot) as stub:
        output = sae(*arguments(run, stub, "--yes", "--key-variable", "OTHER_KEY"))
        assert set(stub.keys) == {f"Bearer {KEY}"}
        stub.answer = lambda stub, body: (403, {}, KEY.encode())
        output += sae(*arguments(run, stub, "--key-variable", "OTHER_KEY", "--yes"), code=2)
    assert KEY not in output
    written = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not any(KEY.encode() in data for data in written)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "give --endpoint URL"),
        (["--endpoint", "http://localhost:1/v1"], "and --model NAME"),
        (["--endpoint", "nowhere", "--model", "m"], "no address of an endpoint"),
        (["--endpoint", "http://localhost:1", "--model", "m", "--most", "0"], "--most 0"),
        (["--endpoint", "http://localhost:1", "--model", "m", "--features", "zz>1"], "`zz`"),
        (["--endpoint", "http://localhost:1", "--model", "m", "--coder", "tpok"], "tpok"),
        (["--endpoint", "http://localhost:1", "--model", "m", "--concurrency", "0"], "above 0"),
    ],
)
def test_mistakes(run: Path, given: list[str], sentence: str) -> None:
    output = sae("explain", str(run), *given, code=2)
    assert sentence in output
    assert "Traceback" not in output


def test_verify_looks_at_kept_answers(copy: Path) -> None:
    make_index(copy / "features" / "words")
    with serving(good) as stub:
        sae(*arguments(copy, stub, "--yes", "--coder", "words"))
    assert "sound" in sae("verify", str(copy))
    journal = copy / "explanations" / "words.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"word", b"work", 1))
    assert f"{journal}: line 1 is not what was written" in sae("verify", str(copy), code=1)


def test_labels_against_random_directions(copy: Path) -> None:
    output = sae("mechanisms", "labels", str(copy), "--directions", "24")
    assert "random directions" in output
    report = read_json(copy / "evaluation/mechanisms/topk.labels.json")
    assert len(report["pairs"]) == 24
    assert report["difference"]["auc"]["pairs"] > 0
    assert "sound" in sae("verify", str(copy))
