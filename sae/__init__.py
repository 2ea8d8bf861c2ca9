"""Loupe: sparse autoencoders on GPT-2, from text to features that a person can read.

Names are loaded when first used (PEP 562): `import sae` costs milliseconds and no torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.base.errors import UserError
    from sae.coders import Coder, Codes
    from sae.coders import load_coder as load
    from sae.features import FeatureIndex
    from sae.lm import load_lm
    from sae.store import ActivationStore

try:
    __version__ = version("loupe-sae")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_WHERE = {
    "ActivationStore": ("sae.store", "ActivationStore"),
    "Coder": ("sae.coders", "Coder"),
    "Codes": ("sae.coders", "Codes"),
    "FeatureIndex": ("sae.features", "FeatureIndex"),
    "UserError": ("sae.base.errors", "UserError"),
    "load": ("sae.coders", "load_coder"),
    "load_lm": ("sae.lm", "load_lm"),
}

__all__ = [
    "ActivationStore",
    "Coder",
    "Codes",
    "FeatureIndex",
    "UserError",
    "__version__",
    "load",
    "load_lm",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sae' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
