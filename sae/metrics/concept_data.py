"""Activations, codes and labels side by side: tokens of a split, or short texts of them.

Concept metrics are functions of `Examples`: they know nothing of stores and models, so that what
they should give is known for made-up ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from sae.metrics.ablation import Dictionary
from sae.metrics.concept_kinds import is_code
from sae.metrics.concepts import NO, UNKNOWN, YES, Labels, Piece, label
from sae.metrics.languages import language_of
from sae.metrics.recovery import as_csr
from sae.metrics.sample import Sample, draw
from sae.store import ActivationStore

Floats = npt.NDArray[np.float32]
TEXT_TOKENS = 64  # of a text; a shorter rest of at least half of it is a text too
MOSTLY = 0.2  # share of a text's tokens from which it has a token-level concept; none: it has not
LONGEST_DOCUMENT = 1 << 16  # tokens that are read to find out whether they are Python


@dataclass(frozen=True)
class Examples:
    """E activations `x_ED` with their codes (E, F), labels 1, 0 or -1 (unknown) for each concept,
    and the document of each, which is the unit of resampling.
    """

    x_ED: Floats
    codes_EF: sp.csr_matrix
    labels: dict[str, Labels]
    unit_E: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.x_ED)

    def take(self, rows: npt.NDArray[np.int64]) -> "Examples":
        return Examples(
            self.x_ED[rows],
            self.codes_EF[rows],
            {name: label_E[rows] for name, label_E in self.labels.items()},
            self.unit_E[rows],
        )

    def balanced(self, concept: str, most: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Rows of as many positives as negatives, at most `most` of each, in random order."""
        label_E = self.labels[concept]
        yes, no = np.flatnonzero(label_E == YES), np.flatnonzero(label_E == NO)
        count = min(most, len(yes), len(no))
        chosen = [rng.choice(rows, count, replace=False) for rows in (yes, no)]
        return rng.permutation(np.concatenate(chosen)) if count else np.empty(0, np.int64)


@dataclass(frozen=True)
class Words:
    """The tokens beside their examples, for what is asked of words: ids (E,), and the bytes of
    every id. `over` says what the units are: documents, or sequences where those are few."""

    examples: Examples
    token_E: npt.NDArray[np.int64]
    token_bytes: Sequence[bytes]
    over: str = "documents"


def token_examples(
    coder: Dictionary,
    store: ActivationStore,
    site: str,
    split: str,
    tokens: int,
    special: frozenset[int],
    token_bytes: Sequence[bytes],
) -> tuple[Words, "Examples"]:
    """About `tokens` scored tokens of a split, and the texts that they are of.

    `token_bytes` holds the bytes of every token of the vocabulary. A text's activation and codes
    are the means of its tokens'.
    """
    sample = draw(store, split, tokens, special)
    x_ED, codes_EF = _activations(coder, sample, site)
    pieces = _pieces(sample, token_bytes, special)
    labels = _labels(sample, pieces, token_bytes, special)
    flat = sample.scored_ST.reshape(-1)
    token_labels = {name: label_R[flat] for name, label_R in labels.items()}
    unit_E = sample.unit_ST.reshape(-1)[flat]
    examples = Examples(x_ED, codes_EF, token_labels, unit_E)
    number_R = np.cumsum(flat) - 1  # example of each row
    texts = _texts(examples, number_R, _stretches(pieces, sample, token_bytes))
    return Words(examples, sample.tokens_ST.reshape(-1)[flat], token_bytes, sample.over), texts


@torch.inference_mode()
def _activations(coder: Dictionary, sample: Sample, site: str) -> tuple[Floats, sp.csr_matrix]:
    """Of all scored tokens, in the order in which they stand in the sample."""
    device = coder.W_dec_FD.device
    parts, codes = [], []
    for batch in sample.batches(site, device):
        x_BD = batch.x_BD[batch.scored_B.to(device)]
        parts.append(x_BD.cpu().numpy())
        codes.append(as_csr(coder.encode(x_BD)))
    return np.concatenate(parts), sp.csr_matrix(sp.vstack(codes))


@dataclass(frozen=True)
class _Run:
    """Scored tokens in a row that are of one document: places in the flattened sample, and whether
    the document is Python."""

    rows: npt.NDArray[np.int64]
    document: str
    code: bool | None


def _pieces(sample: Sample, token_bytes: Sequence[bytes], special: frozenset[int]) -> list[_Run]:
    """The runs of a sample. One ends at whatever is not scored (a special token, the start of a
    sequence) and where another document begins.
    """
    store = sample.store
    document_R = store.documents.of_rows(_absolute(sample))
    rows = np.flatnonzero(sample.scored_ST.reshape(-1))
    ends = (np.diff(rows) > 1) | (np.diff(document_R[rows]) != 0)
    runs = [run for run in np.split(rows, np.flatnonzero(ends) + 1) if len(run)]
    code: dict[int, bool | None] = {}
    found = []
    for run in runs:
        number = int(document_R[run[0]])
        name = store.documents.id[number]
        if number not in code:
            code[number] = is_code(name, partial(_spelt, store, number, token_bytes, special))
        found.append(_Run(run, name, code[number]))
    return found


def _spelt(
    store: ActivationStore, number: int, token_bytes: Sequence[bytes], special: frozenset[int]
) -> str:
    """A whole document, as far as it lies in the store; nothing of very long ones."""
    begin, *following = store.documents.start[number : number + 2].tolist()
    end = following[0] if following else store.sequences * store.context
    if end - begin > LONGEST_DOCUMENT:
        return ""
    tokens = _between(store, begin, end, special)
    return b"".join(token_bytes[token] for token in tokens).decode(errors="replace")


def _absolute(sample: Sample) -> npt.NDArray[np.int64]:
    """The row of the store of each row of the flattened sample."""
    context = sample.store.context
    return np.concatenate([np.arange(r.start * context, r.stop * context) for r in sample.runs])


def _labels(
    sample: Sample,
    pieces: list[_Run],
    token_bytes: Sequence[bytes],
    special: frozenset[int],
) -> dict[str, Labels]:
    """Labels of every row of the flattened sample.

    A piece is read from the start of its document on: whoever begins in the middle of a string
    takes code for text and text for code.
    """
    absolute_R = _absolute(sample)
    tokens_R = sample.tokens_ST.reshape(-1)
    labels: dict[str, Labels] = {}
    starts = sample.store.documents.start
    for piece in pieces:
        row = int(absolute_R[piece.rows[0]])
        begin = int(starts[int(sample.store.documents.of_rows(row))])
        before = _between(sample.store, begin, row, special)
        own, preceding = ([token_bytes[t] for t in ids] for ids in (tokens_R[piece.rows], before))
        found = label(Piece.of(own, piece.code, preceding))
        for name, label_T in found.items():
            labels.setdefault(name, np.full(len(tokens_R), UNKNOWN, np.int8))[piece.rows] = label_T
    return labels


def _between(
    store: ActivationStore, start: int, stop: int, special: frozenset[int]
) -> npt.NDArray[np.integer]:
    """The tokens of rows `start` to `stop`, less BOS and what else is no text."""
    first = start // store.context
    tokens = store.tokens(first, -(-stop // store.context)).reshape(-1)
    at = np.arange(start, stop) - first * store.context
    at = at[at % store.context > 0]
    return tokens[at][~np.isin(tokens[at], list(special))]


@dataclass(frozen=True)
class _Stretch:
    """Rows of the flattened sample that are one text, what they spell, and of which document."""

    rows: npt.NDArray[np.int64]
    spelt: str
    document: str
    code: bool | None


def _stretches(pieces: list[_Run], sample: Sample, token_bytes: Sequence[bytes]) -> list[_Stretch]:
    tokens_R = sample.tokens_ST.reshape(-1)
    found = []
    for piece in pieces:
        for start in range(0, len(piece.rows), TEXT_TOKENS):
            part = piece.rows[start : start + TEXT_TOKENS]
            if len(part) >= TEXT_TOKENS // 2:
                spelt = b"".join(token_bytes[token] for token in tokens_R[part])
                text = spelt.decode(errors="replace")
                found.append(_Stretch(part, text, piece.document, piece.code))
    return found


def _texts(
    examples: Examples, number_R: npt.NDArray[np.int64], stretches: list[_Stretch]
) -> Examples:
    """Means over stretches; `number_R` is the example of each row of the flattened sample."""
    numbers = [number_R[stretch.rows] for stretch in stretches]
    lengths = np.array([len(own) for own in numbers], np.int64)
    mean_TE = sp.csr_matrix(
        (
            np.repeat(1 / np.maximum(lengths, 1), lengths),
            np.concatenate([np.empty(0, np.int64), *numbers]),
            np.concatenate([[0], np.cumsum(lengths)]),
        ),
        (len(stretches), len(examples)),
    )
    first = np.array([own[0] for own in numbers], np.int64)
    return Examples(
        (mean_TE @ examples.x_ED).astype(np.float32),
        sp.csr_matrix(mean_TE @ examples.codes_EF),
        _text_labels(examples, mean_TE, stretches),
        examples.unit_E[first],
    )


def _text_labels(
    examples: Examples, mean_TE: sp.csr_matrix, stretches: list[_Stretch]
) -> dict[str, Labels]:
    """What most of a text is; whether it is code, its language, and the package it comes from.

    A text has a token-level concept that enough of its tokens have.
    """
    labels: dict[str, Labels] = {}
    for name, label_E in examples.labels.items():
        share_T = mean_TE @ (label_E == YES)
        known_T = mean_TE @ (label_E != UNKNOWN)
        text_T = np.where(share_T >= MOSTLY, YES, np.where(share_T == 0, NO, UNKNOWN))
        labels[f"text_{name}"] = np.where(known_T > 0.5, text_T, UNKNOWN).astype(np.int8)
    as_label = {True: YES, False: NO, None: UNKNOWN}
    labels["text_code"] = np.array([as_label[stretch.code] for stretch in stretches], np.int8)
    languages = np.array([language_of(stretch.spelt) or "" for stretch in stretches])
    told = np.where(languages == "", UNKNOWN, NO)
    for language in sorted({*languages.tolist()} - {""}):
        found = np.where(languages == language, YES, told)
        labels[f"text_language_{language}"] = found.astype(np.int8)
    packages = np.array([_package(stretch.document) for stretch in stretches])
    for package in sorted({*packages.tolist()} - {""}):
        labels[f"text_from_{package}"] = np.where(packages == package, YES, NO).astype(np.int8)
    return labels


def _package(document: str) -> str:
    """`python/numpy.linalg:code` -> `numpy`; nothing of documents with other ids."""
    folder, _, module = document.partition("/")
    return module.split(".")[0].split(":")[0] if folder == "python" else ""
