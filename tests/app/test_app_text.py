"""Untrusted text: what cannot be seen is marked, and nothing becomes markup."""

import unicodedata

import pytest

from app import figures
from app.visible import markdown, pieces, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("word", "word"),
        (" word", " word"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("\n", ["", "↵"]),
        ("a\nb", ["a", "↵", "b"]),
        ("\t\x00\x7f", ["", "⇥␀␡"]),
        ("    ", ["", "····"]),
        (" ", " "),
        ("\u202eabc", ["", "⟨U+202E⟩", "abc"]),
        ("a\u200bb", ["a", "⟨U+200B⟩", "b"]),
        ("\u00a0", ["", "⍽"]),
        ("\u0301", "◌\u0301"),
        ("\u3164", ["", "⟨U+3164⟩"]),
        ("", ""),
    ],
)
def test_pieces(text: str, shown: str | list[str]) -> None:
    assert pieces(text) == shown


def test_a_token_that_stands_alone_shows_the_spaces_at_its_ends() -> None:
    assert pieces(" the end ", spaces=True) == ["", "·", "the end", "·"]
    assert plain(" ", spaces=True) == "·"


def test_nothing_invisible_is_left() -> None:
    every = "".join(map(chr, [*range(0x3000), 0x3164, 0xFEFF, 0xFFA0, 0xE0041, 0x10FFFF]))
    left = {c for c in plain(every) if unicodedata.category(c)[0] == "C" or c == "\u2028"}
    assert left == set()


def test_markdown_escapes_all_that_streamlit_would_read() -> None:
    nasty = "<b>*x*</b> `y` :red[z] $a$ [l](javascript:1) ![i](u) # h"
    escaped = markdown(nasty)
    for at, character in enumerate(escaped):
        if character in "<>*`:$[]()!#":
            assert escaped[at - 1] == "\\"
    assert escaped.replace("\\", "") == nasty


def test_markdown_keeps_spaces_that_html_would_fold() -> None:
    assert markdown("a    b") == "a····b"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 %"), (1, "100 %"), (0.1234, "12.3 %"), (0.00123, "0.123 %"), (1e-8, "1.0e-06 %")],
)
def test_share(value: float, shown: str) -> None:
    assert figures.share(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(float("nan"), "–"), (3.0, "3"), (3.14159, "3.14"), (12345.6, "12,346"), (1e-6, "1.00e-06")],
)
def test_number(value: float, shown: str) -> None:
    assert figures.number(value) == shown


def test_count() -> None:
    assert [figures.count(n) for n in (999, 12_345, 1_000_000)] == ["999", "12.3 k", "1 M"]
