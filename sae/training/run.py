"""The loop: one stream of batches, a list of coders, checkpoints, and logs."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from sae.store import BatchSource
from sae.training.checkpoint import load_checkpoint, save_checkpoint
from sae.training.log import TrainingLog
from sae.training.trainer import CoderTrainer

OnStep = Callable[[int, dict[str, dict[str, float]]], None]


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
    on_log: OnStep | None = None,
) -> dict[str, float]:
    """Trains all coders to `steps` on one pass of `reader`, from the last checkpoint if any.

    `fingerprint` identifies the training; a checkpoint of another one is not used.
    `on_step(step)` and `on_log(step, records)` only look. Returns {"steps", "seconds", "tokens",
    "waited_share"}: what this call did, and the share of its time spent waiting for data.
    """
    start = load_checkpoint(folder, trainers, fingerprint)
    began = saved = time.perf_counter()
    batch = reader.batch
    with ExitStack() as open_things:
        logs = {t.name: TrainingLog(folder / t.name, start, wandb_project) for t in trainers}
        for log in logs.values():
            open_things.callback(log.close)
        batches = open_things.enter_context(closing(reader.batches(start)))
        for step in range(start + 1, steps + 1):
            data = {site: torch.from_numpy(x_BD) for site, x_BD in next(batches).items()}
            results = {t.name: t.step(data[t.site]) for t in trainers}
            if step % log_every == 0 or step == steps:
                seconds = time.perf_counter() - began
                common = {
                    "step": step,
                    "tokens": step * batch,
                    "tokens_per_s": (step - start) * batch / seconds,
                    "waited_share": reader.waited / seconds,
                }
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
    seconds = time.perf_counter() - began
    done = max(0, steps - start)
    waited = reader.waited / seconds if done else 0.0
    return {
        "steps": done,
        "seconds": seconds,
        "tokens": done * batch,
        "waited_share": waited,
    }
