"""The raw bytes of every token of a byte-level tokenizer."""

from functools import cache
from typing import Any

from sae.features.vocabulary import Vocabulary


@cache
def byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE (Radford et al. 2019, "Language Models are Unsupervised
    Multitask Learners", section 2.2): printable Latin-1 bytes stand for themselves, the others for
    the code points from 256 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """Bytes of tokens 0 to `size` - 1 of a Hugging Face fast tokenizer.

    Ids that the tokenizer does not know (a model's padding of its vocabulary) get no bytes.
    """
    alphabet = byte_alphabet()
    added = {int(id_): str(token) for id_, token in tokenizer.added_tokens_decoder.items()}
    tokens = [b""] * size
    for token, id_ in tokenizer.get_vocab().items():
        if id_ >= size:
            continue
        if id_ not in added and all(character in alphabet for character in token):
            tokens[id_] = bytes(alphabet[character] for character in token)
        else:
            tokens[id_] = str(added.get(id_, token)).encode()
    return Vocabulary(tokens)
