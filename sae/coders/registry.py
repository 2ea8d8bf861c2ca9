"""The one list of architectures: it drives `make_coder`, loading, and the contract tests."""

import inspect
from typing import Any

from sae.base.errors import UserError, nearest
from sae.coders.batchtopk import BatchTopK
from sae.coders.contract import Coder
from sae.coders.ista import ISTA
from sae.coders.jumprelu import JumpReLU
from sae.coders.matching_pursuit import MatchingPursuit
from sae.coders.relu import ReLU
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
        ReLU,
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
TRAINABLE = tuple(name for name, kind in ARCHITECTURES.items() if not issubclass(kind, JumpReLU))
TWO_SITES = tuple(name for name, kind in ARCHITECTURES.items() if issubclass(kind, TwoSites))


def make_coder(architecture: str, d_in: int, d_sae: int, **options: Any) -> Coder:
    """A coder by name, with its own hyperparameters (`k`, `l1`); weights are all zero."""
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"Unknown architecture `{architecture}`; it must be one of "
            f"{', '.join(ARCHITECTURES)}." + nearest(architecture, ARCHITECTURES)
        )
    kind = ARCHITECTURES[architecture]
    known = set(inspect.signature(kind).parameters) - {"d_in", "d_sae"}
    for name in options:
        if name not in known:
            raise UserError(
                f"`{architecture}` has no hyperparameter `{name}`; it has "
                f"{', '.join(sorted(known)) or 'none'}." + nearest(name, known)
            )
    return kind(d_in, d_sae, **options)
