"""The loop: one stream of batches, a list of coders, checkpoints, and logs."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae.base.interrupts import Interrupted, StopRequest
from sae.store import BatchSource
from sae.training.checkpoint import Say, commit_file, load_checkpoint, save_checkpoint
from sae.training.guard import require_finite_weights, require_sound_records
from sae.training.log import TrainingLog, start_wandb
from sae.training.trainer import CoderTrainer, StepLog

MOST_SAVING = 0.1  # share of the time that checkpoints may take
Record = dict[str, float]
OnLog = Callable[[int, dict[str, Record]], None]


def _nothing(*_said: object) -> None:
    """Nobody is told."""


def train(
    trainers: Sequence[CoderTrainer],
    reader: BatchSource,
    folder: Path,
    steps: int,
    *,
    fingerprint: str,
    made_of: Mapping[str, Any] | None = None,
    log_every: int = 20,
    checkpoint_seconds: float = 60.0,
    wandb_project: str | None = None,
    on_step: Callable[[int], None] | None = None,
    on_log: OnLog | None = None,
    stop: StopRequest | None = None,
    say: Say = _nothing,
    begin: Callable[[], object] = _nothing,
) -> dict[str, float]:
    """Trains all coders to `steps` on one pass of `reader`, from the last checkpoint if any.

    Checkpoints are `checkpoint_seconds` apart, and further where saving one takes more than a tenth
    of that; with 0 there is one after every step. `fingerprint` identifies the training (and
    `made_of`, which is kept with the checkpoints, says what of); a checkpoint of another one is not
    used, and `say` is told. `begin` is called when nothing is left to refuse, before anything
    changes. `on_step(step)` and `on_log(step, records)` only look. When `stop` has a number (of a
    signal), the step at work is ended and saved. Returns {"steps", "seconds", "tokens",
    "waited_share"}: what this call did, and the share of its time spent waiting for data.

    Raises:
        Interrupted: `stop` asked for it; a checkpoint of the last step is there.
        CheckFailure: a loss or weight is no longer finite, or the error exploded; the last good
            checkpoint is there, and is named.
    """
    start = load_checkpoint(folder, trainers, fingerprint, say)
    clock = _Clock(reader, start)
    with ExitStack() as open_things:
        logs = _logs([t.name for t in trainers], folder, start, wandb_project, begin, open_things)
        saver = _Saver(
            folder, trainers, list(logs.values()), fingerprint, checkpoint_seconds, made_of
        )
        if start:
            saver.last = commit_file(folder, start)
        batches = open_things.enter_context(closing(reader.batches(start)))
        for step in range(start + 1, steps + 1):
            results = step_all(trainers, next(batches))
            if step % log_every == 0 or step == steps:
                common = clock.record(step)
                records = {name: {**common, **r.record()} for name, r in results.items()}
                require_sound_records(records, step, saver.last)
                for name, record in records.items():
                    logs[name].write(record)
                if on_log:
                    on_log(step, records)
            if on_step:
                on_step(step)
            asked = stop.number if stop is not None else None  # once: it may come at any moment
            if saver.is_due() or step == steps or asked is not None:
                saver.save(step, results)
            if asked is not None:
                raise Interrupted(
                    asked,
                    f"Training stopped at step {step} of {steps}, which is saved in {saver.last}; "
                    "the same command goes on from there.",
                )
    return clock.facts(max(start, steps))


def _logs(
    names: Sequence[str],
    folder: Path,
    start: int,
    wandb_project: str | None,
    begin: Callable[[], object],
    open_things: ExitStack,
) -> dict[str, TrainingLog]:
    """The coders' logs, which `open_things` closes. What Weights & Biases refuses comes first."""
    runs = {}
    for name in names:
        runs[name] = start_wandb(wandb_project, folder / name, resumed=start > 0)
    begin()
    logs = {}
    for name, run in runs.items():
        logs[name] = TrainingLog(folder / name, start, run)
        open_things.callback(logs[name].close)
    return logs


@dataclass
class _Saver:
    """Saves checkpoints of sound weights, behind the log lines that they stand for."""

    folder: Path
    trainers: Sequence[CoderTrainer]
    logs: Sequence[TrainingLog]
    fingerprint: str
    every_seconds: float
    made_of: Mapping[str, Any] | None = None
    last: Path | None = None  # the last good checkpoint
    saved: float = field(default_factory=time.perf_counter)
    took: float = 0.0  # seconds that the last one took

    def is_due(self) -> bool:
        """Not so soon that saving a large state would take a large part of the time."""
        wait = max(self.every_seconds, self.took / MOST_SAVING) if self.every_seconds else 0.0
        return time.perf_counter() - self.saved > wait

    def save(self, step: int, results: Mapping[str, StepLog]) -> None:
        """Raises `CheckFailure`, and saves nothing, if the step's record or a weight is unsound."""
        began = time.perf_counter()
        records = {name: result.record() for name, result in results.items()}
        require_sound_records(records, step, self.last)
        require_finite_weights(self.trainers, step, self.last)
        for log in self.logs:
            log.sync()
        self.last = save_checkpoint(self.folder, self.trainers, self.fingerprint, self.made_of)
        self.saved = time.perf_counter()
        self.took = self.saved - began


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
