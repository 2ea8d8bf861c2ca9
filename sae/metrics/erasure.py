"""Taking a concept out by its latents: targeted probe perturbation, spurious correlations removed.

Karvonen et al. 2024, "Evaluating Sparse Autoencoders on Targeted Concept Erasure Tasks" (TPP, SCR),
after Marks et al. 2024, "Sparse Feature Circuits" (SHIFT). Latents are held at their mean m, with
the coder's error kept, x − Σ (f_i − m_i) d_i, and linear probes of x read what is left. (At 0
instead of their mean they would also move every example across the probe's threshold, which is no
loss of what the probe knows.) Log-odds change by exactly −Σ (f_i − m_i)(d_i · w), so that no
ablated activation is ever made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sae.metrics.bootstrap import Entry
from sae.metrics.concept_data import Examples
from sae.metrics.concepts import NO, YES
from sae.metrics.estimate import estimate, estimate_ratio
from sae.metrics.paired import PairedEntry
from sae.metrics.probing import FEWEST, MOST, Probe, columns, mean_difference
from sae.metrics.steps import Step, no_step
from sae.metrics.sums import Sums

SIZES = (2, 5, 10, 20)  # latents that are taken out
LEAST_BIAS = (
    0.03  # accuracy that a spurious correlation must cost, for its removal to mean anything
)
MOST_PAIRS = 12
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """A probe of the whole activation for one concept, and the latents behind it, by effect."""

    probe: Probe
    order_F: Ints  # latents, the most important first
    mean_F: Floats  # of their activations, where the probe was fitted

    @classmethod
    def of(cls, fit: Examples, concept: str, W_dec_FD: npt.NDArray[np.floating]) -> "Fitted":
        """Latents are ranked by (mean⁺ − mean⁻) · (d_i · w): what they add to the log-odds of
        positives more than to those of negatives."""
        yes_E = fit.labels[concept] == YES
        probe = Probe(strength=0.1).fit(fit.x_ED, yes_E)
        effect_F = mean_difference(fit.codes_EF, yes_E) * (W_dec_FD @ probe.direction_C)
        mean_F = np.asarray(fit.codes_EF.mean(0)).ravel()
        return cls(probe, np.argsort(-effect_F, kind="stable"), mean_F)

    def log_odds(self, test: Examples) -> Floats:
        """(E,) of x."""
        return self.probe.score(test.x_ED)

    def change(
        self, test: Examples, behind: "Fitted", size: int, W_dec_FD: npt.NDArray[np.floating]
    ) -> Floats:
        """(E,) what is added to the log-odds when the first `size` latents of `behind` are held
        at their mean."""
        chosen = behind.order_F[:size]
        write_N = W_dec_FD[chosen] @ self.probe.direction_C
        return (behind.mean_F[chosen] - columns(test.codes_EF, chosen)) @ write_N


def targeted_probe_perturbation(
    train: Examples,
    held: Examples,
    concepts: Sequence[str],
    W_dec_FD: npt.NDArray[np.floating],
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    step: Step = no_step,
) -> dict[str, Any]:
    """TPP(n) = mean over concepts i of [the accuracy that the probe of i loses when the n latents
    of i are taken out] − mean over i ≠ j of [what the probe of j loses by them].

    1/2 at best (a probe falls from certain to guessing, the others are untouched), 0 for latents
    that hurt all alike. Returns {"concepts", "n2": {"tpp", "intended", "unintended": Entry,
    "lost": C × C accuracies lost, row = concept whose latents went}}.
    """
    fitted, tests = [], []
    for number, concept in enumerate(concepts):
        rng = np.random.default_rng([seed, number])
        fit = train.take(train.balanced(concept, MOST, rng))
        fitted.append(Fitted.of(fit, concept, W_dec_FD))
        tests.append(held.take(held.balanced(concept, MOST, rng)))
        step()
    found: dict[str, Any] = {"concepts": list(concepts)}
    if len(concepts) < 2:
        return found
    units = int(held.unit_E.max()) + 1
    for size in sizes:
        lost = np.zeros((units, len(concepts), len(concepts)))
        counts = np.zeros((units, len(concepts)))
        for j, (concept, test) in enumerate(zip(concepts, tests, strict=True)):
            yes_E = test.labels[concept] == YES
            counts[:, j] = np.bincount(test.unit_E, minlength=units)
            odds_E = fitted[j].log_odds(test)
            right_E = ((odds_E > 0) == yes_E) * 1.0
            for i, source in enumerate(fitted):
                after_E = odds_E + fitted[j].change(test, source, size, W_dec_FD)
                change_E = right_E - ((after_E > 0) == yes_E)
                lost[:, i, j] = np.bincount(test.unit_E, change_E, units)
        found[f"n{size}"] = _tpp_entries(lost, counts, sum(map(len, tests)), seed)
    return found


def _tpp_entries(lost: Floats, counts: Floats, tokens: int, seed: int) -> dict[str, Any]:
    """From accuracy lost (U, C, C) and examples (U, C), summed per unit."""
    size = counts.shape[1]
    table = {"lost": lost.reshape(len(lost), -1), "examples": counts}
    own = np.eye(size, dtype=bool)

    def matrix(s: Sums) -> npt.NDArray[np.floating]:
        rates = s["lost"].reshape(-1, size, size)
        return rates / np.maximum(s["examples"], 1)[:, None, :]

    def intended(s: Sums) -> npt.NDArray[np.floating]:
        return matrix(s)[:, own].mean(1)

    def unintended(s: Sums) -> npt.NDArray[np.floating]:
        return matrix(s)[:, ~own].mean(1)

    whole = Sums(table, np.ones((1, len(lost))))
    return {
        "tpp": PairedEntry(lambda s: intended(s) - unintended(s), table, tokens, seed),
        "intended": estimate(intended, table, tokens, seed),
        "unintended": estimate(unintended, table, tokens, seed),
        "lost": matrix(whole)[0].tolist(),
    }


def spurious_correlation_removal(
    train: Examples,
    held: Examples,
    concepts: Sequence[str],
    W_dec_FD: npt.NDArray[np.floating],
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
) -> dict[str, Any]:
    """SCR(n) = (acc without − acc biased) / (acc unbiased − acc biased), per pair of concepts.

    A probe of `concept` is fitted where it always comes with `spurious`, and tested where the two
    are independent: it is `biased`. The n latents behind the spurious one (of a probe fitted for
    it where the two are independent) are taken out of what it reads: `without`. `unbiased` is a
    probe fitted where they are independent. 1: the bias is gone; 0: it stayed; below 0: worse.
    Returns {"pairs": of each these numbers, "n2": Entry, the mean over pairs, …}.
    """
    pairs = []
    for concept, spurious in _pairs(train, held, concepts):
        pair = _Pair.of(train, held, concept, spurious, W_dec_FD, sizes, seed)
        if pair.bias >= LEAST_BIAS:
            pairs.append(pair)
    return {
        "pairs": [pair.entries(sizes, seed) for pair in pairs],
        **{f"n{size}": _mean_removed(pairs, size, seed) for size in sizes},
    }


def _pairs(train: Examples, held: Examples, concepts: Sequence[str]) -> list[tuple[str, str]]:
    """Ordered pairs whose four cells are all well filled, those with the fullest ones first."""
    sizes = {}
    for concept in concepts:
        for spurious in concepts:
            if concept != spurious:
                cells = [_cells(side, concept, spurious) for side in (train, held)]
                sizes[concept, spurious] = min(len(rows) for found in cells for rows in found)
    good = [pair for pair, size in sizes.items() if size >= FEWEST]
    return sorted(good, key=lambda pair: -sizes[pair])[:MOST_PAIRS]


def _cells(side: Examples, concept: str, spurious: str) -> list[Ints]:
    """Rows with (concept, spurious) = (1, 1), (0, 0), (1, 0), (0, 1)."""
    own_E, other_E = side.labels[concept], side.labels[spurious]
    wanted = ((YES, YES), (NO, NO), (YES, NO), (NO, YES))
    return [np.flatnonzero((own_E == a) & (other_E == b)) for a, b in wanted]


def _drawn(side: Examples, cells: Sequence[Ints], rng: np.random.Generator) -> Examples:
    """As many rows of each cell."""
    count = min(MOST // 2, *(len(rows) for rows in cells))
    rows = np.concatenate([rng.choice(rows, count, replace=False) for rows in cells])
    return side.take(rng.permutation(rows))


@dataclass(frozen=True)
class _Pair:
    """A spurious correlation of two concepts: per unit, the test examples and how many of them are
    right by the `biased` probe, the `unbiased` one, and the biased one `without` n latents."""

    concept: str
    spurious: str
    table: dict[str, Floats]

    @classmethod
    def of(
        cls,
        train: Examples,
        held: Examples,
        concept: str,
        spurious: str,
        W_dec_FD: npt.NDArray[np.floating],
        sizes: Sequence[int],
        seed: int,
    ) -> "_Pair":
        rng = np.random.default_rng(seed)
        cells = _cells(train, concept, spurious)
        together, apart = _drawn(train, cells[:2], rng), _drawn(train, cells, rng)
        test = _drawn(held, _cells(held, concept, spurious), rng)
        biased = Fitted.of(together, concept, W_dec_FD)
        unbiased = Fitted.of(apart, concept, W_dec_FD)
        behind = Fitted.of(apart, spurious, W_dec_FD)
        odds_E = biased.log_odds(test)
        odds = {"biased": odds_E, "unbiased": unbiased.log_odds(test)}
        for size in sizes:
            odds[f"n{size}"] = odds_E + biased.change(test, behind, size, W_dec_FD)
        units = int(held.unit_E.max()) + 1  # of all pairs: their means are resampled together
        yes_E = test.labels[concept] == YES
        counted = {"count": np.ones(len(test))}
        counted |= {name: ((found_E > 0) == yes_E) * 1.0 for name, found_E in odds.items()}
        table = {
            name: np.bincount(test.unit_E, values_E, units).astype(np.float64)
            for name, values_E in counted.items()
        }
        return cls(concept, spurious, table)

    @property
    def examples(self) -> int:
        return int(self.table["count"].sum())

    @property
    def bias(self) -> float:
        """Accuracy that the correlation costs."""
        return float((self.table["unbiased"] - self.table["biased"]).sum()) / self.examples

    def entries(self, sizes: Sequence[int], seed: int) -> dict[str, Any]:
        found: dict[str, Any] = {"concept": self.concept, "spurious": self.spurious}
        used = self.table["count"] > 0
        table = {name: values[used] for name, values in self.table.items()}
        for name in ("biased", "unbiased"):
            found[name] = estimate_ratio(table[name], table["count"], self.examples, seed)
        for size in sizes:
            terms = {name: table[name] for name in ("biased", "unbiased")}
            terms["without"] = table[f"n{size}"]
            found[f"n{size}"] = estimate(_removed, terms, self.examples, seed)
        return found


def _removed(s: Sums) -> npt.NDArray[np.floating]:
    return (s["without"] - s["biased"]) / (s["unbiased"] - s["biased"])


def _mean_removed(pairs: Sequence[_Pair], size: int, seed: int) -> Entry:
    """The mean over pairs, with units resampled for all of them at once; None without any."""
    if not pairs:
        return {"value": None, "low": None, "high": None, "tokens": 0}
    names = {"biased": "biased", "unbiased": "unbiased", "without": f"n{size}"}
    table = {
        term: np.stack([pair.table[name] for pair in pairs], axis=1) for term, name in names.items()
    }
    table["count"] = np.sum([pair.table["count"] for pair in pairs], axis=0)
    examples = sum(pair.examples for pair in pairs)
    return PairedEntry(lambda s: _removed(s).mean(1), table, examples, seed)
