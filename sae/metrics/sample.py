"""Which tokens of a split are scored, and which document each belongs to.

Scored are all tokens but position 0 (an outlier, not data), BOS, EOS and PAD. A budget smaller
than the split is spent on short runs of sequences spread evenly over all of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.metrics.bootstrap import MIN_UNITS
from sae.store import ActivationStore

BLOCK_ROWS = 2048  # rows read and scored at a time: one chunk of a store
MAX_UNITS = 4096  # documents beyond this are folded together, to bound the tables


@dataclass(frozen=True)
class Batch:
    """Activations of B rows: the scored ones and those at position 0.

    `x_BD` is what is to be predicted; `read_BD` what the coder is given, where that differs.
    """

    x_BD: Tensor  # float32
    unit_B: Tensor  # int64
    scored_B: Tensor  # bool; the others are at position 0
    read_BD: Tensor | None = None

    @property
    def given_BD(self) -> Tensor:
        """What the coder is given."""
        return self.x_BD if self.read_BD is None else self.read_BD


@dataclass(frozen=True)
class Sample:
    """Whole sequences of a split (n of them), in runs of consecutive ones."""

    store: ActivationStore
    runs: list[range]  # absolute sequence numbers
    tokens_ST: np.ndarray  # (n, T) int64
    scored_ST: np.ndarray  # bool
    unit_ST: np.ndarray  # int64, the unit of resampling of each token
    units: int
    over: str  # "documents" or "sequences", or "groups of" them
    special: frozenset[int]

    @property
    def tokens(self) -> int:
        """Scored tokens."""
        return int(self.scored_ST.sum())

    def __iter__(self) -> Iterator[tuple[range, slice]]:
        """The runs, each with where its sequences lie in `tokens_ST` and its like."""
        start = 0
        for run in self.runs:
            yield run, slice(start, start + len(run))
            start += len(run)

    @property
    def numbers(self) -> np.ndarray:
        """(n,) the absolute number of each sequence."""
        return np.concatenate([np.asarray(run, np.int64) for run in self.runs])

    def batches(
        self, site: str, device: torch.device | str = "cpu", source: str | None = None
    ) -> Iterator[Batch]:
        """Activations of the whole sample at `site`, and at `source` too, a block at a time."""
        source = None if source == site else source
        size = max(1, BLOCK_ROWS // self.store.context)
        numbers = self.numbers

        def rows(of: str, runs: list[range]) -> Tensor:
            x_BD = torch.from_numpy(_read_runs(self.store, of, runs))
            return x_BD.to(device, torch.float32)[wanted.to(device)]

        for start in range(0, len(numbers), size):
            where = slice(start, start + size)
            runs = _consecutive(numbers[where])
            scored_ST = torch.from_numpy(self.scored_ST[where])
            first_ST = torch.zeros_like(scored_ST)
            first_ST[:, 0] = True
            wanted, scored = (scored_ST | first_ST).flatten(), scored_ST.flatten()
            unit = torch.from_numpy(self.unit_ST[where].reshape(-1))
            read_BD = rows(source, runs) if source else None
            yield Batch(rows(site, runs), unit[wanted], scored[wanted], read_BD)

    def some(self, sequences: int) -> "Sample":
        """At most that many of its sequences (at least one), spread evenly over it.

        Intervals resample what *it* holds: the documents, or the sequences if those are few.
        """
        kept = evenly(len(self.tokens_ST), sequences)
        runs = _consecutive(self.numbers[kept])
        return _sample(self.store, runs, self.tokens_ST[kept], self.scored_ST[kept], self.special)

    def about(self, tokens: int) -> "Sample":
        """About that many of its tokens, in sequences that are spread evenly over it."""
        share = min(1.0, tokens / max(1, self.tokens))
        return self.some(round(len(self.tokens_ST) * share))

    def thinned(self, tokens: int, seed: int) -> "Sample":
        """The same sequences, of whose tokens so many are still scored, drawn at random.

        Neighbours say much the same: few tokens of many sequences say more than all of a few.
        """
        scored = np.flatnonzero(self.scored_ST)
        kept = np.random.default_rng(seed).permutation(scored)[:tokens]
        scored_ST = np.zeros_like(self.scored_ST)
        scored_ST.reshape(-1)[kept] = True
        return _sample(self.store, self.runs, self.tokens_ST, scored_ST, self.special)


@dataclass(frozen=True)
class Part:
    """A sample, and the even part of it on which the controls are scored too."""

    whole: Sample
    shared: Sample


def draw(
    store: ActivationStore,
    split: str,
    tokens: int,
    special: frozenset[int] | set[int],
    block_rows: int = BLOCK_ROWS,
) -> Sample:
    """About `tokens` tokens of a split, or all of it; `special` are the ids never scored.

    Raises `UserError` if the split does not exist or holds no token that can be scored.
    """
    rows = store.rows_of(split)
    first, stop = rows.start // store.context, rows.stop // store.context
    per_block = max(1, block_rows // store.context)
    wanted = min(stop - first, -(-tokens // max(1, store.context - 1)))
    runs, tokens_ST, scored_ST = _read(store, _spread(first, stop, wanted, per_block), special)
    if 0 < (found := int(scored_ST.sum())) < tokens and wanted < stop - first:
        # Special tokens took more than position 0 did: make the budget whole.
        wanted = min(stop - first, -(-wanted * tokens // found) + 1)
        runs, tokens_ST, scored_ST = _read(store, _spread(first, stop, wanted, per_block), special)
    if not scored_ST.any():
        raise UserError(
            f"The split `{split}` of {store.path} has no token to score; harvest more text."
        )
    return _sample(store, runs, tokens_ST, scored_ST, frozenset(special))


def evenly(count: int, wanted: int) -> np.ndarray:
    """`wanted` of the numbers below `count` (at least one, at most all), evenly spread."""
    wanted = min(count, max(1, wanted))
    return np.linspace(0, count - 1, wanted).round().astype(np.int64)


def _sample(
    store: ActivationStore,
    runs: list[range],
    tokens_ST: np.ndarray,
    scored_ST: np.ndarray,
    special: frozenset[int],
) -> Sample:
    unit_ST, units, over = _units(store, runs, scored_ST)
    return Sample(store, runs, tokens_ST, scored_ST, unit_ST, units, over, special)


def _consecutive(numbers: np.ndarray) -> list[range]:
    """Ascending sequence numbers as runs of consecutive ones."""
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return [range(int(part[0]), int(part[-1]) + 1) for part in parts]


def _read_runs(store: ActivationStore, site: str, runs: list[range]) -> np.ndarray:
    context = store.context
    found = [store.read(site, run.start * context, run.stop * context) for run in runs]
    return found[0] if len(found) == 1 else np.concatenate(found)


def _read(
    store: ActivationStore, runs: list[range], special: frozenset[int] | set[int]
) -> tuple[list[range], np.ndarray, np.ndarray]:
    """The runs' tokens (n, T), and which of them are scored."""
    empty = np.empty((0, store.context), np.int64)
    tokens_ST = np.concatenate([empty, *(store.tokens(run.start, run.stop) for run in runs)])
    scored_ST = ~np.isin(tokens_ST, sorted(special))
    scored_ST[:, :1] = False
    return runs, tokens_ST, scored_ST


def _spread(first: int, stop: int, wanted: int, per_block: int) -> list[range]:
    """Runs of at most `per_block` sequences, `wanted` in all, spread over [first, stop)."""
    starts = np.arange(first, stop, per_block)
    blocks = -(-wanted // per_block)
    if blocks < len(starts):
        starts = starts[evenly(len(starts), blocks)]
    runs, left = [], wanted
    for start in starts.tolist():
        run = range(start, min(start + per_block, stop, start + left))
        left -= len(run)
        if len(run):
            runs.append(run)
    return runs


def _units(
    store: ActivationStore, runs: list[range], scored_ST: np.ndarray
) -> tuple[np.ndarray, int, str]:
    """The unit of resampling of each token: its document, or its sequence if documents are too few
    for an interval; a group of them if they are more than `MAX_UNITS`.

    Sequences of one document are dependent, so that resampling them gives too narrow an interval
    for other text: it is of these documents, and the evaluation says which it is.
    """
    context = store.context
    rows = np.concatenate([np.arange(r.start * context, r.stop * context) for r in runs])
    documents = store.documents.of_rows(rows)
    if len(np.unique(documents[scored_ST.reshape(-1)])) >= MIN_UNITS:
        found, unit = np.unique(documents, return_inverse=True)
        over, units = "documents", len(found)
    else:
        unit, units, over = np.arange(len(rows)) // context, len(rows) // context, "sequences"
    if units > MAX_UNITS:
        over = f"groups of {over}"
    return (unit % MAX_UNITS).reshape(scored_ST.shape), min(units, MAX_UNITS), over
