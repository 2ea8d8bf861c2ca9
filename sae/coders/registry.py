"""The one list of architectures: it drives `make_coder`, loading, and the contract tests."""

import inspect
from collections.abc import Iterable
from typing import Any

from sae.base.errors import UserError, nearest
from sae.coders.batchtopk import BatchTopK
from sae.coders.contract import Coder
from sae.coders.gated import Gated
from sae.coders.ista import ISTA
from sae.coders.jumprelu import JumpReLU
from sae.coders.matching_pursuit import MatchingPursuit
from sae.coders.matryoshka import Matryoshka
from sae.coders.relu import ReLU
from sae.coders.relu_unconstrained import ReLUUnconstrained
from sae.coders.switch import Switch
from sae.coders.topk import TopK
from sae.coders.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUTranscoder,
    ReLUSkipTranscoder,
    ReLUTranscoder,
    SkipTranscoder,
    Transcoder,
)
from sae.coders.two_sites import TwoSites

ARCHITECTURES: dict[str, type[Coder]] = {
    coder.architecture: coder
    for coder in (
        TopK,
        BatchTopK,
        Matryoshka,
        ReLU,
        ReLUUnconstrained,
        Gated,
        JumpReLU,
        ISTA,
        MatchingPursuit,
        Switch,
        Transcoder,
        SkipTranscoder,
        ReLUTranscoder,
        ReLUSkipTranscoder,
        JumpReLUTranscoder,
        JumpReLUSkipTranscoder,
    )
}
TWO_SITES = tuple(name for name, kind in ARCHITECTURES.items() if issubclass(kind, TwoSites))
SAVED_FORMS = (JumpReLUTranscoder.architecture, JumpReLUSkipTranscoder.architecture)
TRAINABLE = tuple(name for name in ARCHITECTURES if name not in SAVED_FORMS)


def hyperparameters_of(architecture: str) -> tuple[str, ...]:
    """Names of the options that `make_coder` takes for an architecture, which must exist."""
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"Unknown architecture `{architecture}`; it must be one of "
            f"{', '.join(ARCHITECTURES)}." + nearest(architecture, ARCHITECTURES)
        )
    parameters = inspect.signature(ARCHITECTURES[architecture]).parameters
    return tuple(name for name in parameters if name not in ("d_in", "d_sae"))


def check_options(architecture: str, options: Iterable[str]) -> None:
    """Raises `UserError` for an unknown architecture, or an option that it does not have."""
    known = hyperparameters_of(architecture)
    for name in options:
        if name not in known:
            raise UserError(
                f"`{architecture}` has no hyperparameter `{name}`; it has "
                f"{', '.join(known) or 'none'}." + nearest(name, known)
            )


def make_coder(architecture: str, d_in: int, d_sae: int, **options: Any) -> Coder:
    """A coder by name, with its own hyperparameters (`k`, `l1`); weights are all zero."""
    check_options(architecture, options)
    return ARCHITECTURES[architecture](d_in, d_sae, **options)
