"""The token view: one component, registered once, that draws all untrusted text.

Its script (`frontend/*.js`, one module) makes elements with `createElement` and `textContent`
only; it never parses HTML, so nothing in a token, a title or a label can become markup. Colours
come from the theme's `--st-*` variables. A click sends one event `{"kind": …, …}` to Python.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.components.v2 import component

_FRONTEND = Path(__file__).parent / "frontend"
_SCRIPTS = ("dom", "tokens", "bars", "cards", "table", "heat", "main")

Event = dict[str, Any]
Handler = Callable[[Event], None]

_mount = component(
    "loupe_view",
    html='<div class="loupe"></div>\n',
    css=(_FRONTEND / "style.css").read_text(),
    js="\n".join((_FRONTEND / f"{name}.js").read_text() for name in _SCRIPTS),
)


def view(layout: str, key: str, on_event: Handler | None = None, **data: Any) -> None:
    """Draws `data` in one of the layouts of `frontend/`.

    Args:
        layout: "examples", "text", "bars", "facts", "cards", "table" or "heat".
        key: unique on the page.
        on_event: called, before the page is drawn anew, with the event of a click.
    """

    def handle() -> None:
        event = st.session_state[key].get("event")
        if on_event is not None and event is not None:
            on_event(event)

    _mount(key=key, data={"layout": layout, **data}, on_event_change=handle)
