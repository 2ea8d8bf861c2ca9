"""What it means that a control is at least as good as the coder: a sentence for each of them."""

from collections.abc import Mapping
from typing import Any, Literal

from sae.base.results import won_by

NO_EVIDENCE = "these numbers are no evidence of learned features"
MEANINGS = {
    "pca": "a linear code of as many numbers, the same directions on every token, does as well, "
    "so these numbers are no evidence of sparse features",
    "random_dictionary": "random directions, of which nothing was learned but one factor on their "
    f"codes, do as well, so {NO_EVIDENCE}",
    "train_rows": "single activations as directions, of which nothing was learned but one factor "
    f"on their codes, do as well, so {NO_EVIDENCE}",
    "shuffled_decoder": "the coder's codes do as well when each latent writes another's direction, "
    "so these numbers are no evidence that the decoder's directions belong to their latents",
    "raw_neurons": "the site's own dimensions do as well, so these numbers are no evidence of "
    "learned directions",
    "independent_components": "a basis of no more directions than the site has dimensions does as "
    "well, so these numbers are no evidence that an overcomplete dictionary says more",
    "dictionary_learning": "it chooses its codes by pursuit, in as many products as there are "
    "active units where an encoder takes one; the error budget says how much of the coder's error "
    "pursuit would remove on the coder's own dictionary",
    "frozen_decoder": "random directions with a learned encoder do as well, so these numbers are "
    "no evidence that the decoder's directions were learned",
    "random_model": "a model that learned nothing is explained as well, on its own activations, "
    "so these numbers say nothing of what this model learned",
    "linear_map": "a linear map of as many numbers per token does as well, so these numbers are no "
    "evidence of sparse features in the step between the sites",
    "linear_map_full": "a linear map does as well, of as many numbers per token as the site has "
    "dimensions, so what these numbers say of the step between the sites is linear",
}


def verdict(low: float, high: float) -> Literal["won_by", "undecided"] | None:
    """What the interval of the coder's lift over a control says of it: that it is at least as good
    (all of the interval is at 0 or below), that there is no telling, or None, that it is worse.
    """
    if high <= 0:
        return "won_by"
    return "undecided" if low <= 0 else None


def wins(ladder: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The `"wins"` key of an evaluation: {CONTROL: {"metrics": [NAME, ...], "meaning": sentence}},
    of the controls that win any."""
    lost = won_by(ladder)
    controls = dict.fromkeys(control for names in lost.values() for control in names)
    return {
        control: {
            "metrics": [name for name, winners in lost.items() if control in winners],
            "meaning": MEANINGS.get(control, NO_EVIDENCE),
        }
        for control in controls
    }
