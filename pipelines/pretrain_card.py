"""Measures a pretrained model on held-out text and writes it, with its card, as an asset."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from pipelines.pretrain_data import HELDOUT_SHARE, PYTHON_SHARE, REPEATED_SHARE, Tokens
from sae.base.files import sha256_file, write_text
from sae.corpus.sources import Split
from sae.features.tokenizer_bytes import vocabulary_of
from sae.lm.load import weights_hash
from sae.lm.model import LanguageModel

EVALUATED_TOKENS = 400_000
INDUCTION_ROWS = 64


def bits_per_byte(lm: LanguageModel, stream: Tokens, tokens: int) -> float:
    """Held-out bits per byte of text, in windows of the model's context that do not overlap.

    Each window is [BOS, T-1 tokens], so every token is predicted once, the first ones of a
    window from little context: an upper bound of what a sliding window would give.
    """
    length = lm.context - 1
    vocabulary = vocabulary_of(lm.tokenizer, lm.vocab_size)
    bytes_of = np.array([len(vocabulary[i]) for i in range(lm.vocab_size)])
    bytes_of[lm.bos_id] = 0  # it is predicted, but it is no text
    count = min(tokens, len(stream)) // length
    # Windows spread evenly over the split, so that every held-out book has its say.
    starts = np.linspace(0, len(stream) - length, count).astype(np.int64)
    nats, size = 0.0, 0
    for chunk in np.array_split(starts, max(1, count // 32)):
        rows = np.stack([stream[s : s + length] for s in chunk]).astype(np.int64)
        inputs = np.concatenate([np.full((len(rows), 1), lm.bos_id), rows], axis=1)
        nats += float(lm.token_losses(torch.from_numpy(inputs)).double().sum())
        size += int(bytes_of[rows].sum())
    return nats / size / math.log(2)


def induction_gap(lm: LanguageModel, segments: np.ndarray) -> tuple[float, float]:
    """(mean loss of the first, of the second occurrence) of segments (n, L) shown twice, in nats.

    Olsson et al. 2022, "In-context Learning and Induction Heads". The token that opens the
    second occurrence cannot be foreseen and is left out of both.
    """
    length = segments.shape[1]
    bos = np.full((len(segments), 1), lm.bos_id)
    rows = np.concatenate([bos, segments, segments], axis=1).astype(np.int64)
    losses = lm.token_losses(torch.from_numpy(rows)).double()
    return float(losses[:, 1:length].mean()), float(losses[:, length + 1 :].mean())


def measure(lm: LanguageModel, streams: dict[tuple[str, Split], Tokens]) -> dict[str, float]:
    """Every number of the model card."""
    rng = np.random.default_rng(0)
    length = (lm.context - 1) // 2
    random = rng.integers(1, lm.vocab_size, (INDUCTION_ROWS, length))
    books = streams["books", "heldout"]
    starts = rng.integers(0, len(books) - length, INDUCTION_ROWS)
    natural = np.stack([books[s : s + length] for s in starts])
    found = {
        f"bits_per_byte_{name}": bits_per_byte(lm, streams[name, "heldout"], EVALUATED_TOKENS)
        for name in ("books", "python")
    }
    for name, segments in (("random", random), ("natural", natural)):
        first, second = induction_gap(lm, segments)
        found |= {f"induction_{name}_first": first, f"induction_{name}_second": second}
    return found


def export(
    out: Path,
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    streams: dict[tuple[str, Split], Tokens],
    recipe: dict[str, Any],
    step: int,
    data_hash: str,
) -> dict[str, float]:
    """Writes the model as fp16 safetensors with its tokenizer and card; returns its numbers.

    The numbers are those of the fp16 weights that are written, computed in fp32.
    """
    stored = model.to(torch.float16).cpu()  # pyright: ignore[reportArgumentType]
    stored.config.dtype = torch.float16
    stored.save_pretrained(out)
    tokenizer.save_pretrained(out)
    loaded = GPT2LMHeadModel.from_pretrained(out, dtype=torch.float32).eval()
    lm = LanguageModel(loaded, tokenizer, name="pocket", hash=weights_hash(loaded))
    numbers = measure(lm, streams)
    write_text(out / "README.md", card(numbers, recipe, step, data_hash, lm.hash, out))
    return numbers


def card(
    numbers: dict[str, float],
    recipe: dict[str, Any],
    step: int,
    data_hash: str,
    hash: str,
    out: Path,
) -> str:
    tokens = step * recipe["rows"] * recipe["context"]
    random_gap = numbers["induction_random_first"] - numbers["induction_random_second"]
    natural_gap = numbers["induction_natural_first"] - numbers["induction_natural_second"]
    return f"""# pocket-gpt2

A small GPT-2 that travels with Loupe, so that all works on a machine without a model hub:
{recipe["layers"]} layers x {recipe["width"]}, {recipe["heads"]} heads, \
context {recipe["context"]}, \
its own byte-level BPE of 8,192 tokens, tied head, \
stored as float16 ({(out / "model.safetensors").stat().st_size / 1e6:.1f} MB), loaded as float32.
It is a specimen to look into, not a model to write with.

## Data

{1 - PYTHON_SHARE - REPEATED_SHARE:.0%} of the rows are public-domain English books (340 books \
published before 1930), {PYTHON_SHARE:.0%} docstrings, comments and source of Python's standard \
library, numpy, scipy, scikit-learn, pandas and torch, {REPEATED_SHARE:.0%} random sequences that \
repeat (their first period carries no loss). {HELDOUT_SHARE:.0%} of the documents (books, and \
groups of modules) were held out. Hash of the token streams: `{data_hash}`.

## Recipe

    nice python -m pipelines.pretrain --books classic_books.parquet --tokens {recipe["tokens"]} \
--seed {recipe["seed"]} --out sae/assets/pocket-gpt2

{tokens:,} tokens in steps of {recipe["rows"]} x {recipe["context"]}, device {recipe["device"]}. \
Muon (learning rate {recipe["muon_lr"]}) on the blocks' matrices, AdamW ({recipe["adam_lr"]}) on \
the rest, weight decay {recipe["weight_decay"]}, {recipe["warmup_steps"]} steps of warm-up, linear \
decay over the last {recipe["decay_share"]:.0%}. Seed {recipe["seed"]}.

## Numbers (held out; float16 weights, float32 arithmetic)

| | |
|---|---|
| books, bits per byte | {numbers["bits_per_byte_books"]:.3f} |
| Python, bits per byte | {numbers["bits_per_byte_python"]:.3f} |
| induction, random sequences shown twice: first, second (nats) | \
{numbers["induction_random_first"]:.2f}, {numbers["induction_random_second"]:.2f} \
(gap {random_gap:.2f}) |
| induction, spans of held-out books shown twice | \
{numbers["induction_natural_first"]:.2f}, {numbers["induction_natural_second"]:.2f} \
(gap {natural_gap:.2f}) |

Bits per byte are of windows of {recipe["context"]} tokens that do not overlap, over \
{EVALUATED_TOKENS:,} tokens spread over all held-out documents.

Hash of the weights (float32): `{hash}`
SHA-256 of `model.safetensors`: `{sha256_file(out / "model.safetensors")}`
"""
