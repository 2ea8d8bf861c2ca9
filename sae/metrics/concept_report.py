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
from sae.metrics.concept_wins import controls_that_win
from sae.metrics.concepts import YES
from sae.metrics.erasure import spurious_correlation_removal, targeted_probe_perturbation
from sae.metrics.estimate import INTERVAL
from sae.metrics.probing import sparse_probing, usable
from sae.metrics.provenance import special_ids
from sae.metrics.scoring import Progress
from sae.metrics.specificity import concept_latents
from sae.metrics.steps import counted, silent
from sae.store import ActivationStore

if TYPE_CHECKING:
    from sae.lm import LanguageModel

SCHEMA = 3
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
        sides = []
        step = counted(partial(progress, f"codes of the {name}"), 2)
        for split in ("train", "heldout"):
            sides.append(token_examples(method, store, site, split, tokens, special, token_bytes))
            step()
        (train, train_texts), (held, held_texts) = sides
        W_dec_FD = method.W_dec_FD.detach().cpu().double().numpy()
        tell = partial(progress, f"concepts of the {name}")
        found[name] = measure(train, train_texts, held, held_texts, W_dec_FD, seed, tell)
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
        "won_by": controls_that_win(own, found),
    }


def measure(
    train: Words,
    train_texts: Examples,
    held: Words,
    held_texts: Examples,
    W_dec_FD: np.ndarray,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:
    """The metrics of one dictionary. Concepts with too few examples are named in `left_out`."""
    own = [name for name in rules.names() if usable(name, train.examples, held.examples)]
    texts = [name for name in train_texts.labels if usable(name, train_texts, held_texts)]
    known = {*rules.names(), *train_texts.labels}
    step = counted(tell, 2 * len(own) + len(texts) + 3)
    found = {
        "concepts": {
            name: {
                "train": int((side[0].labels[name] == YES).sum()),
                "heldout": int((side[1].labels[name] == YES).sum()),
            }
            for names, side in (
                (own, (train.examples, held.examples)),
                (texts, (train_texts, held_texts)),
            )
            for name in names
        },
        "left_out": sorted(known - {*own, *texts}),
        "probing": sparse_probing(train.examples, held.examples, own, seed=seed, step=step)
        | sparse_probing(train_texts, held_texts, texts, seed=seed, step=step),
        "targeted_ablation": targeted_probe_perturbation(
            train.examples, held.examples, own, W_dec_FD, seed=seed, step=step
        ),
    }
    found["spurious_removal"] = {
        "tokens": spurious_correlation_removal(
            train.examples, held.examples, own, W_dec_FD, seed=seed
        ),
        "texts": spurious_correlation_removal(train_texts, held_texts, texts, W_dec_FD, seed=seed),
    }
    step()
    found["first_letter_absorption"] = first_letter_absorption(train, held, W_dec_FD, seed)
    step()
    found["latents"] = concept_latents(train.examples, held.examples, own, seed)
    step()
    return found
