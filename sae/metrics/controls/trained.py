"""Controls that are trained as our own coders are: with a frozen decoder, on a random model.

Both are TopK coders of the coder's width and L0, trained by the same trainer with the coder's own
settings (steps, batch, AuxK), and kept: the coders of a sweep that have these in common share them.
The learning rate, which was chosen for another architecture, is the best of a few in short trials.
A frozen decoder's training reads the store in the order that the coder's did; a random model has no
store, and rows that are kept in memory are read in an order of their own.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.base.devices import in_float64
from sae.base.errors import UserError
from sae.coders import Coder, make_coder
from sae.metrics.controls.base import TrainData
from sae.store import ShuffledReader, SiteStats
from sae.store.shuffled import WINDOW
from sae.training import CoderTrainer, Settings

TOKENS, BATCH = 2_000_000, 1024  # of coders whose own training is not on record
RATES = (0.5, 1.0, 2.0)  # of the coder's learning rate: each is tried
TRIAL, FEWEST_STEPS = 8, 50  # a trial is that part of the training; a shorter one says nothing
Make = Callable[[Settings, TrainData], Coder]


def settings_of(coder: Coder) -> Settings:
    """How the coder was trained, as its folder says; the defaults for coders of other tools."""
    said = coder.metadata.get("loupe", {}).get("settings", {})
    known = {field.name for field in fields(Settings)}
    given: dict[str, Any] = {name: value for name, value in said.items() if name in known}
    given = {"steps": TOKENS // BATCH, "batch": BATCH} | given
    # TopK keeps its latents alive by AuxK; where b_dec starts makes no control weaker.
    return replace(Settings(**given), resample=(), centre="mean")


def order_of(coder: Coder) -> dict[str, int]:
    """`seed` and `window` of the stream that the coder was trained on; the defaults if unknown."""
    said = coder.metadata.get("loupe", {}).get("order", {})
    return {"seed": 0, "window": WINDOW} | {k: said[k] for k in ("seed", "window") if k in said}


def frozen_decoder(coder: Coder, data: TrainData, l0: int, seed: int = 0) -> Coder:
    """An encoder trained against random unit decoder rows that never change.

    What it explains needs no learned directions: only a learned choice among random ones.
    """
    settings, order = replace(settings_of(coder), seed=seed), order_of(coder)

    def make(settings: Settings, data: TrainData) -> Coder:
        store = data.sample.store
        reader = ShuffledReader(
            store, [data.site], settings.batch, seed=order["seed"], window=order["window"]
        )
        with closing(reader.batches()) as stream:
            rows = (batch[data.site] for batch in stream)
            stats = store.stats(data.site)
            return train_topk(coder, data, l0, settings, stats, rows, freeze=True)

    key = [*key_of(coder, data, l0, settings), order]
    best = partial(at_best_rate, make, settings, data, coder.d_sae, data.some)
    return data.cache.coder("frozen_decoder", key, best).to(data.device)


def at_best_rate(
    make: Make, settings: Settings, data: TrainData, width: int, rows: Callable[[], Tensor]
) -> Coder:
    """`make(settings, data)` at that of `RATES` whose trial leaves the least of some train rows.

    What diverged would be a straw man: then the next best rate is taken. Raises `UserError` if
    there is none.
    """
    steps, rate, x_BD = settings.steps // TRIAL, settings.peak_rate(width), rows()
    rates = RATES if steps >= FEWEST_STEPS else ()
    before, total = len(rates) * steps, settings.steps + len(rates) * steps

    def left(multiple: float, steps: int, before: int) -> tuple[float, Coder]:
        told = replace(data, tell=partial(_shifted, data.tell, before, total))
        coder = make(replace(settings, steps=steps, learning_rate=multiple * rate), told)
        error = float(in_float64(x_BD - coder(x_BD)).square().sum())
        return (error if math.isfinite(error) else math.inf), coder

    tried = {multiple: left(multiple, steps, i * steps)[0] for i, multiple in enumerate(rates)}
    for multiple in sorted(tried, key=lambda m: tried[m]) or (1.0,):
        error, coder = left(multiple, settings.steps, before)
        if error < math.inf:
            return coder
    raise UserError(
        "The training of a control diverged at every learning rate that was tried; leave it out "
        "by naming the others as `evaluate.controls`."
    )


def _shifted(tell: Callable[[int, int], None], before: int, total: int, done: int, _: int) -> None:
    """Tells of one of several trainings as of a part of all."""
    tell(before + done, total)


def train_topk(
    coder: Coder,
    data: TrainData,
    l0: int,
    settings: Settings,
    stats: SiteStats,
    batches: Iterable[np.ndarray],
    *,
    freeze: bool = False,
) -> Coder:
    """A TopK coder of the given coder's width, from `settings.steps` batches of raw rows."""
    fresh = make_coder("topk", coder.d_in, coder.d_sae, k=min(l0, coder.d_sae))
    fresh.W_dec_FD.requires_grad_(not freeze)
    trainer = CoderTrainer("control", fresh, data.site, stats, settings, str(data.device))
    for step, rows_BD in enumerate(batches, 1):
        trainer.step(torch.from_numpy(rows_BD))
        if freeze:
            trainer.coder.W_dec_FD.grad = None  # AuxK's, which the optimiser does not take
        data.tell(step, settings.steps)
        if step == settings.steps:
            break
    return trainer.finished_coder().to(data.device)


def key_of(coder: Coder, data: TrainData, l0: int, settings: Settings) -> list[Any]:
    return [data.sample.store.attributes, data.site, coder.d_sae, l0, vars(settings)]
