"""Concepts with a rule: which tokens of a text are digits, a quotation, a URL, a comment …

A rule marks characters of the text that the tokens spell; a token has the concept if more than
half of its characters that are no white space are marked (of a token of white space: of all).
Labels are 1, 0, or -1 where the rule cannot tell: what part of Python's syntax a token is, is
asked of code alone, as far as `tokenize` understands it, so that a detector of code gains nothing.
"""

import io
import keyword
import re
import tokenize
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int8]
Marks = npt.NDArray[np.int8]  # (characters,): 1, 0, or -1 for unknown
YES, NO, UNKNOWN = 1, 0, -1

PATTERNS: dict[str, str] = {
    "digits": r"\d+",
    "upper_case": r"\b[A-Z]{2,}\b",
    "capitalised": r"\b[A-Z][a-z]+\b",
    "snake_case": r"\b\w*[A-Za-z0-9]_\w+\b",
    "quotation": r"“[^”\n]{1,400}”|(?<!\w)\"[^\"\n]{1,400}\"",
    "url": r"\b(?:https?|ftp)://[^\s<>\"')\]]+",
    "hexadecimal": r"\b0[xX][0-9a-fA-F]+\b|\b(?=\w*\d)(?=\w*[a-fA-F])[0-9a-fA-F]{6,}\b",
    "base64": r"(?<![\w+/])(?=[A-Za-z0-9+/]*[A-Z])(?=[A-Za-z0-9+/]*[a-z])(?=[A-Za-z0-9+/]*\d)"
    r"[A-Za-z0-9+/]{24,}={0,2}",
    "brackets": r"[()\[\]{}]",
    "doctest": r"(?m)^[ \t]*(?:>>>|\.\.\.) .*$",
}
SYNTAX = ("comment", "string", "keyword", "operator", "number", "definition", "call")
SCRIPTS = ("Greek", "Cyrillic", "Arabic", "Hebrew", "Han", "other")


@dataclass(frozen=True)
class Piece:
    """Text that T tokens spell, and the characters [start_T, stop_T) of each; some may share one.

    The text may begin before the first of them: what stands there decides what they are. `code`
    says whether it is Python source: True, False, or None where nobody knows.
    """

    text: str
    start_T: npt.NDArray[np.int64]
    stop_T: npt.NDArray[np.int64]
    code: bool | None = None

    @classmethod
    def of(
        cls, tokens: Sequence[bytes], code: bool | None = None, before: Sequence[bytes] = ()
    ) -> "Piece":
        """From the bytes of each token; bytes that are no UTF-8 are characters of their own.

        `before` are those of the tokens that precede them in their document.
        """
        own, tokens = len(before), [*before, *tokens]
        text = b"".join(tokens).decode("utf-8", "surrogateescape")
        sizes = [len(c.encode("utf-8", "surrogateescape")) for c in text]
        character_of_byte = np.repeat(np.arange(len(text)), sizes)
        sizes_T = np.array([len(token) for token in tokens], np.int64)
        ends = np.cumsum(sizes_T)
        starts = ends - sizes_T
        padded: npt.NDArray[np.int64] = np.append(character_of_byte, len(text)).astype(np.int64)
        last = np.where(ends > starts, padded[np.maximum(ends - 1, 0)] + 1, padded[starts])
        return cls(text, padded[starts][own:], last[own:], code)

    def labels(self, marks: Marks) -> Labels:
        """(T,) labels of tokens from marks of characters."""
        blank = np.array([c.isspace() for c in self.text], bool)
        label_T = np.full(len(self.start_T), NO, np.int8)
        for number, (start, stop) in enumerate(zip(self.start_T, self.stop_T, strict=True)):
            own, white = marks[start:stop], blank[start:stop]
            seen = own if white.all() else own[~white]
            if len(seen) and (seen == UNKNOWN).any():
                label_T[number] = UNKNOWN
            elif len(seen):
                label_T[number] = YES if (seen == YES).mean() > 0.5 else NO
        return label_T


Rule = Callable[[Piece], dict[str, Marks]]


def label(piece: Piece) -> dict[str, Labels]:
    """The labels (T,) of every concept."""
    marks: dict[str, Marks] = {}
    for rule in (pattern_marks, script_marks, syntax_marks):
        marks |= rule(piece)
    return {name: piece.labels(found) for name, found in marks.items()}


def names() -> list[str]:
    """Every token-level concept, in one order."""
    return [*PATTERNS, *(f"script_{s}" for s in SCRIPTS), *(f"syntax_{s}" for s in SYNTAX)]


def pattern_marks(piece: Piece) -> dict[str, Marks]:
    """What regular expressions find."""
    found = {}
    for name, pattern in PATTERNS.items():
        found[name] = np.zeros(len(piece.text), np.int8)
        for match in re.finditer(pattern, piece.text):
            found[name][match.start() : match.end()] = YES
    return found


def script_marks(piece: Piece) -> dict[str, Marks]:
    """Letters by their script, but for Latin."""
    scripts = np.array([_script(character) for character in piece.text])
    return {f"script_{name}": (scripts == name).astype(np.int8) for name in SCRIPTS}


def syntax_marks(piece: Piece) -> dict[str, Marks]:
    """Parts of Python's syntax, in code; all unknown elsewhere and behind what cannot be read."""
    marks = {f"syntax_{n}": np.full(len(piece.text), UNKNOWN, np.int8) for n in SYNTAX}
    if not piece.code:
        return marks
    read = 0
    line_starts = np.cumsum([0, *(len(line) + 1 for line in piece.text.split("\n"))])
    for token, kinds in _python_tokens(piece.text):
        start, stop = (
            int(line_starts[row - 1]) + column for row, column in (token.start, token.end)
        )
        stop = min(stop, len(piece.text))
        for found in marks.values():
            found[read:stop] = NO
        for kind in kinds:
            marks[f"syntax_{kind}"][start:stop] = YES
        read = max(read, stop)
    return marks


def _python_tokens(text: str) -> Iterator[tuple[tokenize.TokenInfo, list[str]]]:
    """Tokens with their kinds. Text that starts or ends in the middle of a file ends early: what
    follows the first thing that cannot be read is not told."""
    before = None
    held: tuple[tokenize.TokenInfo, list[str]] | None = None  # a name may turn out to be a call
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.ERRORTOKEN:
                break
            if held is not None:
                if token.string == "(" and held[0].type == tokenize.NAME and not held[1]:
                    held[1].append("call")
                yield held
            held = (token, _kinds(token, before))
            if token.type not in (tokenize.NL, tokenize.COMMENT):
                before = token.string
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return
    if held is not None:
        yield held


def _kinds(token: tokenize.TokenInfo, before: str | None) -> list[str]:
    if token.type == tokenize.COMMENT:
        return ["comment"]
    if token.type == tokenize.STRING:
        return ["string"]
    if token.type == tokenize.NUMBER:
        return ["number"]
    if token.type == tokenize.OP:
        return ["operator"]
    if token.type == tokenize.NAME and keyword.iskeyword(token.string):
        return ["keyword"]
    if token.type == tokenize.NAME and before in ("def", "class"):
        return ["definition"]
    return []


def _script(character: str) -> str:
    if character.isascii() or not character.isalpha():
        return ""
    name = unicodedata.name(character, "")
    if name.startswith("LATIN"):
        return ""
    for script in ("GREEK", "CYRILLIC", "ARABIC", "HEBREW"):
        if name.startswith(script):
            return script.capitalize()
    return "Han" if name.startswith("CJK") else "other"
