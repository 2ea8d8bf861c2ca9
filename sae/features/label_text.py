"""Words for rules."""

import unicodedata
from collections.abc import Sequence

from sae.features.rules import Condition, Rule
from sae.features.token_classes import TokenFacts
from sae.features.vocabulary import Vocabulary

SHOWN = 4
"""Tokens of a set that a label names."""
JUST_BEFORE = ("previous", "before")


def quoted(text: str) -> str:
    """`text` in quotes on one line; what cannot be seen is written as an escape."""
    marks = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    shown = [
        marks.get(character) or (character if _visible(character) else f"\\u{ord(character):04x}")
        for character in text
    ]
    return '"' + "".join(shown) + '"'


def _visible(character: str) -> bool:
    return (
        character == " "
        or (character.isprintable() and unicodedata.bidirectional(character) not in ("R", "AL"))
        or character.isalpha()
    )


def listed(tokens: Sequence[int], vocabulary: Vocabulary) -> str:
    """`"a"`, `"a" or "b"`, `"a", "b", "c", "d" …`."""
    names = [quoted(vocabulary.name(token)) for token in tokens[:SHOWN]]
    if len(tokens) > SHOWN:
        return ", ".join(names) + " …"
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def describe(rule: Rule, vocabulary: Vocabulary, facts: TokenFacts, kinds: list[str]) -> str:
    """The rule as a label, such as `" return" after newline and indentation`."""
    around = rule.around
    if rule.token.where == "any":
        alone = {"kind": "anything", "first": "the first token", "any": "nearly every token"}
        lead = alone.get(around.where, "what follows" if around.where in JUST_BEFORE else "")
    else:
        lead = _named(rule.token, vocabulary, facts)
    if around.where == "any":
        return lead
    if around.where == "first":
        return lead if rule.token.where == "any" else f"{lead} at the start of the context"
    if around.where == "kind":
        return f"{lead} in {kinds[around.values[0]]}"
    named = _named(around, vocabulary, facts)
    if around.where in JUST_BEFORE:
        return f"{lead} {named}" if rule.token.where == "any" else f"{lead} after {named}"
    if around.where == "line":
        return f"{lead} in a line that begins with {named}".strip()
    return f"{lead} soon after {named}".strip()


def _named(condition: Condition, vocabulary: Vocabulary, facts: TokenFacts) -> str:
    if condition.what == "class":
        return facts.names[condition.values[0]]
    if condition.what == "stem":
        members = (facts.stems_V == condition.values[0]).nonzero()[0]
        shortest = min(members, key=lambda token: (len(vocabulary[token].strip()), token))
        return f"{quoted(vocabulary.name(shortest).strip().lower())} in any form"
    if condition.what == "sequence":
        return quoted("".join(vocabulary.display(condition.values)))
    return listed(condition.values, vocabulary)


def kind_of(rule: Rule) -> str:
    """ "token", "tokens" (a set or a stem), "class", or "context" where its surroundings matter."""
    if rule.around.where != "any":
        return "context"
    if rule.token.what == "tokens":
        return "token" if len(rule.token.values) == 1 else "tokens"
    return "tokens" if rule.token.what == "stem" else "class"
