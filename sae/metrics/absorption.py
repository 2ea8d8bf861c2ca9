"""First-letter absorption: a diagnostic of letters that a latent of another token has swallowed.

Chanin et al. 2024, "A is for Absorption: Studying Feature Splitting and Absorption in Sparse
Autoencoders". A latent that says "begins with S" is absorbed by one of "snake" if it stays silent
there and the other latent writes the letter in its stead. It is a diagnostic, not a score: it
needs a model that knows how its tokens are spelled, so the probes' accuracy stands beside it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sae.metrics.concept_data import Words
from sae.metrics.estimate import estimate_ratio
from sae.metrics.probing import FEWEST, MOST, Probe, columns, mean_difference

SPLITS = 5  # latents that a letter may be split into
LEAST_GAIN = 0.03  # of F1, by which a further latent must improve a letter's detection
LEAST_SHARE = 0.4  # of what writes the letter, that an absorbing latent must have
LEAST_COSINE = 0.1  # between an absorbing latent's decoder row and the letter's direction
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def first_letters(words: Words) -> npt.NDArray[np.str_]:
    """(E,) the letter with which the word that a token begins begins, "" where none does."""
    letter_V = []
    for token in words.token_bytes:
        begins = len(token) > 1 and token[:1] == b" " and token[1:].isalpha() and token.isascii()
        letter_V.append(chr(token[1]).lower() if begins else "")
    return np.array(letter_V)[words.token_E]


def first_letter_absorption(
    train: Words, held: Words, W_dec_FD: npt.NDArray[np.floating], seed: int = 0
) -> dict[str, Any]:
    """Absorbed: of the held-out tokens of a letter that its probe knows, the share where the
    letter's own latents are silent and one other latent writes at least `LEAST_SHARE` of it.

    Probes and a letter's own latents are found on one half of the token types, everything is
    counted on the other. Returns {"absorption": Entry, "probe_recall", "letters": {letter:
    {"latents", "f1", "silent", "known", "absorbed", "tokens"}}}.
    """
    rng = np.random.default_rng(seed)
    vocabulary = len(held.token_bytes)
    learned_V = rng.permutation(vocabulary) % 2 == 0
    train_letter, held_letter = first_letters(train), first_letters(held)
    train_rows = np.flatnonzero((train_letter != "") & learned_V[train.token_E])
    held_rows = np.flatnonzero((held_letter != "") & ~learned_V[held.token_E])
    letters: dict[str, Any] = {}
    tables: dict[str, list[Ints]] = {"absorbed": [], "known": [], "true": []}
    units = int(held.examples.unit_E.max()) + 1
    for letter in sorted({*train_letter[train_rows].tolist()}):
        fit = train_rows[_some(train_letter[train_rows] == letter, rng)]
        test = held_rows[held_letter[held_rows] == letter]
        if (train_letter[fit] == letter).sum() < FEWEST or len(test) < FEWEST:
            continue
        result = _letter(train, held, fit, test, train_letter[fit] == letter, W_dec_FD)
        unit_E = held.examples.unit_E[test]
        masks = {name: result.pop(f"{name}_E") for name in ("absorbed", "known")}
        counts = {name: int(mask_E.sum()) for name, mask_E in masks.items()}
        letters[letter] = {**result, **counts, "tokens": len(test)}
        for name, mask_E in {**masks, "true": np.ones(len(test), bool)}.items():
            tables[name].append(np.bincount(unit_E[mask_E], minlength=units))
    sums = {name: np.sum(parts, axis=0) * 1.0 for name, parts in tables.items() if parts}
    if not sums:
        return {"absorption": None, "probe_recall": None, "letters": {}}
    tokens = int(sums["known"].sum())
    return {
        "absorption": estimate_ratio(sums["absorbed"], sums["known"], tokens, seed),
        "probe_recall": estimate_ratio(sums["known"], sums["true"], int(sums["true"].sum()), seed),
        "letters": letters,
    }


def _some(yes_E: npt.NDArray[np.bool_], rng: np.random.Generator) -> Ints:
    """Positives, and twice as many negatives."""
    yes, no = np.flatnonzero(yes_E), np.flatnonzero(~yes_E)
    count = min(MOST, len(yes))
    chosen = rng.choice(yes, count, replace=False)
    return np.concatenate([chosen, rng.choice(no, min(2 * count, len(no)), replace=False)])


def _letter(
    train: Words,
    held: Words,
    fit: Ints,
    test: Ints,
    yes_E: npt.NDArray[np.bool_],
    W_dec_FD: npt.NDArray[np.floating],
) -> dict[str, Any]:
    probe = Probe(strength=0.1).fit(train.examples.x_ED[fit], yes_E)
    direction_D = probe.direction_C
    own, f1 = main_latents(train.examples.codes_EF[fit], yes_E)
    known_E = probe.score(held.examples.x_ED[test]) > 0
    codes_EF = held.examples.codes_EF[test]
    silent_E = np.asarray((codes_EF[:, own] > 0).sum(1)).ravel() == 0
    write_F = W_dec_FD @ direction_D
    norms_F = np.linalg.norm(W_dec_FD, axis=1) * np.linalg.norm(direction_D)
    aligned_F = write_F / np.maximum(norms_F, 1e-12)
    written_EF = codes_EF.multiply(np.maximum(write_F, 0)[None, :]).tocsr()
    total_E = np.asarray(written_EF.sum(1)).ravel()
    others_EF = written_EF.multiply((aligned_F >= LEAST_COSINE)[None, :]).tocsr()
    largest_E = np.asarray(others_EF.max(axis=1).todense()).ravel()
    takes_over_E = (total_E > 0) & (largest_E >= LEAST_SHARE * total_E)
    return {
        "latents": own.tolist(),
        "f1": f1,
        "silent": float(silent_E[known_E].mean()) if known_E.any() else 0.0,
        "known_E": known_E,
        "absorbed_E": known_E & silent_E & takes_over_E,
    }


def main_latents(codes_EF: Any, yes_E: npt.NDArray[np.bool_]) -> tuple[Ints, float]:
    """The latents whose union of firings detects the positives, as many as improve its F1."""
    candidates = np.argsort(-mean_difference(codes_EF, yes_E), kind="stable")[:SPLITS]
    fires_EC = columns(codes_EF, candidates) > 0
    chosen, best = [], 0.0
    fired_E = np.zeros(len(yes_E), bool)
    for column, latent in enumerate(candidates):
        joined_E = fired_E | fires_EC[:, column]
        hits = float((joined_E & yes_E).sum())
        f1 = 2 * hits / max(1.0, float(joined_E.sum() + yes_E.sum()))
        if not chosen or f1 >= best + LEAST_GAIN:
            chosen.append(int(latent))
            best, fired_E = f1, joined_E
    return np.array(chosen, np.int64), best
