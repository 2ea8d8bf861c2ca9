"""What a page shows lies in its URL, so that links, reload and the back button just work.

The query parameters are the one truth. `bound` copies a parameter into the state of the widget of
the same name before the widget is drawn, and hands out the callback that writes it back. (The
`bind=` of Streamlit's widgets does the same for one page, but then forbids links that set a bound
parameter, such as "open feature 7 of coder b".)
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

T = TypeVar("T")

CARRIED = ("coder", "filter", "sort", "order", "context")
"""Parameters that stay when another page or feature is opened."""
FEATURE_PAGE = "pages_/feature.py"
PATIENCE = 5.0
"""Seconds after a run in which a click is taken for one that had not heard of its change."""
_WAY, _WRITTEN = "way-to-feature", "written-parameters"


def value(name: str, default: T, parse: Callable[[str], T] = str) -> T:
    """The parameter `name`, or `default` where it is absent or makes no sense."""
    text = st.query_params.get(name)
    if text is None:
        return default
    try:
        return parse(text)
    except (ValueError, KeyError):
        return default


def one_of(options: list[str]) -> Callable[[str], str]:
    """A parser for `value` and `bound` that takes only these."""

    def parse(text: str) -> str:
        if text not in options:
            raise ValueError(text)
        return text

    return parse


def put(**changes: Any) -> None:
    """Writes parameters, all in one step of the browser's history; None takes one away."""
    _repair()
    old = st.query_params.to_dict()
    new = dict(old)
    for name, wanted in changes.items():
        if wanted is None:
            new.pop(name, None)
        else:
            new[name] = str(wanted)
    if new != old:
        st.query_params.from_dict(new)
        olds = [*_written().olds, old]
        st.session_state[_WRITTEN] = _Written(olds, new, _page(), time.monotonic(), True)


class _Written(NamedTuple):
    """The last `put`.

    Attributes:
        olds: URLs from before it that may still come in.
        new: the parameters that it wrote.
        page: on which.
        time: when the run ended that drew them.
        here: that run is still this one, so the parameters are our own, not the client's.
    """

    olds: list[dict[str, str]]
    new: dict[str, str]
    page: str
    time: float
    here: bool


def start_of_run() -> None:
    """Puts right a URL that is behind; called first in the script that all pages share.

    The client sends its URL with every click, and a click made before it has heard of the last
    `put` carries the URL from before: taken at its word, it would undo that. (Typing a text and
    pressing a button does just this: the field's change and the click come as two requests.)
    Steps in the browser's history mean what they say.
    """
    if _written().here:  # by a callback, just now
        st.session_state[_WRITTEN] = _written()._replace(here=False)
    else:
        _repair()


def end_of_run() -> None:
    """Called when a page is drawn or given up: clicks made meanwhile are only now to come in."""
    if _WRITTEN in st.session_state:
        st.session_state[_WRITTEN] = _written()._replace(time=time.monotonic())


def _repair() -> None:
    written, context = _written(), get_script_run_ctx()
    if written.here or not written.olds:
        return
    now = st.query_params.to_dict()
    stepped = context is not None and context.is_history_navigation
    late = time.monotonic() - written.time > PATIENCE
    if now == written.new or stepped or late or written.page != _page():
        st.session_state.pop(_WRITTEN, None)
    elif now in written.olds:
        st.query_params.from_dict(written.new)


def _written() -> _Written:
    return st.session_state.get(_WRITTEN, _Written([], {}, "", 0.0, False))


def _page() -> str:
    context = get_script_run_ctx()
    return context.page_script_hash if context is not None else ""


def bound(
    name: str,
    default: T,
    parse: Callable[[str], T] = str,
    *,
    clears: tuple[str, ...] = (),
) -> Callable[[], None]:
    """Call before the widget with `key=name`; give the result as its `on_change`.

    The default is left out of the URL. `clears` names parameters that lose their meaning when
    this one changes.
    """
    st.session_state[name] = value(name, default, parse)

    def write_back() -> None:
        chosen = st.session_state[name]
        kept = None if chosen is None or chosen == default else chosen
        put(**dict.fromkeys(clears), **{name: kept})

    return write_back


def carried(**more: Any) -> dict[str, str]:
    """Parameters for a link to another page."""
    kept = {name: st.query_params[name] for name in CARRIED if name in st.query_params}
    return kept | {name: str(new) for name, new in more.items() if new is not None}


def open_feature(feature: int) -> None:
    """Goes to a feature's page; call it in a callback, also of a dialog or fragment."""
    st.session_state[_WAY] = carried(feature=feature)
    st.rerun()


def follow() -> None:
    """Goes where a callback wanted to; for the script that all pages share."""
    query = st.session_state.pop(_WAY, None)
    if query is not None:
        st.switch_page(FEATURE_PAGE, query_params=query)
