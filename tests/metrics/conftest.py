"""A small GPT-2 whose blocks matter, a real store of its activations, and an untrained coder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from sae.coders import Coder, make_coder
from sae.lm import LanguageModel
from sae.metrics import evaluate
from sae.metrics.sample import Sample, draw
from sae.store import ActivationStore, DocumentTable, ShuffledReader, StoreSpec, StoreWriter
from sae.training import CoderTrainer, Settings

SITE = "blocks.0.hook_resid_post"
MLP = "blocks.0.hook_mlp_out"
NEXT = "blocks.1.hook_resid_post"
T, TRAIN, HELD, END = 32, 48, 40, 0


@pytest.fixture(scope="session")
def lm(tiny_folder: Path) -> LanguageModel:
    """Random weights, but large ones: a tenth of a nat hangs on every site."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=T,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=END,
        eos_token_id=END,
    )
    torch.manual_seed(1)
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    return LanguageModel(model, tokenizer, name="random", hash="h" * 8)


def build_store(
    path: Path, lm: LanguageModel, document_length: int, sites: tuple[str, ...] = (SITE, MLP)
) -> ActivationStore:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, lm.vocab_size, size=(TRAIN + HELD, T)).astype(np.uint16)
    rows = np.arange(tokens.size)
    begins = (rows % document_length == 5) & (rows % T != 0)
    tokens.reshape(-1)[begins] = END
    tokens[:, 0] = END
    starts = np.flatnonzero(begins)
    names = [f"d{i}" for i in range(len(starts))]
    spec = StoreSpec(
        sites={site: lm.site_width(site) for site in sites},
        context=T,
        sequences=TRAIN + HELD,
        splits={"train": (0, TRAIN), "heldout": (TRAIN, TRAIN + HELD)},
        model={"name": lm.name, "hash": lm.hash, "layers": 2, "d_model": 32},
        tokenizer_hash="t",
        corpus={"description": "random tokens", "hash": "c"},
        bos=END,
    )
    table = DocumentTable(starts.astype(np.int64), names, names)
    acts = lm.capture(torch.from_numpy(tokens.astype(np.int64)), list(spec.sites))
    flat = {site: x.flatten(0, 1).half().numpy() for site, x in acts.items()}
    with StoreWriter(path, spec, tokens, table) as writer:
        for shard in writer.missing:
            first, last = spec.shard_range(shard)
            writer.write(shard, {site: x[first * T : last * T] for site, x in flat.items()})
        writer.finish()
    return ActivationStore.open(path)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> ActivationStore:
    return build_store(tmp_path_factory.mktemp("store") / "a.zarr", lm, document_length=45)


@pytest.fixture
def coder(store: ActivationStore) -> Coder:
    coder = make_coder("topk", 32, 128, k=6)
    mean = torch.from_numpy(store.stats(SITE).mean_D).float()
    coder.initialise(mean, torch.Generator().manual_seed(3))
    coder.metadata = {"hook_name": SITE, "model_name": lm_name(store)}
    return coder.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def everywhere(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> ActivationStore:
    """A store of two layers."""
    return build_store(tmp_path_factory.mktemp("layers") / "a.zarr", lm, 45, (SITE, NEXT))


@pytest.fixture(scope="session")
def trainer(everywhere: ActivationStore) -> CoderTrainer:
    return small_training(everywhere)


def small_training(
    store: ActivationStore, architecture: str = "topk", **options: float
) -> CoderTrainer:
    """A small coder at the end of its training on `SITE`; by default a TopK."""
    options = options or {"k": 8}
    settings = Settings(steps=500, batch=256, learning_rate=3e-3, dead_after=20_000, auxk_k=8)
    stats = store.stats(SITE)
    coder = make_coder(architecture, 32, 128, **options)
    trainer = CoderTrainer(architecture, coder, SITE, stats, settings)
    batches = ShuffledReader(store, [SITE], settings.batch).batches()
    for _ in range(settings.steps):
        trainer.step(torch.from_numpy(next(batches)[SITE]))
    batches.close()
    return trainer


@pytest.fixture
def trained(trainer: CoderTrainer) -> Coder:
    coder = trainer.finished_coder()
    settings = {"steps": 40, "batch": 256}  # what controls of it are trained with
    coder.metadata = {"hook_name": SITE, "loupe": {"settings": settings}}
    return coder


def lm_name(store: ActivationStore) -> str:
    return store.attributes["model"]["name"]


def short_evaluation(coder: Coder, store: ActivationStore, lm: LanguageModel) -> dict[str, Any]:
    """Enough for the self-tests, and nothing that takes long."""
    return evaluate(coder, store, lm, tokens=600, loss_tokens=300, controls=())


def few_sequences(store: ActivationStore) -> Sample:
    return draw(store, "heldout", 600, {END})
