"""Tells Streamlit's client, in the page itself, where its server is."""

import json

import streamlit as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEAD = b"<head>"


class BaseUrl:
    """ASGI middleware that writes `window.__streamlit.BACKEND_BASE_URL` into the HTML page.

    That variable is the one by which hosts of Streamlit say the same. A page without `<head>`
    (another version of Streamlit) passes unchanged, and the client looks for the server itself.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        page = _Page(send)
        await self.app(_uncompressed(scope), receive, page.send)


def _uncompressed(scope: Scope) -> Scope:
    """The request for a page without `Accept-Encoding`, so that it can be read."""
    wants_page = any(name == b"accept" and b"text/html" in text for name, text in scope["headers"])
    if not wants_page:
        return scope
    left_out = (b"accept-encoding", b"if-none-match", b"if-modified-since")
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0] not in left_out]}


class _Page:
    """Holds an HTML response back until it is whole, and sends it with the script in its head."""

    def __init__(self, send: Send):
        self.forward = send
        self.start: Message | None = None
        self.body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            html = headers.get(b"content-type", b"").startswith(b"text/html")
            if html and b"content-encoding" not in headers:
                self.start = message
                return
        if self.start is None or message["type"] != "http.response.body":
            await self.forward(message)
            return
        self.body += message.get("body", b"")
        if message.get("more_body", False):
            return
        start, self.start = self.start, None
        body = self.body.replace(_HEAD, _HEAD + _script(), 1)
        kept = [pair for pair in start["headers"] if pair[0] not in (b"content-length", b"etag")]
        length = (b"content-length", str(len(body)).encode())
        await self.forward({**start, "headers": [*kept, length]})
        await self.forward({"type": "http.response.body", "body": body})


def _script() -> bytes:
    path = str(st.get_option("server.baseUrlPath") or "").strip("/")
    root = json.dumps(f"/{path}/" if path else "/")
    return (
        "<script>window.__streamlit = Object.assign(window.__streamlit || {}, "
        f"{{BACKEND_BASE_URL: new URL({root}, window.location.origin).href}})</script>"
    ).encode()
