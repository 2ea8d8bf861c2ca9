from pathlib import Path

import pytest

from sae.features import Vocabulary
from sae.features.tokenizer_bytes import byte_alphabet, vocabulary_of

TOKENS = [b"a", b" b", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\x99", b"\x82", b"\x82x\xe2", b"\n"]


@pytest.mark.parametrize(
    ("ids", "pieces"),
    [
        ([0, 1, 8], ["a", " b", "\n"]),
        ([2, 3], ["€", ""]),  # a character over two tokens
        ([0, 4, 5, 6, 0], ["a", "🙂", "", "", "a"]),  # and over three
        ([3, 0], ["\\xac", "a"]),  # the rest of a character, its beginning cut off
        ([2], ["\\xe2\\x82"]),  # the beginning, its end cut off
        ([2, 0], ["\\xe2\\x82", "a"]),
        ([2, 3, 3], ["€", "", "\\xac"]),
        ([2, 7], ["₂", "x\\xe2"]),
        ([], []),
    ],
)
def test_display_joins_pieces_of_characters(ids: list[int], pieces: list[str]) -> None:
    assert Vocabulary(TOKENS).display(ids) == pieces


def test_displayed_pieces_are_the_text() -> None:
    vocabulary = Vocabulary(TOKENS)
    for ids in ([0, 2, 3, 1], [4, 5, 6, 2, 3], [3, 2, 4]):
        assert "".join(vocabulary.display(ids)) == vocabulary.text(ids)


def test_a_vocabulary_survives_the_disk(tmp_path: Path) -> None:
    Vocabulary([*TOKENS, b"", b"\x00"]).write(tmp_path / "v.parquet")
    assert list(Vocabulary.read(tmp_path / "v.parquet")) == [*TOKENS, b"", b"\x00"]


def test_byte_alphabet_is_one_character_per_byte() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert alphabet["Ġ"] == 0x20  # the mark of a leading space in GPT-2's vocabulary
    assert alphabet["Ċ"] == 0x0A


class _Tokenizer:
    def __init__(self) -> None:
        self.added_tokens_decoder = {0: "<|endoftext|>"}

    def get_vocab(self) -> dict[str, int]:
        return {"<|endoftext|>": 0, "Ġthe": 1, "Ċ": 2, "âĤ": 3, "beyond": 9}


def test_tokens_of_a_byte_level_tokenizer_are_raw_bytes() -> None:
    vocabulary = vocabulary_of(_Tokenizer(), 5)
    assert list(vocabulary) == [b"<|endoftext|>", b" the", b"\n", b"\xe2\x82", b""]
