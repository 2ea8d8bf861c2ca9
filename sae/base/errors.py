"""Errors that end in one sentence: the person's mistake, or a result that cannot be trusted."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that a user can mend: one sentence with what was given, expected, and to do.

    The command line prints the sentence alone and exits with code 2; from Python it is a
    `ValueError` like any other.
    """


class CheckFailure(RuntimeError):  # noqa: N818 -- the check failed, not the program
    """The program does not trust its own result, and publishes none: one sentence, exit code 1."""


def nearest(given: str, valid: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the valid name closest to `given`, or `""`."""
    close = difflib.get_close_matches(given, list(valid), n=1, cutoff=0.5)
    return f" Did you mean `{close[0]}`?" if close else ""
