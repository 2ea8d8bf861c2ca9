"""What a page shows lies in its URL, so that links, reload and the back button just work.

The query parameters are the one truth. `bound` copies a parameter into the state of the widget of
the same name before the widget is drawn, and hands out the callback that writes it back. (The
`bind=` of Streamlit's widgets does the same for one page, but then forbids links that set a bound
parameter, such as "open feature 7 of coder b".)
"""

from collections.abc import Callable
from typing import Any, TypeVar

import streamlit as st

T = TypeVar("T")

CARRIED = ("coder", "filter", "sort", "order", "context")
"""Parameters that stay when another page or feature is opened."""
FEATURE_PAGE = "pages_/feature.py"


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
    new = st.query_params.to_dict()
    for name, wanted in changes.items():
        if wanted is None:
            new.pop(name, None)
        else:
            new[name] = str(wanted)
    if new != st.query_params.to_dict():
        st.query_params.from_dict(new)


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
    """Goes to a feature's page; call it in a callback."""
    st.switch_page(FEATURE_PAGE, query_params=carried(feature=feature))
