"""GPT-2 language models: loading, reading activations at a site, splicing a coder in."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.lm.load import load_lm
    from sae.lm.model import LanguageModel
    from sae.lm.sites import Site, parse_site

_WHERE = {
    "LanguageModel": "sae.lm.model",
    "Site": "sae.lm.sites",
    "load_lm": "sae.lm.load",
    "parse_site": "sae.lm.sites",
}

__all__ = ["LanguageModel", "Site", "load_lm", "parse_site"]


def __getattr__(name: str) -> Any:
    """Loads on first use: naming a site, or hashing a model's files, needs no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'sae.lm' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
