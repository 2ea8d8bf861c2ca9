"""An OpenAI-compatible chat endpoint: one question, one answer, within bounds of time and size.

What comes back is untrusted. The key is read from the environment when it is used; it is in no
record, message or file, and is never sent unencrypted to another machine.
"""

import asyncio
import ipaddress
import json
import os
import random
from dataclasses import dataclass, field
from typing import Any

import httpx2

from sae.base.errors import UserError
from sae.explain.prompts import Messages

KEY_VARIABLE = "OPENAI_API_KEY"
LARGEST_RESPONSE = 2**20
LONGEST_WAIT = 60.0
LONGEST_REASON = 200
AGAIN = (408, 409, 425, 429)
"""Status codes, beside those from 500 on, after which the same request may well pass."""
HOPELESS = (401, 402, 403, 404, 405)
"""Status codes that every other request would get as well."""


class Unanswered(Exception):  # noqa: N818 -- what happened to a request, not a defect
    """One request got no answer, for the reason that is given; others may."""


@dataclass(frozen=True)
class Answer:
    """`content` is None where the response could not be read; tokens, where the endpoint told."""

    content: str | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently.

    Args:
        url: of the API, such as http://localhost:8000/v1; `/chat/completions` is added.
        key_variable: environment variable with the API key; None, or one that is not set: no key.
        answer_tokens: cap on the tokens of an answer (a model that thinks aloud needs more).
        timeout: seconds for one try.
        tries: of a request that fails by time-out, 429 or 5xx; waits double from `patience`
            seconds on, or are what `Retry-After` asks for.
        concurrency: requests at a time.

    Raises:
        UserError: a URL that is none, has a name and password, or would carry the key unencrypted.
    """

    url: str
    model: str
    key_variable: str | None = KEY_VARIABLE
    answer_tokens: int = 300
    timeout: float = 120.0
    tries: int = 5
    patience: float = 1.0
    concurrency: int = 4

    def __post_init__(self) -> None:
        url = self.address
        if url.scheme not in ("http", "https") or not url.host:
            raise UserError(
                f"`{self.url}` is no address of an endpoint; give one such as "
                "http://localhost:8000/v1."
            )
        if url.userinfo:
            raise UserError(
                "The endpoint's address holds a name or password; put a key into the environment "
                f"variable {self.key_variable or KEY_VARIABLE} instead."
            )
        if self.key and url.scheme == "http" and not _is_this_machine(url.host):
            raise UserError(
                f"The key in {self.key_variable} would go to {url.host} unencrypted; give an "
                "https address, or `--key-variable none` for an endpoint that needs no key."
            )
        if not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise UserError(f"The key in {self.key_variable} holds characters that no key has.")
        if min(self.answer_tokens, self.tries, self.concurrency) < 1 or self.timeout <= 0:
            raise UserError("Answer tokens, tries, concurrency and time-out must be above 0.")

    @property
    def address(self) -> httpx2.URL:
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL:
            return httpx2.URL("")
        path = url.path.rstrip("/").removesuffix("/chat/completions")
        return url.copy_with(path=f"{path}/chat/completions")

    @property
    def name(self) -> str:
        """The address without its query, in which some put a key."""
        return str(self.address.copy_with(query=None))

    @property
    def key(self) -> str:
        return os.environ.get(self.key_variable or "", "").strip()


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@dataclass
class Client:
    """Asks; an asynchronous context manager. `changes`: what the endpoint wants put otherwise."""

    endpoint: Endpoint
    changes: set[str] = field(default_factory=set)

    async def __aenter__(self) -> "Client":
        key = self.endpoint.key
        headers = {"Accept-Encoding": "identity"}  # nothing that unfolds to more than was sent
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self.http = httpx2.AsyncClient(headers=headers, timeout=None, follow_redirects=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def ask(self, messages: Messages) -> Answer:
        """The answer to one request.

        Raises:
            Unanswered: this one failed, after as many tries as make sense.
            UserError: the endpoint refuses in a way that it would refuse all others.
        """
        reason, tries = "", 0
        while tries < self.endpoint.tries:
            status, body, wait, sent = 0, b"", None, frozenset(self.changes)
            try:
                async with asyncio.timeout(self.endpoint.timeout):
                    status, body, wait = await self._post(messages)
            except TimeoutError:
                reason = f"no answer within {self.endpoint.timeout:g} s"
            except httpx2.HTTPError as error:
                reason = self._clean(f"{type(error).__name__} {error}")
            if 200 <= status < 300:
                return self._answer(body)
            if status:
                reason = f"{status} {self._clean(body.decode('utf-8', 'replace'))}".strip()
            if status in (400, 422) and self._adapts(reason, sent):
                continue
            if status in HOPELESS or 300 <= status < 400:
                raise UserError(
                    f"{self.endpoint.name} refuses ({reason}); check the address, the model "
                    f"`{self.endpoint.model}` and the key in {self.endpoint.key_variable}."
                )
            if status and status < 500 and status not in AGAIN:
                break
            tries += 1
            if tries < self.endpoint.tries:
                await asyncio.sleep(self._pause(tries, wait))
        raise Unanswered(reason)

    async def _post(self, messages: Messages) -> tuple[int, bytes, str | None]:
        """(status, body up to `LARGEST_RESPONSE`, Retry-After)."""
        body, asked = bytearray(), self._body(messages)
        async with self.http.stream("POST", self.endpoint.address, json=asked) as got:
            async for part in got.aiter_raw():
                body += part
                if len(body) > LARGEST_RESPONSE:
                    body.clear()  # reads as an answer without content
                    break
            return got.status_code, bytes(body), got.headers.get("Retry-After")

    def _body(self, messages: Messages) -> dict[str, Any]:
        cap = "max_completion_tokens" if "cap" in self.changes else "max_tokens"
        most = self.endpoint.answer_tokens
        body = {"model": self.endpoint.model, "messages": messages, cap: most}
        return body if "temperature" in self.changes else {**body, "temperature": 0}

    def _adapts(self, reason: str, sent: frozenset[str]) -> bool:
        """Whether the refusal is of a parameter that newer models want otherwise."""
        for change, word in (("cap", "max_completion_tokens"), ("temperature", "temperature")):
            if word in reason and change not in sent:
                self.changes.add(change)
                return True
        return False

    def _pause(self, tries: int, wait: str | None) -> float:
        try:
            asked = float(wait or "")
        except ValueError:
            asked = 0.0
        own = self.endpoint.patience * 2 ** (tries - 1) * random.uniform(0.8, 1.2)
        return min(max(own, asked if asked > 0 else 0.0), LONGEST_WAIT)

    def _answer(self, body: bytes) -> Answer:
        try:
            value = json.loads(body)
            content = value["choices"][0]["message"]["content"]
            usage = value.get("usage") or {}
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return Answer(None)
        told = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        return Answer(self._without_key(content) if isinstance(content, str) else None, *told)

    def _clean(self, text: str) -> str:
        """A server's words for a sentence of ours."""
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return self._without_key(text)[:LONGEST_REASON]

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key in what they say."""
        return text.replace(self.endpoint.key, "(key)") if self.endpoint.key else text


def _count(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and 0 <= value < 2**40 else None
