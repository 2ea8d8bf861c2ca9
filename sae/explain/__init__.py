"""Do labels mean anything? Random directions as a control, and an LLM as explainer and judge.

A room of its own, above `sae.features`: what changes here does not make an index stale. Nothing in
it runs, and nothing is sent anywhere, unless it is called.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae.explain.control import label_control as label_control
    from sae.explain.endpoint import Endpoint as Endpoint
    from sae.explain.explainer import Explainer as Explainer
    from sae.explain.report import read_explanations as read_explanations

_HOMES = {
    "label_control": "control",
    "Endpoint": "endpoint",
    "Explainer": "explainer",
    "read_explanations": "report",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sae.explain' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sae.explain.{_HOMES[name]}"), name)
