"""Data with a known dictionary, to measure whether a coder finds the truth.

A row is a sparse non-negative sum of unit directions, x = Σ_i a_i d_i + offset + noise, with more
directions than dimensions (superposition: Elhage et al. 2022, "Toy Models of Superposition";
Sharkey, Braun & Millidge 2022, "Taking features out of superposition with sparse autoencoders").

    recipe = Recipe(d=64, features=256, families=8)
    stream = SyntheticStream(SyntheticTruth(recipe), batch=1024, seed=0)
    sample = stream.sample(17)                  # x_BD and the true activations, always the same
    train(trainers, stream, folder, steps, fingerprint="...")

Batch i is a pure function of (recipe, seed, batch size, i): any number of rows can be drawn, and
a training resumes where it was. Without torch.
"""

from collections.abc import Generator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.special import ndtri

from sae.base.errors import UserError
from sae.store import ActivationStore, DocumentTable, SiteStats, StoreSpec, StoreWriter
from sae.store.stats import SiteSums

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
SITE = "synthetic"
Magnitude = Literal["folded_normal", "log_normal"]
HIGHEST = 0.5  # no feature fires more often than this


@dataclass(frozen=True)
class Recipe:
    """How the truth is drawn. Features are numbered by firing probability, most frequent first.

    Probabilities follow Zipf's law, p_r ∝ r^(-zipf) (at most 1/2), and sum to `l0`; hierarchy,
    exclusion and correlation leave every one of them as it is:
    - the first `families` features are parents, the next `families * children` their children,
      which fire only where their parent does;
    - `exclusive` = (groups, size): of each group at most one fires in a row;
    - `correlated` = (groups, size): firings of a group share a Gaussian copula with `correlation`.
    Magnitudes have location 1: |1 + spread · z| or exp(spread · z), z standard normal.
    """

    d: int = 64
    features: int = 256
    l0: float = 6.0  # features that fire in a row, on average
    zipf: float = 0.8
    families: int = 0
    children: int = 3
    exclusive: tuple[int, int] = (0, 2)
    correlated: tuple[int, int] = (0, 2)
    correlation: float = 0.6
    magnitude: Magnitude = "folded_normal"
    spread: float = 0.3
    noise: float = 0.0  # standard deviation in each dimension
    offset: float = 0.0  # norm of a constant vector
    seed: int = 0  # of the dictionary and the groups, not of the rows

    def __post_init__(self) -> None:
        needed = self.families * (1 + self.children)
        needed += self.exclusive[0] * self.exclusive[1] + self.correlated[0] * self.correlated[1]
        if needed > self.features:
            raise UserError(
                f"Families, exclusive and correlated groups need {needed} features but `features` "
                f"is {self.features}; ask for more features or fewer groups."
            )
        if not 0 < self.l0 <= HIGHEST * self.features:
            raise UserError(
                f"`l0` is {self.l0}; with {self.features} features it must lie above 0 and at "
                f"most at {HIGHEST * self.features:g}."
            )
        for name in ("zipf", "spread", "noise", "offset"):
            if not getattr(self, name) >= 0:  # NaN is not
                raise UserError(f"`{name}` is {getattr(self, name)}; it must not be negative.")
        if not 0 <= self.correlation < 1:
            raise UserError(f"`correlation` is {self.correlation}; it must lie in [0, 1).")
        if self.magnitude not in get_args(Magnitude):
            raise UserError(
                f"`magnitude` is {self.magnitude!r}; it must be one of "
                f"{', '.join(get_args(Magnitude))}."
            )


@dataclass(frozen=True)
class Sample:
    """Rows and what they are made of: x_BD float32, and the true activations as CSR (B, n)."""

    x_BD: Floats
    acts: sp.csr_matrix


class SyntheticTruth:
    """The dictionary and the structure that a recipe stands for.

    `dictionary_nD` unit rows; `probability_n` of firing, exactly; `parent_n` (-1: none);
    `exclusive_n`, `correlated_n` the group of each feature (-1: none); `offset_D`. `target_nD` is
    what a coder's decoder is to find: the same dictionary, unless there are two sites
    (`sae.synthetic_sites`).
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        rng = np.random.default_rng([recipe.seed, 0])
        n, families = recipe.features, recipe.families
        self.dictionary_nD = self.target_nD = unit_rows(rng, n, recipe.d)
        offset = rng.standard_normal(recipe.d)
        self.offset_D = offset * (recipe.offset / np.linalg.norm(offset))
        self.probability_n = zipf_probabilities(n, recipe.zipf, recipe.l0)
        self.parent_n = np.full(n, -1)
        last = families * (1 + recipe.children)
        self.parent_n[families:last] = np.arange(last - families) % max(1, families)
        rest = last + rng.permutation(n - last)
        used = recipe.exclusive[0] * recipe.exclusive[1]
        self.exclusive_n = _groups(n, rest, *recipe.exclusive)
        self.correlated_n = _groups(n, rest[used:], *recipe.correlated)
        for group in range(recipe.exclusive[0]):
            total = self.probability_n[self.exclusive_n == group].sum()
            if total > 1:
                raise UserError(
                    f"The features of an exclusive group fire with {total:.2f} in all, which "
                    "must not exceed 1; lower `l0` or `zipf`, or make the groups smaller."
                )

    @property
    def related(self) -> Ints:
        """(pairs, 2): every (parent, child), and every pair within a correlated group."""
        children = np.flatnonzero(self.parent_n >= 0)
        pairs = [np.stack([self.parent_n[children], children], axis=1)]
        for group in range(self.recipe.correlated[0]):
            members = np.flatnonzero(self.correlated_n == group)
            first, second = np.triu_indices(len(members), 1)
            pairs.append(np.stack([members[first], members[second]], axis=1))
        return np.concatenate(pairs)

    @cached_property
    def _own_n(self) -> npt.NDArray[np.float64]:
        """Probability of firing where the parent, if any, does."""
        own = self.probability_n.copy()
        children = self.parent_n >= 0
        own[children] /= self.probability_n[self.parent_n[children]]
        return own

    def fire(self, rng: np.random.Generator, rows: int) -> npt.NDArray[np.bool_]:
        """Which features fire: (rows, n)."""
        own_n = self._own_n.astype(np.float32)
        fires = rng.random((rows, self.recipe.features), dtype=np.float32) < own_n
        for group in range(self.recipe.exclusive[0]):  # disjoint parts of one uniform draw
            members = np.flatnonzero(self.exclusive_n == group)
            upper = np.cumsum(self.probability_n[members])
            draw = rng.random((rows, 1))
            fires[:, members] = (draw < upper) & (draw >= upper - self.probability_n[members])
        correlated = np.flatnonzero(self.correlated_n >= 0)
        if len(correlated):
            rho = self.recipe.correlation
            shared = rng.standard_normal((rows, self.recipe.correlated[0]), dtype=np.float32)
            z = rng.standard_normal((rows, len(correlated)), dtype=np.float32)
            z *= np.float32(np.sqrt(1 - rho))
            z += np.float32(np.sqrt(rho)) * shared[:, self.correlated_n[correlated]]
            fires[:, correlated] = z > -ndtri(self.probability_n[correlated])
        children = np.flatnonzero(self.parent_n >= 0)
        fires[:, children] &= fires[:, self.parent_n[children]]
        return fires

    def draw(self, rng: np.random.Generator, rows: int) -> Sample:
        """`rows` rows and their true activations."""
        fires = self.fire(rng, rows)
        row, feature = np.nonzero(fires)
        z = self.recipe.spread * rng.standard_normal(len(row), dtype=np.float32)
        values = np.exp(z) if self.recipe.magnitude == "log_normal" else np.abs(1 + z)
        ends = np.searchsorted(row, np.arange(rows + 1))
        acts = sp.csr_matrix((values.astype(np.float32), feature, ends), fires.shape)
        x_BD = acts @ self.dictionary_nD.astype(np.float32)
        if self.recipe.offset:
            x_BD += self.offset_D.astype(np.float32)
        if self.recipe.noise:
            noise = rng.standard_normal(x_BD.shape, dtype=np.float32)
            x_BD += np.float32(self.recipe.noise) * noise
        return Sample(x_BD, acts)


class SyntheticStream:
    """Batches of a truth without end, in place of a store's shuffled reader.

    Streams of different seeds share the truth: train on one, evaluate on another.
    `waited` is the time in seconds that drawing the batches took.
    """

    def __init__(self, truth: SyntheticTruth, batch: int, seed: int = 0, site: str = SITE) -> None:
        if batch < 1:
            raise UserError(f"`batch` is {batch}; it must be at least 1.")
        self.truth, self.batch, self.seed, self.site = truth, batch, seed, site
        self.waited = 0.0

    def sample(self, number: int) -> Sample:
        """Batch `number`, with its truth."""
        rng = np.random.default_rng([self.truth.recipe.seed, 1, self.seed, number])
        return self.truth.draw(rng, self.batch)

    def rows(self, number: int) -> dict[str, np.ndarray]:
        """The rows of batch `number`, by site."""
        return {self.site: self.sample(number).x_BD}

    def batches(self, start: int = 0) -> Generator[dict[str, np.ndarray], None, None]:
        """Batches from number `start` on, by site, without end."""
        number = start
        while True:
            began = perf_counter()
            rows = self.rows(number)
            self.waited += perf_counter() - began
            yield rows
            number += 1

    def stats(self, batches: int = 32, site: str | None = None) -> SiteStats:
        """Statistics of the first batches, as a store has them."""
        parts = [SiteSums.of(self.rows(i)[site or self.site]) for i in range(batches)]
        return SiteStats.from_sums(SiteSums.merge(parts, len(parts[0].total_D)))


def unit_rows(rng: np.random.Generator, rows: int, width: int) -> npt.NDArray[np.float64]:
    """Rows of norm 1 in random directions."""
    directions = rng.standard_normal((rows, width))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def zipf_probabilities(features: int, exponent: float, total: float) -> npt.NDArray[np.float64]:
    """p_r = min(1/2, c · r^(-exponent)) for ranks r = 1 …, with c such that they sum to `total`."""
    weights = np.arange(1, features + 1, dtype=np.float64) ** -exponent
    low, high = 0.0, HIGHEST / weights[-1]  # at `high` every feature is at its highest
    for _ in range(200):
        middle = (low + high) / 2
        if np.minimum(HIGHEST, middle * weights).sum() < total:
            low = middle
        else:
            high = middle
    return np.minimum(HIGHEST, high * weights)


def write_store(
    path: Path | str,
    truth: SyntheticTruth,
    rows: int,
    *,
    heldout: float = 0.1,
    context: int = 128,
    seed: int = 0,
) -> ActivationStore:
    """Writes about `rows` rows as an activation store with one site, and opens it.

    A sequence is `context` independent rows, a document of its own; position 0 is left out by
    every reader, as in any store. Interrupted, the same call goes on.
    """
    sequences = max(2, -(-rows // context))
    train = sequences - max(1, round(heldout * sequences))
    spec = StoreSpec(
        sites={SITE: truth.recipe.d},
        context=context,
        sequences=sequences,
        splits={"train": (0, train), "heldout": (train, sequences)},
        model={"name": "synthetic", "hash": "", "layers": 0, "d_model": truth.recipe.d},
        tokenizer_hash="",
        # as JSON gives it back, so that an interrupted store is recognised
        corpus={"description": _as_json(truth.recipe), "hash": str(seed)},
        bos=0,
    )
    starts = np.arange(sequences, dtype=np.int64) * context
    names = [f"sequence-{i}" for i in range(sequences)]
    tokens = np.zeros((sequences, context), dtype=np.uint16)
    stream = SyntheticStream(truth, spec.shard_sequences * context, seed)
    with StoreWriter(path, spec, tokens, DocumentTable(starts, names, names)) as writer:
        for shard in writer.missing:
            first, last = spec.shard_range(shard)
            x_BD = stream.sample(shard).x_BD[: (last - first) * context]
            writer.write(shard, {SITE: x_BD.astype(np.float16)})
        writer.finish()
    return ActivationStore.open(path)


def _groups(features: int, available: Ints, groups: int, size: int) -> Ints:
    """The group of each feature; members are taken from `available`, so ranks mix."""
    group_n = np.full(features, -1)
    group_n[available[: groups * size]] = np.arange(groups * size) % max(1, groups)
    return group_n


def _as_json(recipe: Recipe) -> dict[str, object]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()}
