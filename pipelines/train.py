"""Stage train: the store's shuffled activations -> coders in SAELens's folder format."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

import sae
from pipelines.begin import Begin, nothing
from pipelines.config import CoderConfig, RunConfig
from pipelines.identity import made_of
from pipelines.progress import console, listed, progress
from sae.base.devices import default_device, parse_device
from sae.base.errors import UserError
from sae.base.files import sha256_json
from sae.base.interrupts import noted_signals
from sae.base.memory import require_memory
from sae.coders import Coder, make_coder, save_coder
from sae.coders.registry import (
    TRAINABLE,
    TWO_SITES,
    check_options,
    hyperparameters_of,
)
from sae.lm.assets import POCKET
from sae.store import ActivationStore, ShuffledReader, SiteStats
from sae.store.schema import BYTES_PER_VALUE
from sae.training import (
    CoderTrainer,
    Settings,
    bytes_needed,
    first_rows,
    geometric_median,
    train,
)
from sae.training.resampling import check_resampling

UNKNOWN = 64  # stands for dimensions before there is a store


def run(config: RunConfig, names: Sequence[str], begin: Begin = nothing) -> dict[str, Any]:
    """Trains the named coders on one stream; each sees `train.tokens` tokens.

    SIGINT and SIGTERM end the step at work, save a checkpoint and raise `Interrupted`.
    """
    store = ActivationStore.open(config.store)
    wanted = [coder for coder in config.train.coders if coder.name in names]
    steps = max(1, config.train.tokens // config.train.batch)
    reader = _reader(config, store, sorted({s for coder in wanted for s in _sites(config, coder)}))
    _check_memory(config, wanted, reader, steps)
    trainers = _trainers(config, wanted, store, steps)
    folder = config.folder / "coders"
    identity = made_of(config, wanted, store)
    with (
        progress(f"train {listed(names)}", steps * config.train.batch) as update,
        noted_signals() as stop,
    ):
        facts = train(
            trainers,
            reader,
            folder,
            steps,
            fingerprint=sha256_json(identity),
            made_of=identity,
            checkpoint_seconds=config.train.checkpoint_seconds,
            wandb_project=config.train.wandb,
            on_step=lambda step: update(step * config.train.batch),
            stop=stop,
            say=lambda sentence: console.print(sentence, markup=False),
            begin=begin,
        )
    for trainer in trainers:
        coder = trainer.finished_coder(borrow=True)
        coder.metadata = _metadata(config, trainer, store)
        save_coder(coder, folder / trainer.name)
    return facts


def _reader(config: RunConfig, store: ActivationStore, sites: Sequence[str]) -> ShuffledReader:
    options = config.train
    return ShuffledReader(store, sites, options.batch, seed=options.seed, window=options.window)


def _sites(config: RunConfig, wanted: CoderConfig) -> list[str]:
    """The site that a coder reads and, for a transcoder, the one that it predicts."""
    return list(filter(None, (config.site_of(wanted), wanted.target_site)))


def _trainers(
    config: RunConfig, wanted: Sequence[CoderConfig], store: ActivationStore, steps: int
) -> list[CoderTrainer]:
    @cache  # shared by coders of one site
    def median_of(site: str) -> np.ndarray:
        return geometric_median(first_rows(_reader(config, store, [site]), site))

    made = []
    for coder in wanted:
        asked = coder.centre == "geometric_median"
        centre_D = median_of(_sites(config, coder)[-1]) if asked else None
        made.append(_trainer(config, coder, store, steps, centre_D))
    return made


def _trainer(
    config: RunConfig,
    wanted: CoderConfig,
    store: ActivationStore,
    steps: int,
    centre_D: np.ndarray | None,
) -> CoderTrainer:
    coder = _coder(config, wanted, store)
    site, *others = _sites(config, wanted)
    targets: list[tuple[str, SiteStats]] = [(other, store.stats(other)) for other in others]
    return CoderTrainer(
        wanted.name,
        coder,
        site,
        store.stats(site),
        settings_of(config, wanted, steps),
        config.model.device or default_device(),
        target=targets[0] if targets else None,
        centre_D=centre_D,
    )


def _coder(config: RunConfig, wanted: CoderConfig, store: ActivationStore) -> Coder:
    sites = _sites(config, wanted)
    for site in sites:
        store.check_site(site)
    d_in, d_out = store.width[sites[0]], store.width[sites[-1]]
    width = wanted.width or wanted.expansion * d_in
    extra = {"d_out": d_out} if wanted.architecture in TWO_SITES else {}
    return make_coder(wanted.architecture, d_in, width, **wanted.options, **extra)


def check_coders(config: RunConfig) -> None:
    """What can be known to be wrong with the coders' settings before the hours of a harvest."""
    parse_device(config.model.device)
    for coder in config.train.coders:
        check_options(coder.architecture, coder.options)
        if coder.architecture not in TRAINABLE:
            raise UserError(
                f"`{coder.architecture}` is a form in which coders are saved; train one of "
                f"{', '.join(TRAINABLE)}."
            )
        if coder.architecture in TWO_SITES and coder.target_site is None:
            raise UserError(
                f"`{coder.architecture}` predicts one site from another; name it as `target_site` "
                f"of the coder `{coder.name}`."
            )
        check_resampling(coder.architecture, settings_of(config, coder, steps=1))
        if coder.width is not None:  # else it depends on the store
            extra = {"d_out": UNKNOWN} if coder.architecture in TWO_SITES else {}
            with torch.device("meta"):  # shapes without memory
                make_coder(coder.architecture, UNKNOWN, coder.width, **coder.options, **extra)


def settings_of(config: RunConfig, wanted: CoderConfig, steps: int) -> Settings:
    options = config.train
    return Settings(
        steps=steps,
        batch=options.batch,
        learning_rate=wanted.learning_rate,
        warmup=options.warmup if wanted.warmup is None else wanted.warmup,
        decay=options.decay if wanted.decay is None else wanted.decay,
        grad_clip=options.grad_clip if wanted.grad_clip is None else wanted.grad_clip,
        grad_clip_of=wanted.grad_clip_of,
        centre=wanted.centre,
        auxk_coefficient=options.auxk_coefficient,
        auxk_k=options.auxk_k,
        dead_after=options.dead_after,
        ema=options.ema,
        moments=options.moments,
        resample=wanted.resample,
        resample_window=wanted.resample_window,
        seed=wanted.seed,
    )


def _check_memory(
    config: RunConfig, wanted: Sequence[CoderConfig], reader: ShuffledReader, steps: int
) -> None:
    """Refuses coders that memory does not hold: on a CPU, what every coder keeps and what the one
    that is at work holds beside that; on a GPU, what they keep, in its own memory. In main memory,
    always, what is read ahead.
    """
    with torch.device("meta"):  # shapes without memory
        coders = [_coder(config, coder, reader.store) for coder in wanted]
    needs = [
        bytes_needed(coder, settings_of(config, given, steps))
        for coder, given in zip(coders, wanted, strict=True)
    ]
    kept = sum(need.kept for need in needs)
    what = f"Training {listed([coder.name for coder in wanted])} together"
    advice = "train fewer or narrower coders, or take a smaller `train.batch` or `train.window`"
    device = parse_device(config.model.device)
    on_host = _read_ahead(config, reader)
    if device.type == "cuda":
        # what an earlier stage freed is not free to others, and is to us
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        require_memory(kept, f"{what} on `{device}`", advice, free)
    else:
        on_host += kept + max(need.at_work for need in needs)
    require_memory(on_host, what, advice)


def _read_ahead(config: RunConfig, reader: ShuffledReader) -> int:
    """Bytes of two windows, one of which is being read, and of the batches that wait, or are at
    work, or are being made."""
    order = reader.order
    window = min(config.train.window, -(-order.rows // order.chunk_rows)) * order.chunk_rows
    rows = 2 * window + (reader.ahead + 2) * reader.batch
    return rows * sum(reader.store.width[site] for site in reader.sites) * BYTES_PER_VALUE


def _metadata(config: RunConfig, trainer: CoderTrainer, store: ActivationStore) -> dict[str, Any]:
    """SAELens's metadata, and under `loupe` where this coder came from."""
    model = dict(store.spec.model)
    name = "loupe-pocket-gpt2" if model["name"] == POCKET else model["name"]
    target = {"hook_name_out": trainer.sites[1]} if len(trainer.sites) > 1 else {}
    return {
        "model_name": name,
        "model_class_name": "HookedTransformer",
        "hook_name": trainer.site,
        **target,
        "hook_head_index": None,
        "context_size": store.context,
        "prepend_bos": True,
        "seqpos_slice": [1, None],
        "dataset_path": config.corpus.source,
        "model_from_pretrained_kwargs": {},
        "loupe": {
            "version": sae.__version__,
            "trained_as": trainer.coder.architecture,
            "options": {
                name: getattr(trainer.coder, name)
                for name in hyperparameters_of(trainer.coder.architecture)
            },
            "settings": vars(trainer.settings),
            "order": {"seed": config.train.seed, "window": config.train.window},
            "learning_rate": trainer.settings.peak_rate(trainer.coder.d_sae),
            "model": model,
            "corpus": store.spec.corpus,
            "tokenizer_hash": store.spec.tokenizer_hash,
            "harvested_as": store.spec.harvested_as,
            "scale": trainer.scale,
            "target_scale": trainer.target_scale,
        },
    }
