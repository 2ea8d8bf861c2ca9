"""The loop: one stream of batches, a list of coders, checkpoints, and logs."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from sae.store import BatchSource
from sae.training.checkpoint import load_checkpoint, save_checkpoint
from sae.training.log import TrainingLog
from sae.training.trainer import CoderTrainer, StepLog

Record = dict[str, float]
OnLog = Callable[[int, dict[str, Record]], None]


def train(
    trainers: Sequence[CoderTrainer],
    reader: BatchSource,
    folder: Path,
    steps: int,
    *,
    fingerprint: str,
    log_every: int = 20,
    checkpoint_seconds: float = 60.0,
    wandb_project: str | None = None,
    on_step: Callable[[int], None] | None = None,
    on_log: OnLog | None = None,
) -> dict[str, float]:
    """Trains all coders to `steps` on one pass of `reader`, from the last checkpoint if any.

    `fingerprint` identifies the training; a checkpoint of another one is not used.
    `on_step(step)` and `on_log(step, records)` only look. Returns {"steps", "seconds", "tokens",
    "waited_share"}: what this call did, and the share of its time spent waiting for data.
    """
    start = load_checkpoint(folder, trainers, fingerprint)
    clock = _Clock(reader, start)
    saved = clock.began
    with ExitStack() as open_things:
        logs = {t.name: TrainingLog(folder / t.name, start, wandb_project) for t in trainers}
        for log in logs.values():
            open_things.callback(log.close)
        batches = open_things.enter_context(closing(reader.batches(start)))
        for step in range(start + 1, steps + 1):
            results = step_all(trainers, next(batches))
            if step % log_every == 0 or step == steps:
                common = clock.record(step)
                records = {name: {**common, **r.record()} for name, r in results.items()}
                for name, record in records.items():
                    logs[name].write(record)
                if on_log:
                    on_log(step, records)
            if on_step:
                on_step(step)
            if time.perf_counter() - saved > checkpoint_seconds or step == steps:
                save_checkpoint(folder, trainers, fingerprint)
                saved = time.perf_counter()
    return clock.facts(max(start, steps))


def step_all(
    trainers: Sequence[CoderTrainer], batch: Mapping[str, np.ndarray]
) -> dict[str, StepLog]:
    """One step of every coder; what coders of one site share of a batch is made once."""
    shared: dict[object, torch.Tensor] = {}
    results = {}
    for trainer in trainers:
        if trainer.units not in shared:
            shared[trainer.units] = trainer.scaled(torch.from_numpy(batch[trainer.site]))
        target = [torch.from_numpy(batch[site]) for site in trainer.sites[1:]]
        results[trainer.name] = trainer.step_scaled(shared[trainer.units], *target)
    return results


@dataclass
class _Clock:
    """Time and tokens of one call of `train`, which began behind step `start`."""

    reader: BatchSource
    start: int
    began: float = field(default_factory=time.perf_counter)

    def record(self, step: int) -> Record:
        """What the records of all coders share."""
        batch, seconds = self.reader.batch, time.perf_counter() - self.began
        return {
            "step": step,
            "tokens": step * batch,
            "tokens_per_s": (step - self.start) * batch / seconds,
            "waited_share": self.reader.waited / seconds,
        }

    def facts(self, end: int) -> dict[str, float]:
        seconds, done = time.perf_counter() - self.began, end - self.start
        return {
            "steps": done,
            "seconds": seconds,
            "tokens": done * self.reader.batch,
            "waited_share": self.reader.waited / seconds if done else 0.0,
        }
