"""Untrusted text made visible: every character that cannot be seen gets a mark.

Token text can hold line ends, control characters, marks that turn the direction of writing, and
combining characters. `pieces` splits a text into plain parts and marks for the token view, which
draws marks faintly and puts everything into the page as text, never as HTML. `plain` is the same
in one string, for tables and charts, and `markdown` escapes it for Streamlit's labels.
"""

import re
import unicodedata
from functools import cache, lru_cache

NEWLINE, SPACE = "↵", "·"
_NAMED = {"\n": NEWLINE, "\r": "␍", "\t": "⇥", "\x7f": "␡", "\u00a0": "⍽"}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_RUN_OF_SPACES = re.compile(" {2,}")

Pieces = str | list[str]
"""A text without marks, or parts that are plain and marks in turn, plain first."""


@cache
def _mark(character: str) -> str | None:
    """The mark for a character that cannot be seen; None for one that can."""
    if character in _NAMED:
        return _NAMED[character]
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))  # Unicode's pictures of control characters
    hidden = unicodedata.category(character) in _HIDDEN or character in _BLANK_LETTERS
    if hidden and character != " ":
        return f"⟨U+{ord(character):04X}⟩"
    return None


@lru_cache(maxsize=1 << 17)
def pieces(text: str, *, spaces: bool = False) -> Pieces:
    """`text` for the token view.

    Spaces are marked if the text is nothing but two or more of them, so that indentation can be
    counted; with `spaces`, all at its ends are, as a token that stands alone needs it.
    A combining character at the start gets a dotted circle to sit on.
    """
    if text and unicodedata.category(text[0]) in ("Mn", "Mc", "Me"):
        text = "◌" + text
    body = text.strip(" ")
    lead = len(text) - len(text.lstrip(" "))
    marked_ends = spaces or (not body and len(text) > 1)
    parts = ["", ""]
    for at, character in enumerate(text):
        at_end = at < lead or at >= lead + len(body)
        mark = SPACE if character == " " and marked_ends and at_end else _mark(character)
        if mark is None:
            if parts[-1]:
                parts += ["", ""]
            parts[-2] += character
        else:
            parts[-1] += mark
    if not parts[-1]:
        parts.pop()
    return parts[0] if len(parts) == 1 else parts


def plain(text: str, *, spaces: bool = False) -> str:
    """`text` with its marks, in one string in which nothing is invisible."""
    found = pieces(text, spaces=spaces)
    return found if isinstance(found, str) else "".join(found)


def markdown(text: str) -> str:
    """`text` so that Streamlit's Markdown shows it as it is (labels, headings, tooltips)."""
    shown = _RUN_OF_SPACES.sub(lambda run: SPACE * len(run[0]), plain(text))
    return _PUNCTUATION.sub(r"\\\1", shown)
