"""Activations on disk: one Zarr v3 group, written once, read in a shuffled order or by row."""

from sae.store.documents import DocumentTable
from sae.store.order import BatchOrder
from sae.store.reader import ActivationStore
from sae.store.schema import StoreSpec
from sae.store.shuffled import BatchSource, ShuffledReader
from sae.store.stats import SiteStats
from sae.store.writer import StoreWriter

__all__ = [
    "ActivationStore",
    "BatchOrder",
    "BatchSource",
    "DocumentTable",
    "ShuffledReader",
    "SiteStats",
    "StoreSpec",
    "StoreWriter",
]
