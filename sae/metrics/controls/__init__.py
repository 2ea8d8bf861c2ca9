"""Controls: what needs no learning of features, scored by the same pipeline as the coder.

A number that a control reaches too says nothing about the coder. Each control is an object with
a coder's `encode` and `decode`, so that the rest of the pipeline cannot tell them apart; a new
one is a function of (coder, train data, L0, seed) that gives such an object, entered in `CONTROLS`.
The coder on a randomly initialised model (`random_model`) reads other activations, and so is
scored apart, by the same functions.
"""

from sae.coders import Coder, TwoSites
from sae.metrics.controls.base import Fit, TrainData, matched_l0
from sae.metrics.controls.cache import Cache
from sae.metrics.controls.dictionaries import (
    random_dictionary,
    raw_neurons,
    shuffled_decoder,
    train_rows,
)
from sae.metrics.controls.factorised import (
    ICA_WIDEST,
    dictionary_learning,
    independent_components,
)
from sae.metrics.controls.linear import fit_full_linear_map, fit_linear_map, fit_pca
from sae.metrics.controls.random_model import RANDOM_MODEL
from sae.metrics.controls.trained import frozen_decoder

UNTRAINED: dict[str, Fit] = {
    "pca": fit_pca,
    "random_dictionary": random_dictionary,
    "train_rows": train_rows,
    "shuffled_decoder": shuffled_decoder,
    "raw_neurons": raw_neurons,
}
ICA = "independent_components"
FITTED: dict[str, Fit] = {ICA: independent_components}
TRAINED: dict[str, Fit] = {
    "dictionary_learning": dictionary_learning,
    "frozen_decoder": frozen_decoder,
}
OF_TWO_SITES: dict[str, Fit] = {
    "linear_map": fit_linear_map,
    "linear_map_full": fit_full_linear_map,
    "shuffled_decoder": shuffled_decoder,
}
CONTROLS: dict[str, Fit] = UNTRAINED | FITTED | TRAINED | OF_TWO_SITES
NAMES = (*CONTROLS, RANDOM_MODEL)  # all that can be asked for

NMF = "nmf"
NEEDS_TRAINING = "takes minutes to train; `sae evaluate RUN --full` includes it"
TOO_WIDE = f"of more than {ICA_WIDEST:,} dimensions it takes too long, and many more rows"
LEFT_OUT = {NMF: "non-negative factorisation needs activations that are never negative"}
ONE_SITE = "it reconstructs what it reads, and predicts nothing of another site"
NO_TRAINING = (
    "its training, of a TopK autoencoder of one site, has no counterpart for transcoders yet"
)
LEFT_OUT_OF_TWO_SITES = {
    "pca": "a transcoder does not reconstruct what it reads; `linear_map` takes its place",
    **dict.fromkeys(
        (n for n in (*UNTRAINED, *FITTED) if n not in ("pca", *OF_TWO_SITES)), ONE_SITE
    ),
    "dictionary_learning": ONE_SITE,
    **dict.fromkeys(("frozen_decoder", RANDOM_MODEL), NO_TRAINING),
}


def controls_of(coder: Coder, quick: bool = False) -> tuple[str, ...]:
    """Those that a coder is compared with when nothing else is asked for.

    `quick` leaves out those that take minutes to train.
    """
    if isinstance(coder, TwoSites):
        return tuple(OF_TWO_SITES)
    fitted = (*UNTRAINED, *(name for name in FITTED if name != ICA or _is_narrow(coder)))
    return fitted if quick else (*fitted, *TRAINED, RANDOM_MODEL)


def left_out(coder: Coder, chosen: tuple[str, ...]) -> dict[str, str]:
    """Controls that say nothing about this coder, or were not asked for, and why."""
    known = LEFT_OUT_OF_TWO_SITES if isinstance(coder, TwoSites) else LEFT_OUT
    slow = dict.fromkeys((*TRAINED, RANDOM_MODEL), NEEDS_TRAINING)
    if not _is_narrow(coder):
        slow[ICA] = TOO_WIDE
    found = known if isinstance(coder, TwoSites) or not chosen else slow | known
    return {name: why for name, why in found.items() if name not in chosen}


def _is_narrow(coder: Coder) -> bool:
    return coder.d_in <= ICA_WIDEST


__all__ = [
    "CONTROLS",
    "NAMES",
    "RANDOM_MODEL",
    "Cache",
    "TrainData",
    "controls_of",
    "fit_full_linear_map",
    "fit_linear_map",
    "fit_pca",
    "frozen_decoder",
    "independent_components",
    "left_out",
    "matched_l0",
    "random_dictionary",
    "raw_neurons",
    "shuffled_decoder",
    "train_rows",
]
