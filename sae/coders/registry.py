"""The one list of architectures: it drives `make_coder`, loading, and the contract tests."""

import inspect
from typing import Any

from sae.base.errors import UserError, nearest
from sae.coders.batchtopk import BatchTopK
from sae.coders.contract import Coder
from sae.coders.jumprelu import JumpReLU
from sae.coders.relu import ReLU
from sae.coders.topk import TopK

ARCHITECTURES: dict[str, type[Coder]] = {
    coder.architecture: coder for coder in (TopK, BatchTopK, ReLU, JumpReLU)
}
TRAINABLE = tuple(name for name in ARCHITECTURES if name != JumpReLU.architecture)


def hyperparameters_of(architecture: str) -> frozenset[str]:
    """Names of the options that `make_coder` takes for an architecture, which must exist."""
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"Unknown architecture `{architecture}`; it must be one of "
            f"{', '.join(ARCHITECTURES)}." + nearest(architecture, ARCHITECTURES)
        )
    parameters = inspect.signature(ARCHITECTURES[architecture]).parameters
    return frozenset(parameters) - {"d_in", "d_sae"}


def make_coder(architecture: str, d_in: int, d_sae: int, **options: Any) -> Coder:
    """A coder by name, with its own hyperparameters (`k`, `l1`); weights are all zero."""
    known = hyperparameters_of(architecture)
    for name in options:
        if name not in known:
            raise UserError(
                f"`{architecture}` has no hyperparameter `{name}`; it has "
                f"{', '.join(sorted(known)) or 'none'}." + nearest(name, known)
            )
    return ARCHITECTURES[architecture](d_in, d_sae, **options)
