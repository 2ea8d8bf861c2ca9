"""Noticing that a training has gone wrong before it spoils what was good."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sae.base.errors import CheckFailure
from sae.training.trainer import CoderTrainer

EXPLODED = 1e6
"""An error, in variances of the data, that no start has: x̂ is a thousand times too long."""


def require_sound_records(
    records: Mapping[str, Mapping[str, float]], step: int, last_good: Path | None
) -> None:
    """Raises `CheckFailure` if a coder's record is not of finite numbers, or its error exploded."""
    for name, record in records.items():
        wrong = next((k for k, value in record.items() if not math.isfinite(value)), None)
        if wrong is not None:
            raise CheckFailure(_sentence(name, step, f"its {wrong} is {record[wrong]}", last_good))
        if record["fvu_batch"] > EXPLODED:
            how = f"its error is {record['fvu_batch']:.1e} times the variance of the data"
            raise CheckFailure(_sentence(name, step, how, last_good))


def require_finite_weights(
    trainers: Sequence[CoderTrainer], step: int, last_good: Path | None
) -> None:
    """Raises `CheckFailure` if a weight is NaN or infinite; reads each weight once (its sum)."""
    for trainer in trainers:
        for name, weight in trainer.coder.named_parameters():
            if not math.isfinite(float(weight.detach().sum())):
                how = f"its weight {name} is not finite"
                raise CheckFailure(_sentence(trainer.name, step, how, last_good))


def _sentence(name: str, step: int, how: str, last_good: Path | None) -> str:
    kept = (
        f"the last good checkpoint is {last_good}"
        if last_good is not None
        else "it had no checkpoint yet"
    )
    return (
        f"The training of `{name}` diverged: {how} at step {step}; {kept}. Lower its "
        "`learning_rate` or raise `warmup`, and train again."
    )
