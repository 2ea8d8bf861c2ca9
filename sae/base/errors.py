"""Errors that end in one sentence: the person's mistake, or a result that cannot be trusted."""

import difflib
from collections.abc import Iterable

LONGEST = 600
"""Characters of a sentence; what is given may be of any length, and is cut in the middle."""


class UserError(ValueError):
    """A mistake that a user can mend: one sentence with what was given, expected, and to do.

    The command line prints the sentence alone and exits with code 2; from Python it is a
    `ValueError` like any other.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence))


class CheckFailure(RuntimeError):  # noqa: N818 -- the check failed, not the program
    """The program does not trust its own result, and publishes none: one sentence, exit code 1."""

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence))


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text as a terminal can show it: what files and people give may hold anything, such as
    line breaks, codes that colour or clear the screen, and a million letters."""
    text = _cut(" ".join(_cut(text, 10 * longest).split()), longest)
    return _cut("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), longest)


def _cut(text: str, longest: int) -> str:
    """Its beginning and its end, which says what to do."""
    if len(text) <= longest:
        return text
    return f"{text[: longest * 3 // 5]} … {text[-(longest // 3) :]}"


def nearest(given: str, valid: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the valid name closest to `given`, or `""`."""
    close = difflib.get_close_matches(given, list(valid), n=1, cutoff=0.5)
    return f" Did you mean `{close[0]}`?" if close else ""
