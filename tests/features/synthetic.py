"""A small feature index with known features, made without torch.

The text is English-like; every feature is a rule on tokens, so tests know what must come out.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from sae.features import layout
from sae.features.assemble import DecoderEffects, RowCodes, assemble
from sae.features.vocabulary import Vocabulary

_TEXT = """
the of and to in a is that it was for on with as by at from his her they return import
class def self value error file time house river king queen Mr Mrs Watson Holmes Paris
London said replied asked cried quietly slowly never always number list string water night
"""
WORDS = _TEXT.split()
HOSTILE = [
    b"<script>alert(1)</script>",
    b"<b>bold</b>",
    b"&amp;",
    b'"quoted"',
    b"\n",
    b"\n\n",
    b"\t",
    b"    ",
    b"\x00",
    b"\xe2\x82",  # the first two bytes of the euro sign
    b"\xac",  # and its last one
    b"\xf0\x9f",  # an emoji in three parts
    b"\x99",
    b"\x82",
    "\u202e".encode(),  # right-to-left override
    " שלום".encode(),
    " مرحبا".encode(),
    " naïve".encode(),
]
DIGITS = [str(number).encode() for number in range(20)]
PUNCTUATION = [b".", b",", b";", b":", b"(", b")", b"'", b" ="]
BOS = b"<|endoftext|>"
TOKENS = [BOS, *(f" {word}".encode() for word in WORDS), *HOSTILE, *DIGITS, *PUNCTUATION]
CONTEXT, TRAIN, HELDOUT = 32, 200, 60


def token(text: str | bytes) -> int:
    """Id of a token of the synthetic vocabulary."""
    return TOKENS.index(text.encode() if isinstance(text, str) else text)


def make_tokens(seed: int = 0) -> np.ndarray:
    """(S, T) u16: mostly words by a Zipf-like law, some runs of numbers, some hostile tokens."""
    rng = np.random.default_rng(seed)
    words = np.arange(1, 1 + len(WORDS))
    share = 1 / (np.arange(len(words)) + 5.0)
    tokens = rng.choice(words, size=(TRAIN + HELDOUT, CONTEXT), p=share / share.sum())
    other = rng.random(tokens.shape)
    tokens[other < 0.2] = rng.integers(1 + len(WORDS), len(TOKENS), (other < 0.2).sum())
    for first, second in (("\u202e", " שלום"), (b"\xe2\x82", b"\xac"), (" Mr", ".")):
        at = np.argwhere(tokens[:, :-1] == token(first))
        tokens[at[:, 0], at[:, 1] + 1] = token(second)
    emoji = [token(part) for part in (b"\xf0\x9f", b"\x99", b"\x82")]
    tokens[::7, 10:13] = emoji
    tokens[3], tokens[4] = tokens[2], tokens[2]  # duplicate contexts
    tokens[:, 0] = 0
    return tokens.astype(np.uint16)


def make_acts(tokens_ST: np.ndarray, seed: int = 0) -> np.ndarray:
    """(S, T, F) float32 of the known features; the comment says what each one means."""
    rng = np.random.default_rng(seed + 1)
    before = np.concatenate([np.zeros_like(tokens_ST[:, :1]), tokens_ST[:, :-1]], axis=1)
    names = [token(" " + word) for word in ("Watson", "Holmes", "Paris", "London", "Mr", "Mrs")]
    digits = [token(digit) for digit in DIGITS]
    position = np.broadcast_to(np.arange(CONTEXT), tokens_ST.shape)
    rules = [
        tokens_ST == token(" return"),  # 0: one token
        np.isin(tokens_ST, digits),  # 1: a class
        (before == token(" Mr")) & (tokens_ST == token(".")),  # 2: a bigram
        np.isin(tokens_ST, names),  # 3: capitalised names
        np.zeros(tokens_ST.shape, bool),  # 4: dead
        (tokens_ST > 0) & (position > 0),  # 5: dense
        position == 1,  # 6: position only
        np.isin(tokens_ST, [token(t) for t in HOSTILE]),  # 7: hostile text
        tokens_ST == token("<script>alert(1)</script>"),  # 8
        (before == token(" the")) & (rng.random(tokens_ST.shape) < 0.9),  # 9: after a token
    ]
    for _ in range(30):  # the rest: one word each, noisily
        word = int(rng.integers(1, 1 + len(WORDS)))
        rules.append((tokens_ST == word) & (rng.random(tokens_ST.shape) < 0.8))
    acts = np.stack(rules, axis=-1) * rng.gamma(4.0, 1.5, (*tokens_ST.shape, len(rules)))
    acts[:, 0] = 0
    return acts.astype(np.float32)


def row_codes(acts_STF: np.ndarray) -> RowCodes:
    """The nonzero activations in row order."""
    acts = acts_STF.reshape(-1, acts_STF.shape[-1])
    rows, features = np.nonzero(acts)
    row_indptr = np.searchsorted(rows, np.arange(len(acts) + 1)).astype(np.int64)
    counts = np.bincount(features, minlength=acts.shape[1])
    return RowCodes(
        row_indptr,
        features.astype(layout.features_dtype(acts.shape[1])),
        acts[rows, features].astype(np.float16),
        counts,
    )


def make_effects(width: int, size: int, seed: int = 0) -> DecoderEffects:
    """Effects of random directions, of the right shapes."""
    rng = np.random.default_rng(seed + 2)
    logits = rng.normal(size=(width, size)).astype(np.float32)
    order = np.argsort(logits, axis=1)
    low, high = order[:, :10], order[:, :-11:-1]
    edges = np.linspace(logits.min(1), logits.max(1), layout.BINS + 1, axis=1)
    counts = [
        np.histogram(row, edge.astype(float))[0] for row, edge in zip(logits, edges, strict=True)
    ]
    vectors = rng.normal(size=(width, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = vectors @ vectors.T - 2 * np.eye(width)
    near = np.argsort(-cosine, axis=1)[:, :10]
    near_cosine = np.take_along_axis(cosine, near, 1).astype(np.float32)
    return DecoderEffects(
        promoted_ids=high,
        promoted_logits=np.take_along_axis(logits, high, 1),
        suppressed_ids=low,
        suppressed_logits=np.take_along_axis(logits, low, 1),
        decoder_norm=np.ones(width, np.float32),
        enc_dec_cosine=rng.uniform(0.3, 1, width).astype(np.float32),
        logit_edges=edges.astype(np.float32),
        logit_counts=np.array(counts),
        decoder_ids=near,
        decoder_cos=near_cosine,
        encoder_ids=near[:, ::-1].copy(),
        encoder_cos=near_cosine[:, ::-1].copy(),
    )


def make_documents() -> pd.DataFrame:
    """Documents of three packed rows each, train first."""
    starts = np.arange(0, TRAIN + HELDOUT, 3)
    splits = np.where(starts < TRAIN, "train", "heldout")
    starts = np.union1d(starts, [TRAIN])
    splits = np.where(starts < TRAIN, "train", "heldout")
    return pd.DataFrame(
        {
            "start": starts * CONTEXT,
            "id": [f"book-{n}:{'code' if n % 2 else 'prose'}" for n in range(len(starts))],
            "title": [f"Chapter {n} <i>of</i> a book" for n in range(len(starts))],
            "split": splits,
        }
    )


def make_index(
    folder: Path,
    seed: int = 0,
    tokens_ST: np.ndarray | None = None,
    acts_STF: np.ndarray | None = None,
    coder_hash: str = "c" * 64,
) -> Path:
    """Builds the index in `folder` (about 8,000 tokens, 40 features) and returns it."""
    partial = layout.partial_folder(folder)
    partial.mkdir(parents=True)
    tokens_ST = make_tokens(seed) if tokens_ST is None else tokens_ST
    np.save(partial / layout.TOKENS, tokens_ST)
    acts = make_acts(tokens_ST, seed) if acts_STF is None else acts_STF
    width = acts.shape[-1]
    meta = {
        "coder": "topk",
        "coder_hash": coder_hash,
        "site": "blocks.2.hook_resid_post",
        "model": "synthetic",
        "model_hash": "d" * 64,
        "architecture": "topk",
        "corpus": "synthetic words",
        "corpus_hash": "e" * 64,
        "d_in": 16,
        "rows": [[0, (TRAIN + HELDOUT) * CONTEXT]],
        "bos_id": 0,
        "splits": {"train": [0, TRAIN], "heldout": [TRAIN, TRAIN + HELDOUT]},
    }
    return assemble(
        partial,
        folder,
        row_codes(acts),
        make_effects(width, len(TOKENS), seed),
        Vocabulary(TOKENS),
        make_documents(),
        meta,
    )
