"""The client alone: what it sends, what it refuses to send, and that it keeps the key to itself."""

import asyncio
import json
from typing import Any

import pytest

from sae.base.errors import UserError
from sae.explain.endpoint import Answer, Client, Endpoint, Unanswered
from tests.explain.stub import Reply, Stub, said, serving

MESSAGES = [{"role": "user", "content": "?"}]
KEY = "sk-secret-0123456789"


def ask(endpoint: Endpoint, times: int = 1) -> Answer:
    async def asking() -> Answer:
        async with Client(endpoint) as client:
            for _ in range(times - 1):
                await client.ask(MESSAGES)
            return await client.ask(MESSAGES)

    return asyncio.run(asking())


def test_the_key_is_sent_and_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def parrot(stub: Stub, body: dict[str, Any]) -> Reply:
        return said(f"you are {stub.keys[-1]}")

    with serving(parrot) as stub:
        endpoint = Endpoint(stub.url, "stub")
        answer = ask(endpoint)
        assert stub.keys == [f"Bearer {KEY}"]
        assert answer.content == "you are Bearer (key)"
        assert KEY not in repr(endpoint)
        assert KEY not in json.dumps(stub.asked)
        stub.answer = lambda stub, body: (401, {}, f"bad key {KEY}".encode())
        with pytest.raises(UserError, match=r"refuses \(401 bad key \(key\)\)") as told:
            ask(endpoint)
        assert KEY not in str(told.value)
        ask_without = Endpoint(stub.url, "stub", key_variable=None)
        stub.answer = lambda stub, body: said("hello")
        assert ask(ask_without).content == "hello"
        assert stub.keys[-1] is None


def test_the_key_goes_to_no_other_machine_unencrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    Endpoint("http://gpu7.lab/v1", "stub")  # no key, nothing to protect
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for host in ("gpu7.lab", "10.0.0.7", "localhost.example.org"):
        with pytest.raises(UserError, match="unencrypted"):
            Endpoint(f"http://{host}/v1", "stub")
        Endpoint(f"https://{host}/v1", "stub")
        Endpoint(f"http://{host}/v1", "stub", key_variable=None)
    for host in ("127.0.0.1:8000", "localhost", "[::1]:8000"):
        Endpoint(f"http://{host}/v1", "stub")
    monkeypatch.setenv("OPENAI_API_KEY", "sk\nX-Other: header")
    with pytest.raises(UserError, match="characters that no key has"):
        Endpoint("https://localhost/v1", "stub")


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda stub, body: said("caught")) as other:
        with serving(lambda stub, body: (307, {"Location": other.url}, b"")) as stub:
            with pytest.raises(UserError, match="refuses"):
                ask(Endpoint(stub.url, "stub"))
            assert len(stub.asked) == 1
        assert not other.asked


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("localhost:8000", "no address of an endpoint"),
        ("", "no address"),
        ("ftp://x/v1", "no address"),
        ("http://", "no address"),
        ("http://[::1", "no address"),
        ("https://me:secret@host/v1", "name or password"),
    ],
)
def test_addresses_that_are_none(given: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as told:
        Endpoint(given, "stub")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("http://localhost:1/v1", "http://localhost:1/v1/chat/completions"),
        ("http://localhost:1/v1/", "http://localhost:1/v1/chat/completions"),
        ("https://host/x/chat/completions", "https://host/x/chat/completions"),
        ("https://host/x?api-key=secret", "https://host/x/chat/completions"),
    ],
)
def test_addresses(given: str, name: str) -> None:
    assert Endpoint(given, "stub").name == name


def test_parameters_that_newer_models_want_otherwise() -> None:
    def picky(stub: Stub, body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            return 400, {}, b"Unsupported parameter: use 'max_completion_tokens' instead."
        if "temperature" in body:
            return 400, {}, b"'temperature' does not support 0 with this model."
        return said("fine", prompt_tokens=3, completion_tokens=2)

    with serving(picky) as stub:
        answer = ask(Endpoint(stub.url, "stub", answer_tokens=9), times=2)
        assert answer == Answer("fine", 3, 2)
        assert len(stub.asked) == 4  # learnt once
        assert stub.asked[-1]["max_completion_tokens"] == 9


def test_one_who_asks_for_a_wait_gets_it() -> None:
    def busy(stub: Stub, body: dict[str, Any]) -> Reply:
        return said("fine") if len(stub.asked) > 1 else (429, {"Retry-After": "0.2"}, b"")

    with serving(busy) as stub:
        import time

        began = time.monotonic()
        assert ask(Endpoint(stub.url, "stub", patience=0.001)).content == "fine"
        assert 0.2 <= time.monotonic() - began < 2


def test_one_who_trickles_is_given_up() -> None:
    """Each byte is in time, the whole is not."""

    def trickle(stub: Stub, body: dict[str, Any]) -> Reply:
        stub.stop.wait(5)
        return said("late")

    with serving(trickle) as stub:
        with pytest.raises(Unanswered, match=r"no answer within 0.05 s"):
            ask(Endpoint(stub.url, "stub", timeout=0.05, tries=2, patience=0.001))
        assert len(stub.asked) == 2
