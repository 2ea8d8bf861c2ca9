"""Stage train: the store's shuffled activations -> coders in SAELens's folder format."""

from collections.abc import Sequence
from typing import Any

import sae
from pipelines.config import CoderConfig, RunConfig, TrainConfig
from pipelines.manifest import CODE, code_hash
from pipelines.progress import console, listed, progress
from sae.base.devices import default_device, parse_device
from sae.base.errors import UserError
from sae.base.files import sha256_json
from sae.base.interrupts import noted_signals
from sae.base.memory import require_memory
from sae.coders import make_coder, save_coder
from sae.coders.registry import (
    ARCHITECTURES,
    TRAINABLE,
    TWO_SITES,
    check_options,
    hyperparameters_of,
)
from sae.kernels.select import CHUNK_VALUES
from sae.lm.assets import POCKET
from sae.store import ActivationStore, ShuffledReader, SiteStats
from sae.store.schema import CHUNK_ROWS
from sae.training import CoderTrainer, Settings, train
from sae.training.optimizer import moment_bytes


def run(config: RunConfig, names: Sequence[str]) -> dict[str, Any]:
    """Trains the named coders on one stream; each sees `train.tokens` tokens.

    SIGINT and SIGTERM end the step at work, save a checkpoint and raise `Interrupted`.
    """
    store = ActivationStore.open(config.store)
    wanted = [coder for coder in config.train.coders if coder.name in names]
    steps = max(1, config.train.tokens // config.train.batch)
    _check_memory(config, wanted, store)
    trainers = [_trainer(config, coder, store, steps) for coder in wanted]
    sites = sorted({site for trainer in trainers for site in trainer.sites})
    reader = ShuffledReader(
        store,
        sites,
        config.train.batch,
        seed=config.train.seed,
        window=config.train.window,
    )
    folder = config.folder / "coders"
    coders = [coder.model_dump() for coder in wanted]
    code = code_hash(*CODE["train"])
    fingerprint = sha256_json([config.train.recipe, coders, store.attributes, code])
    with (
        progress(f"train {listed(names)}", steps * config.train.batch) as update,
        noted_signals() as stop,
    ):
        facts = train(
            trainers,
            reader,
            folder,
            steps,
            fingerprint=fingerprint,
            checkpoint_seconds=config.train.checkpoint_seconds,
            wandb_project=config.train.wandb,
            on_step=lambda step: update(step * config.train.batch),
            stop=stop,
            say=lambda sentence: console.print(sentence, markup=False),
        )
    for trainer in trainers:
        coder = trainer.finished_coder(borrow=True)
        coder.metadata = _metadata(config, trainer, store)
        save_coder(coder, folder / trainer.name)
    return facts


def _trainer(
    config: RunConfig, wanted: CoderConfig, store: ActivationStore, steps: int
) -> CoderTrainer:
    site = config.site_of(wanted)
    d_in = store.width[site]
    extra: dict[str, Any] = dict(wanted.options)
    target: tuple[str, SiteStats] | None = None
    if wanted.target_site is not None:
        store.check_site(wanted.target_site)
        target = wanted.target_site, store.stats(wanted.target_site)
        if wanted.architecture in TWO_SITES:
            extra["d_out"] = store.width[wanted.target_site]
    width = wanted.width or wanted.expansion * d_in
    coder = make_coder(wanted.architecture, d_in, width, **extra)
    device = config.model.device or default_device()
    settings = _settings(config, wanted, steps)
    return CoderTrainer(
        wanted.name, coder, site, store.stats(site), settings, device, target=target
    )


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
        _settings(config, coder, steps=1)


def _settings(config: RunConfig, wanted: CoderConfig, steps: int) -> Settings:
    options = config.train
    return Settings(
        steps=steps,
        batch=options.batch,
        learning_rate=wanted.learning_rate,
        warmup=options.warmup if wanted.warmup is None else wanted.warmup,
        decay=options.decay if wanted.decay is None else wanted.decay,
        auxk_coefficient=options.auxk_coefficient,
        auxk_k=options.auxk_k,
        dead_after=options.dead_after,
        ema=options.ema,
        moments=options.moments,
        resample=wanted.resample,
        resample_window=wanted.resample_window,
        seed=wanted.seed,
    )


def _check_memory(config: RunConfig, wanted: Sequence[CoderConfig], store: ActivationStore) -> None:
    """On a CPU: weights, gradients, Adam's two moments of every coder, and its average; what the
    one that is at work holds of scores; windows of every site, read ahead.
    """
    if (config.model.device or default_device()) != "cpu":
        return
    kept, at_work, sites = 0, 0, set[str]()
    for coder in wanted:
        site = config.site_of(coder)
        for read in filter(None, (site, coder.target_site)):
            store.check_site(read)
            sites.add(read)
        d_out = store.width[coder.target_site or site]
        width = coder.width or coder.expansion * store.width[site]
        kept += _bytes_kept(config.train, width, (store.width[site], d_out), coder.k)
        scores, dense = config.train.batch * width, ARCHITECTURES[coder.architecture].dense_tensors
        at_work = max(at_work, 4 * (dense * scores or min(scores, CHUNK_VALUES)))
    read_ahead = sum(2 * 2 * config.train.window * CHUNK_ROWS * store.width[s] for s in sites)
    advice = "train fewer or narrower coders, or take a smaller `train.batch` or `train.window`"
    what = f"Training {listed([coder.name for coder in wanted])} together"
    require_memory(kept + at_work + read_ahead, what, advice)


def _bytes_kept(options: TrainConfig, width: int, columns: tuple[int, int], k: int | None) -> int:
    """Of one coder, between the steps and in them. Gradients hold the touched rows alone where
    k of them per token are fewer than the latents."""
    touched = width if k is None else min(width, options.batch * k)
    found = 0
    for d in columns:
        moment = moment_bytes(width * d, options.moments)
        found += width * d * (4 + 2 * moment + (4 if options.ema else 0)) + 4 * touched * d
    return found + 2 * width * columns[0]  # the encoder in bfloat16, for the selection


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
