"""From documents to packed rows of tokens: [BOS, T-1 tokens of text], split by document.

Documents follow each other behind an EOS token, which belongs to the document that it begins.
Every row belongs to one split, and position 0 is always BOS, so that leaving position 0 out
of training and metrics loses no text.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from sae.base.errors import UserError
from sae.corpus.sources import Corpus, Document, Split, split_of

DOCUMENTS_AT_A_TIME = 64  # tokenised together, on all cores


@dataclass(frozen=True)
class PackedCorpus:
    """Rows of train, then rows of held-out; documents in the same order."""

    tokens: np.ndarray  # (S, T) uint16 or uint32
    splits: dict[Split, tuple[int, int]]  # [first, last) row
    document_start: np.ndarray  # (N,) int64: row * T + column of the first token
    document_id: list[str]
    document_title: list[str]

    @property
    def hash(self) -> str:
        """Hash of every token and of where the splits lie."""
        digest = hashlib.sha256(repr(sorted(self.splits.items())).encode())
        digest.update(np.ascontiguousarray(self.tokens).data)
        return digest.hexdigest()


def pack_corpus(
    corpus: Corpus,
    tokenizer: Any,
    *,
    context: int,
    train_tokens: int,
    heldout_tokens: int,
    heldout_share: float = 0.1,
    seed: int = 0,
    multiple: int = 1,
    on_tokens: Callable[[int], None] | None = None,
) -> PackedCorpus:
    """Tokenises until both budgets are met or the text ends, and packs.

    `tokenizer` is a Hugging Face fast tokenizer with BOS and EOS. The number of train rows is a
    multiple of `multiple` (a store's chunk). Raises `UserError` if a split stays empty.
    """
    if context < 2:
        raise UserError(f"`context` is {context}; it must be at least 2.")
    budgets: dict[Split, int] = {"train": train_tokens, "heldout": heldout_tokens}
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    streams: dict[Split, _Stream] = {split: _Stream(dtype) for split in budgets}
    wanted: Iterator[tuple[Split, Document]] = (
        (split_of(d, heldout_share, seed), d) for d in corpus.documents() if d.text.strip()
    )
    open_ones = _until_full(wanted, streams, budgets)
    while batch := list(islice(open_ones, DOCUMENTS_AT_A_TIME)):
        texts = [document.text for _, document in batch]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for (split, document), ids in zip(batch, encoded, strict=True):
            streams[split].add(document, [tokenizer.eos_token_id, *ids])
        if on_tokens:
            on_tokens(sum(min(s.length, budgets[name]) for name, s in streams.items()))
    counts: dict[Split, int] = {
        split: _rows_of(split, stream.length, budgets[split], context, multiple, corpus.spec)
        for split, stream in streams.items()
    }
    return _pack(streams, counts, tokenizer.bos_token_id, context, dtype)


class _Stream:
    """The tokens of one split, end to end, and where its documents start."""

    def __init__(self, dtype: type) -> None:
        self.dtype = dtype
        self.pieces: list[np.ndarray] = []
        self.starts: list[int] = []
        self.documents: list[Document] = []
        self.length = 0

    def add(self, document: Document, ids: list[int]) -> None:
        self.starts.append(self.length)
        self.documents.append(Document(document.id, document.title, "", document.group))
        self.pieces.append(np.array(ids, dtype=self.dtype))
        self.length += len(ids)


def _until_full(
    documents: Iterator[tuple[Split, Document]],
    streams: dict[Split, _Stream],
    budgets: dict[Split, int],
) -> Iterator[tuple[Split, Document]]:
    """Passes over documents of a split that is full; ends when both are."""
    for split, document in documents:
        full = {name for name, stream in streams.items() if stream.length >= budgets[name]}
        if len(full) == len(streams):
            return
        if split not in full:
            yield split, document


def _rows_of(split: Split, length: int, budget: int, context: int, multiple: int, spec: str) -> int:
    """How many whole rows a split has. Raises `UserError` where it has none."""
    count = min(length, budget) // (context - 1)
    if split == "train":
        count -= count % multiple
    if count < 1:
        raise UserError(
            f"The corpus `{spec}` has too little {split} text: {length} tokens, and "
            f"at least {(multiple if split == 'train' else 1) * (context - 1)} are needed; "
            "give more documents, or another `corpus.heldout_share`."
        )
    return count


def _pack(
    streams: dict[Split, _Stream], counts: dict[Split, int], bos: int, context: int, dtype: type
) -> PackedCorpus:
    """One array is filled, and pieces are let go on the way: a corpus may be most of memory."""
    tokens = np.empty((sum(counts.values()), context), dtype)
    tokens[:, 0] = bos
    splits: dict[Split, tuple[int, int]] = {}
    starts: list[np.ndarray] = []
    ids: list[str] = []
    titles: list[str] = []
    first = 0
    for split, stream in streams.items():
        last = first + counts[split]
        length = counts[split] * (context - 1)
        text = np.concatenate(stream.pieces)
        stream.pieces.clear()
        tokens[first:last, 1:] = text[:length].reshape(-1, context - 1)
        del text
        start = np.array(stream.starts, dtype=np.int64)
        kept = start < length
        starts.append((first + start // (context - 1)) * context + 1 + start % (context - 1))
        starts[-1] = starts[-1][kept]
        ids += [d.id for d, keep in zip(stream.documents, kept, strict=True) if keep]
        titles += [d.title for d, keep in zip(stream.documents, kept, strict=True) if keep]
        splits[split] = (first, last)
        first = last
    return PackedCorpus(tokens, splits, np.concatenate(starts), ids, titles)
