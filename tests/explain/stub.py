"""A chat endpoint on this machine that answers as a test wants, and remembers what it was asked."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sae.explain.passages import CLOSE, OPEN

Reply = tuple[int, dict[str, str], bytes]
Answer = Callable[["Stub", dict[str, Any]], Reply]
MARKED = re.compile(f"{OPEN}(.*?){CLOSE}")


class Stub:
    """`asked`: the bodies of all requests; `keys`: what their Authorization headers said."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.stop = threading.Event()
        self.url = ""

    def texts(self) -> list[str]:
        return [json.dumps(body["messages"]) for body in self.asked]


@contextmanager
def serving(answer: Answer) -> Iterator[Stub]:
    stub = Stub(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.asked.append(body)
            stub.keys.append(self.headers.get("Authorization"))
            status, headers, data = stub.answer(stub, body)
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # whoever asked has gone
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Not in a test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield stub
    finally:
        stub.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


def said(content: object, **usage: int) -> Reply:
    """A well-formed response."""
    value = {"choices": [{"message": {"role": "assistant", "content": content}}], "usage": usage}
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def passages(body: dict[str, Any]) -> list[str]:
    """The numbered passages of a question."""
    lines = body["messages"][1]["content"].splitlines()
    return [json.loads(line[line.index('"') :]) for line in lines if line[:1].isdigit()]


def is_explaining(body: dict[str, Any]) -> bool:
    return '"explanation"' in body["messages"][0]["content"]


def good(stub: Stub, body: dict[str, Any]) -> Reply:
    """Names the word that is marked most, and looks for it."""
    shown = passages(body)
    if is_explaining(body):
        words = Counter(word.strip() for text in shown for word in MARKED.findall(text))
        answer = json.dumps({"explanation": f"the word {words.most_common(1)[0][0]}"})
        return said(f"```json\n{answer}\n```", prompt_tokens=100, completion_tokens=9)
    description = body["messages"][1]["content"].splitlines()[0]
    word = json.loads(description.removeprefix("Description: ")).removeprefix("the word ")
    fuzzing = "Decide for each passage whether these" in body["messages"][0]["content"]
    marked = [MARKED.findall(text) if fuzzing else text.split() for text in shown]
    verdicts = [int(word in [one.strip() for one in found]) for found in marked]
    return said(json.dumps(verdicts), prompt_tokens=50, completion_tokens=30)


def yes(stub: Stub, body: dict[str, Any]) -> Reply:
    """Says something of no use, and yes to everything."""
    if is_explaining(body):
        return said('{"explanation": "some tokens"}')
    return said(json.dumps([1] * len(passages(body))))
