"""What a language model answered, read with patience: it is nobody's promise.

An answer that cannot be read is None, is counted as unscored, and stops nothing.
"""

import json
import re

LONGEST_EXPLANATION = 300
"""Bytes, as the JSON string that goes into prompts."""
LONGEST_ANSWER = 20_000
"""Characters of an answer that are looked at."""
_LIST = re.compile(r"\[[^\[\]]*\]")
_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.S)
_VERDICTS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def explanation_of(content: str | None) -> str | None:
    """The explanation in an answer: of the last JSON object that has one, else the plain text."""
    text = _said(content)
    for start in reversed([found.start() for found in re.finditer(r"\{", text)]):
        value = _parsed(text, start)
        if isinstance(value, dict) and isinstance(value.get("explanation"), str):
            return _cut(value["explanation"])
    return None if text.startswith(("{", "[", "<")) else _cut(text)


def verdicts_of(content: str | None, n: int) -> list[bool] | None:
    """The last list of `n` verdicts in an answer."""
    for found in reversed(_LIST.findall(_said(content))):
        words = [word.strip(" \t\r\n\"'").lower() for word in found[1:-1].split(",")]
        if len(words) == n and all(word in _VERDICTS for word in words):
            return [_VERDICTS[word] for word in words]
    return None


def _said(content: str | None) -> str:
    return _THOUGHTS.sub("", (content or "")[-LONGEST_ANSWER:]).strip()


def _parsed(text: str, start: int) -> object:
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return None


def _cut(text: str) -> str | None:
    """On one line, without what cannot be printed, of bounded length; None if nothing is left."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    while (over := len(json.dumps(text, ensure_ascii=False).encode()) - 2) > LONGEST_EXPLANATION:
        text = text[: -max(1, (over - LONGEST_EXPLANATION) // 6)].rstrip()
    return text or None
