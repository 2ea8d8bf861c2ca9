"""The feature index: build it (needs torch), read it, search it, label it (numpy alone)."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae.features.builder import build_index as build_index
    from sae.features.index import FeatureIndex as FeatureIndex
    from sae.features.index import Histogram as Histogram
    from sae.features.index import Neighbour as Neighbour
    from sae.features.notes import Notes as Notes
    from sae.features.scorecard import read_scorecard as read_scorecard
    from sae.features.scorecard_builder import build_scorecard as build_scorecard
    from sae.features.search import select as select
    from sae.features.verify import verify_index as verify_index
    from sae.features.vocabulary import Vocabulary as Vocabulary
    from sae.features.windows import Document as Document
    from sae.features.windows import Example as Example
    from sae.features.windows import Window as Window

_HOMES = {
    "build_index": "builder",
    "FeatureIndex": "index",
    "Histogram": "index",
    "Neighbour": "index",
    "Notes": "notes",
    "read_scorecard": "scorecard",
    "build_scorecard": "scorecard_builder",
    "select": "search",
    "verify_index": "verify",
    "Vocabulary": "vocabulary",
    "Document": "windows",
    "Example": "windows",
    "Window": "windows",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sae.features' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sae.features.{_HOMES[name]}"), name)
