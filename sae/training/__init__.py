"""Training of coders: a list of coders, an iterator of batches, one step at a time."""

from sae.training.centre import first_rows, geometric_median
from sae.training.memory import bytes_needed
from sae.training.run import train
from sae.training.settings import Settings
from sae.training.trainer import CoderTrainer, StepLog

__all__ = [
    "CoderTrainer",
    "Settings",
    "StepLog",
    "bytes_needed",
    "first_rows",
    "geometric_median",
    "train",
]
