"""The same coder on a model of the same shape that never learned anything.

Sparse autoencoders explain much of a randomly initialised transformer as well (Heap et al. 2025,
"Sparse autoencoders can interpret randomly initialized transformers", arXiv:2501.17727): what is
reached there says nothing about learned features.
"""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sae.coders import Coder
from sae.metrics.controls.base import PROBE_ROWS, TrainData
from sae.metrics.controls.trained import at_best_rate, key_of, settings_of, train_topk
from sae.metrics.sample import Batch, Sample, draw
from sae.store import SiteStats
from sae.store.stats import SiteSums
from sae.training import Settings

if TYPE_CHECKING:
    from sae.lm import LanguageModel

RANDOM_MODEL = "random_model"
TOKENS = 524_288  # train activations of the random model, kept in memory, seen in many orders
SEQUENCES = 16  # run through it at a time


def random_model(lm: "LanguageModel", seed: int = 0) -> "LanguageModel":
    """The same architecture with the weights that it starts its training from."""
    from transformers import GPT2LMHeadModel

    from sae.lm import LanguageModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(lm.model.config).eval().requires_grad_(False)
    model.to(lm.device)  # pyright: ignore[reportArgumentType]
    digest = hashlib.sha256(f"random weights {seed} of {lm.hash}".encode()).hexdigest()
    return LanguageModel(model, lm.tokenizer, name="randomly initialised", hash=digest)


def random_model_coder(
    coder: Coder, data: TrainData, untrained: "LanguageModel", l0: int, seed: int = 0
) -> tuple[Coder, Tensor]:
    """A TopK coder trained on `untrained`'s activations of the train split, as ours on its own;
    and the mean of these activations, (D,) float32.
    """
    settings = replace(settings_of(coder), seed=seed)

    @functools.cache
    def rows() -> np.ndarray:
        sample = draw(data.sample.store, "train", TOKENS, data.sample.special)
        batches = activations(untrained, sample, data.site)
        return np.concatenate([b.x_BD[b.scored_B].half().numpy() for b in batches])

    def trained() -> Coder:
        stats = _stats(rows())

        def make(settings: Settings, data: TrainData) -> Coder:
            stream = _shuffled(rows(), settings.batch, seed)
            return train_topk(coder, data, l0, settings, stats, stream)

        few = rows()[:: max(1, len(rows()) // PROBE_ROWS)]
        some = torch.from_numpy(few).float().to(data.device)
        return at_best_rate(make, settings, data, coder.d_sae, lambda: some)

    def mean() -> dict[str, Tensor]:
        return {"mean_D": torch.from_numpy(_stats(rows()).mean_D).float()}

    of_model = [data.sample.store.attributes, data.site, untrained.hash, TOKENS]
    key = [*key_of(coder, data, l0, settings), untrained.hash, TOKENS]
    control = data.cache.coder(RANDOM_MODEL, key, trained)
    mean_D = data.cache.tensors(f"{RANDOM_MODEL}_mean", of_model, mean)["mean_D"]
    return control.to(data.device), mean_D.to(data.device)


def activations(lm: "LanguageModel", sample: Sample, site: str) -> Iterator[Batch]:
    """What a store of this model's activations of the same tokens would give, on the CPU."""
    for start in range(0, len(sample.tokens_ST), SEQUENCES):
        part = slice(start, start + SEQUENCES)
        tokens_ST = torch.from_numpy(sample.tokens_ST[part])
        x_BD = lm.capture(tokens_ST, [site])[site].float().flatten(0, 1).cpu()
        x_BD = x_BD.half().float()  # as a store keeps them
        scored_B = torch.from_numpy(sample.scored_ST[part].reshape(-1))
        first_ST = torch.zeros(tokens_ST.shape, dtype=torch.bool)
        first_ST[:, 0] = True
        wanted_B = scored_B | first_ST.flatten()
        unit_B = torch.from_numpy(sample.unit_ST[part].reshape(-1))
        yield Batch(x_BD[wanted_B], unit_B[wanted_B], scored_B[wanted_B])


def _stats(rows_ND: np.ndarray) -> SiteStats:
    return SiteStats.from_sums(SiteSums.of(rows_ND))


def _shuffled(rows_ND: np.ndarray, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Batches without end, every row once per epoch in a new order."""
    rng = np.random.default_rng(seed)
    batch = min(batch, len(rows_ND))
    while True:
        order = rng.permutation(len(rows_ND))
        for start in range(0, len(order) - batch + 1, batch):
            yield rows_ND[np.sort(order[start : start + batch])]
