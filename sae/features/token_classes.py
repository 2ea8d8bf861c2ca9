"""Classes of tokens that a person has a word for: digits, pronouns, newlines with indentation …"""

import keyword
import re
from dataclasses import dataclass

import numpy as np

from sae.features.vocabulary import Vocabulary

_PATTERNS = {
    "digits": r" ?\d+",
    "years": r" ?(1[5-9]|20)\d\d",
    "hexadecimal": r" ?(0x[0-9a-fA-F]*|(?=[0-9a-fA-F]*\d)(?=[0-9a-fA-F]*[a-fA-F])[0-9a-fA-F]+)",
    "Roman numerals": r" ?(?=[IVXLC]{2,})[IVXLC]+",
    "single letters": r" ?[A-Za-z]",
    "capitalised words": r" [A-Z][a-z]+",
    "capitalised starts without a space": r"[A-Z][a-z]+",
    "words in capitals": r" ?[A-Z]{2,}",
    "lower-case words": r" [a-z]+",
    "continuations of words": r"[a-z]+",
    "newlines": r"\s*\n\s*",
    "newline and indentation": r"\s*\n[ \t]+",
    "blank lines": r"\s*\n\s*\n\s*",
    "runs of spaces": r"[ \t]{2,}",
    "ends of sentences": r"\s*[.!?]+[\"'”’)]*",
    "commas, semicolons, colons": r" ?[,;:]",
    "quotation marks": r"\s*[\"“”'‘’`]+",
    "opening brackets": r"\s*[\w.]*[(\[{]+",
    "closing brackets": r"\s*[)\]}]+[,:;.]?",
    "operators": r"\s*[=+\-*/<>%&|^~!@]+",
    "punctuation": r"\s*[^\w\s]+",
    "dashes": r" ?(-{2,}|—|–)+",
    "contractions": r"['’](s|t|re|ve|ll|d|m)",
    "names with underscores": r" ?\w*_\w*",
    "words in -ing": r" [A-Za-z]{2,}ing",
    "words in -ed": r" [A-Za-z]{2,}ed",
    "words in -ly": r" [A-Za-z]{2,}ly",
    "words in -tion": r" [A-Za-z]+[st]ion",
    "letters beyond ASCII": r"\s*[^\x00-\x7f]+",
}
_LEXICON = {
    "number words": "one two three four five six seven eight nine ten eleven twelve twenty thirty "
    "forty fifty hundred thousand million first second third fourth fifth",
    "months": "January February March April May June July August September October November "
    "December",
    "days of the week": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "subject pronouns": "I you he she it we they",
    "object pronouns": "me him her us them himself herself themselves myself",
    "possessives": "my your his her its our their",
    "articles": "a an the",
    "prepositions": "of in to for with on at from by about into over after under between against "
    "through upon toward towards among within without beyond beneath across",
    "conjunctions": "and or but nor yet so because although though while if unless",
    "question words": "who what when where why how which whom whose",
    "modal verbs": "can could may might must shall should will would",
    "forms of to be": "am is are was were be been being",
    "forms of to have": "have has had having",
    "negations": "not no never none nothing nor cannot n't",
    "verbs of saying": "said says say replied asked answered cried exclaimed whispered shouted "
    "remarked murmured observed returned",
}
_SUFFIX = re.compile(r"(?<=[a-z]{3})(ing|ed|es|s|er|ly)$")


@dataclass(frozen=True)
class TokenFacts:
    """What is known of each token of a vocabulary.

    Attributes:
        names: of the C classes.
        classes_CV: (C, V) bool.
        stems_V: tokens that differ only in case, leading space or a common ending share a number.
        newline_V, blank_V: holds a newline; is nothing but white space.
    """

    names: list[str]
    classes_CV: np.ndarray
    stems_V: np.ndarray
    newline_V: np.ndarray
    blank_V: np.ndarray


def token_facts(vocabulary: Vocabulary) -> TokenFacts:
    """Facts of every token; a token that is a piece of a character is only in "pieces of …"."""
    texts = [_text(token) for token in vocabulary.tokens]
    rows: dict[str, list[bool]] = {}
    for name, pattern in _PATTERNS.items():
        match = re.compile(pattern).fullmatch
        rows[name] = [text is not None and match(text) is not None for text in texts]
    lexicon = {name: {word.lower() for word in words.split()} for name, words in _LEXICON.items()}
    lexicon["Python keywords"] = {word.lower() for word in keyword.kwlist}
    words = [None if text is None else text.strip().lower() for text in texts]
    for name, members in lexicon.items():
        rows[name] = [word in members for word in words]
    rows["pieces of characters"] = [text is None for text in texts]
    stems = [
        token if word is None else stem(word) for token, word in zip(vocabulary, words, strict=True)
    ]
    numbers: dict[object, int] = {}
    return TokenFacts(
        list(rows),
        np.array(list(rows.values()), bool),
        np.array([numbers.setdefault(key, len(numbers)) for key in stems], np.int64),
        np.array([b"\n" in token for token in vocabulary.tokens]),
        np.array([not token.strip() for token in vocabulary.tokens]),
    )


def stem(word: str) -> str:
    """A lower-case word without a common ending (at least three letters stay)."""
    return _SUFFIX.sub("", word)


def _text(token: bytes) -> str | None:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None
