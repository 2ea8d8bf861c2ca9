"""All concept metrics of one coder: probing, erasure, absorption, specificity. Nothing is loaded.

report = concept_report(coder, store, lm, vocabulary_of(lm.tokenizer, lm.vocab_size).tokens)
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sae.base.errors import UserError
from sae.coders import Coder, check_fit
from sae.metrics import concepts as rules
from sae.metrics.ablation import Dictionary
from sae.metrics.absorption import first_letter_absorption
from sae.metrics.concept_data import Examples, Words, token_examples
from sae.metrics.concept_kinds import UNTOLD, of_code
from sae.metrics.concept_wins import against_controls
from sae.metrics.concepts import UNKNOWN, YES
from sae.metrics.erasure import spurious_correlation_removal, targeted_probe_perturbation
from sae.metrics.estimate import INTERVAL
from sae.metrics.probing import sparse_probing, unusable
from sae.metrics.provenance import special_ids
from sae.metrics.scoring import Progress
from sae.metrics.specificity import concept_latents
from sae.metrics.steps import counted, silent
from sae.store import ActivationStore

if TYPE_CHECKING:
    from sae.lm import LanguageModel

SCHEMA = 4
TOKENS = 65_536  # of each split


def concept_report(
    coder: Coder,
    store: ActivationStore,
    lm: "LanguageModel",
    token_bytes: Sequence[bytes],
    *,
    tokens: int = TOKENS,
    controls: Mapping[str, Dictionary] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Every concept metric, fitted on `tokens` of the train split, scored on as many held out.

    `token_bytes` are the bytes of each token of the vocabulary. `controls` (anything with a
    coder's `encode`, `decode`, `W_dec_FD`) go through the same. JSON as in `docs/metrics.md`.
    Raises `UserError` if coder, store and model do not belong together, or for a transcoder.
    """
    source, site = check_fit(coder, store, lm)
    if source != site:
        raise UserError(
            f"Concepts are read from, and taken out of, one site; this coder reads `{source}` and "
            f"writes `{site}`."
        )
    special = special_ids(lm, store)
    found: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    over = ""
    for name, method in {"coder": coder, **(controls or {})}.items():
        found_sides = []
        step = counted(partial(progress, f"codes of the {name}"), 2)
        for split in ("train", "heldout"):
            found_sides.append(
                token_examples(method, store, site, split, tokens, special, token_bytes)
            )
            step()
        (train, train_texts), (held, held_texts) = found_sides
        W_dec_FD = method.W_dec_FD.detach().cpu().double().numpy()
        tell = partial(progress, f"concepts of the {name}")
        sides = (train, train_texts, held, held_texts)
        found[name] = measure(*sides, W_dec_FD, seed, tell, activation=name == "coder")
        measured = {"train": len(train.examples), "heldout": len(held.examples)}
        over = held.over
        measured |= {"train_texts": len(train_texts), "heldout_texts": len(held_texts)}
    own = found.pop("coder")
    return {
        "schema": SCHEMA,
        "site": site,
        "tokens": measured,
        "interval": {**INTERVAL, "over": over},
        **own,
        "controls": found,
        "against_controls": against_controls(own, found),
    }


def measure(
    train: Words,
    train_texts: Examples,
    held: Words,
    held_texts: Examples,
    W_dec_FD: np.ndarray,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
    activation: bool = True,
) -> dict[str, Any]:
    """The metrics of one dictionary. `left_out` says why a concept could not be measured.

    Without `activation`, probes of the activation itself are left out of `probing`.
    """
    both, both_texts = (train.examples, held.examples), (train_texts, held_texts)
    why = {name: _why_not(name, *both) for name in rules.names()}
    why_texts = {name: _why_not(name, *both_texts) for name in train_texts.labels}
    own, texts = ([n for n, reason in w.items() if reason is None] for w in (why, why_texts))
    step = counted(tell, 2 * len(own) + len(texts) + 3)
    probing = partial(sparse_probing, seed=seed, step=step, activation=activation)
    found = {
        "concepts": _positives(own, *both) | _positives(texts, *both_texts),
        "left_out": {n: reason for n, reason in sorted((why | why_texts).items()) if reason},
        "probing": probing(*both, own) | probing(*both_texts, texts),
        "targeted_ablation": targeted_probe_perturbation(
            *both, own, W_dec_FD, seed=seed, step=step
        ),
    }
    found["spurious_removal"] = {
        "tokens": spurious_correlation_removal(*both, own, W_dec_FD, seed=seed),
        "texts": spurious_correlation_removal(*both_texts, texts, W_dec_FD, seed=seed),
    }
    step()
    found["first_letter_absorption"] = first_letter_absorption(train, held, W_dec_FD, seed)
    step()
    found["latents"] = concept_latents(*both, own, seed)
    step()
    return found


def _positives(names: list[str], train: Examples, held: Examples) -> dict[str, dict[str, int]]:
    sides = {"train": train, "heldout": held}
    return {
        name: {split: int((side.labels[name] == YES).sum()) for split, side in sides.items()}
        for name in names
    }


def _why_not(concept: str, train: Examples, held: Examples) -> str | None:
    """Why a concept is left out; None if it is not."""
    told = [
        bool((side.labels[concept] != UNKNOWN).any())
        for side in (train, held)
        if concept in side.labels
    ]
    if of_code(concept) and not all(told):
        return UNTOLD
    return unusable(concept, train, held)
