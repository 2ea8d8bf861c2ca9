"""Rules that label tokens, on texts where a person knows the answer."""

import re

import numpy as np
import pytest

from sae.metrics.concepts import Piece, label, names


def spell(text: str) -> list[bytes]:
    """Words with their leading space, and single other characters: tokens to be labelled."""
    return [part.encode() for part in re.findall(r" ?\w+|\s|[^\w\s]", text)]


def marked(text: str, concept: str, code: bool | None = None, value: int = 1) -> list[str]:
    tokens = spell(text)
    labels = label(Piece.of(tokens, code))[concept]
    return [t.decode().strip() for t, own in zip(tokens, labels, strict=True) if own == value]


@pytest.mark.parametrize(
    ("concept", "text", "expected"),
    [
        ("digits", "In 1999 there were 12 monkeys", ["1999", "12"]),
        ("upper_case", "NASA and I saw ESA", ["NASA", "ESA"]),
        ("capitalised", "In May the NASA slept", ["In", "May"]),
        ("snake_case", "call load_lm or loadLM", ["load_lm"]),
        ("quotation", 'He said "go away" and', ['"', "go", "away", '"']),
        ("url", "see https://a.org/b now", ["https", ":", "/", "/", "a", ".", "org", "/", "b"]),
        ("hexadecimal", "0x1f and deadbeef1 and 123456 facade", ["0x1f", "deadbeef1"]),
        ("base64", "x QWxhZGRpbjpvcGVuIHNlc2FtZQ and word", ["QWxhZGRpbjpvcGVuIHNlc2FtZQ"]),
        ("brackets", "f(x)[0]", ["(", ")", "[", "]"]),
        ("script_Greek", "alpha α and ωμέγα", ["α", "ωμέγα"]),
        ("script_Cyrillic", "мир peace", ["мир"]),
        ("script_Han", "東 east", ["東"]),
        ("script_other", "naïve café ไทย", ["ไทย"]),
    ],
)
def test_text_is_labelled(concept: str, text: str, expected: list[str]) -> None:
    assert marked(text, concept) == expected


CODE = 'def add(a, b):  # sum\n    total = a + 12\n    return fix(total, "x y")\n'


@pytest.mark.parametrize(
    ("concept", "expected"),
    [
        ("syntax_comment", ["#", "sum"]),
        ("syntax_string", ['"', "x", "y", '"']),
        ("syntax_keyword", ["def", "return"]),
        ("syntax_number", ["12"]),
        ("syntax_definition", ["add"]),
        ("syntax_call", ["fix"]),
        ("syntax_operator", ["(", ",", ")", ":", "=", "+", "(", ",", ")"]),
    ],
)
def test_code_is_labelled(concept: str, expected: list[str]) -> None:
    assert marked(CODE, concept, code=True) == expected


def test_syntax_is_unknown_where_there_is_no_code() -> None:
    for code in (False, None):
        assert set(label(Piece.of(spell(CODE), code))["syntax_keyword"]) == {-1}


def test_what_cannot_be_read_is_unknown() -> None:
    broken = 'x = 1\ny = """never closed\nreturn 3\n'
    assert marked(broken, "syntax_number", code=True) == ["1"]
    assert "return" in marked(broken, "syntax_keyword", code=True, value=-1)
    assert "return" not in marked(broken, "syntax_keyword", code=True)


def test_form_feeds_do_not_shift_lines() -> None:
    assert marked("x = 1\n\x0cy = 22\n", "syntax_number", code=True) == ["1", "22"]


def test_tokens_that_share_a_character_share_its_label() -> None:
    han = "東".encode()
    labels = label(Piece.of([b"a ", han[:1], han[1:], b"\xff", b""]))["script_Han"]
    assert labels.tolist() == [0, 1, 1, 0, 0]


def test_every_concept_has_a_label_for_every_token() -> None:
    tokens = spell("plain text")
    found = label(Piece.of(tokens))
    assert list(found) == names()
    assert all(labels.shape == (len(tokens),) for labels in found.values())
    assert all(set(np.unique(labels)) <= {-1, 0, 1} for labels in found.values())


def test_what_stands_before_decides() -> None:
    """A row that begins within a string: its first quotation marks close it."""
    before = 'def f():\n    """Say what\n'
    rest = 'is not there."""\n    return None\n'
    alone = label(Piece.of(spell(rest), True))
    known = label(Piece.of(spell(rest), True, spell(before)))
    words = [token.decode().strip() for token in spell(rest)]

    def of(labels, concept: str) -> list[str]:
        return [w for w, own in zip(words, labels[concept], strict=True) if own == 1 and w]

    assert of(alone, "syntax_keyword")[:2] == ["is", "not"]
    assert of(known, "syntax_keyword") == ["return", "None"]
    assert {"is", "not", "there"} <= set(of(known, "syntax_string"))
