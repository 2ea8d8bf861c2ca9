"""Data of the embedded model: its tokenizer, its token streams, and the batch of any step.

A batch is a pure function of (seed, step), so that training resumes with no state but a number.
"""

import hashlib
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sae.base.files import write_array
from sae.base.foreign import read_npy
from sae.corpus.sources import Corpus, Split, open_corpus, split_of

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 8192
HELDOUT_SHARE = 0.05
REPEATED_SHARE = 0.02
PYTHON_SHARE = 0.33  # of rows; the books have the rest
IGNORED = -100  # the label that cross-entropy skips

Tokens = npt.NDArray[np.uint16]
Ints = npt.NDArray[np.int64]


def train_tokenizer(corpora: dict[str, Corpus], folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE (GPT-2's pre-tokenisation) on a share of every corpus's training documents."""
    if not (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_sample(corpora), trainer)
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=END_OF_TEXT,
            eos_token=END_OF_TEXT,
            unk_token=END_OF_TEXT,
            model_max_length=256,
        )
        wrapped.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _sample(corpora: dict[str, Corpus]) -> Iterator[str]:
    """Every fourth training document: enough to learn 8 k merges, a quarter of the memory."""
    for corpus in corpora.values():
        train = (d for d in corpus.documents() if split_of(d, HELDOUT_SHARE) == "train")
        yield from (document.text for document in islice(train, 0, None, 4))


def token_stream(
    name: str, corpus: Corpus, split: Split, tokenizer: PreTrainedTokenizerFast, work: Path
) -> Tokens:
    """All documents of a split, each behind one end-of-text token, cached in `work`."""
    path = work / f"{name}-{split}.npy"
    if not path.exists():
        pieces: list[Tokens] = []
        chosen = (d.text for d in corpus.documents() if split_of(d, HELDOUT_SHARE) == split)
        while texts := list(islice(chosen, 32)):
            for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
                pieces.append(np.array([tokenizer.bos_token_id, *ids], dtype=np.uint16))
        stream = np.concatenate(pieces)
        write_array(path, stream)
    return read_npy(path, mapped=True)


def batch(
    streams: dict[str, Tokens], seed: int, step: int, rows: int, length: int, bos: int
) -> tuple[Ints, Ints]:
    """(inputs, labels), both (rows, length): each row starts with BOS and continues mid-text.

    The last `REPEATED_SHARE` of rows (drawn by chance) are repeated random sequences, whose
    first period carries no loss.
    """
    rng = np.random.default_rng([seed, step])
    inputs = np.empty((rows, length), dtype=np.int64)
    labels = np.empty_like(inputs)
    for row in range(rows):
        kind = rng.random()
        if kind < REPEATED_SHARE:
            period = int(rng.integers(16, length // 2))
            segment = rng.integers(1, VOCABULARY, period)
            text = np.tile(segment, math.ceil(length / period))[: length - 1]
            inputs[row] = [bos, *text]
            labels[row] = inputs[row]
            labels[row, : period + 1] = IGNORED
            continue
        stream = streams["python" if kind < REPEATED_SHARE + PYTHON_SHARE else "books"]
        start = int(rng.integers(0, len(stream) - length + 1))
        inputs[row] = [bos, *stream[start : start + length - 1]]
        labels[row] = inputs[row]
    return inputs, labels


def open_streams(
    books: str, work: Path
) -> tuple[PreTrainedTokenizerFast, dict[tuple[str, Split], Tokens], str]:
    """(tokenizer, {(corpus, split): tokens}, hash of everything that training will read)."""
    corpora = {"books": open_corpus(books), "python": open_corpus("python")}
    tokenizer = train_tokenizer(corpora, work / "tokenizer")
    splits: tuple[Split, Split] = ("train", "heldout")
    streams: dict[tuple[str, Split], Tokens] = {
        (name, split): token_stream(name, corpus, split, tokenizer, work)
        for name, corpus in corpora.items()
        for split in splits
    }
    digest = hashlib.sha256()
    for key, stream in sorted(streams.items()):
        digest.update(f"{key}".encode())
        digest.update(stream.tobytes())
    return tokenizer, streams, digest.hexdigest()
