"""One stream, many coders: what they share is shared, and each ends as if it were alone."""

from pathlib import Path

import pytest
import torch

from sae.coders import make_coder
from sae.store import ActivationStore, ShuffledReader
from sae.training import CoderTrainer, Settings, train
from sae.training.run import step_all

SITE = "blocks.0.hook_resid_post"
OPTIONS = {"topk": {"k": 4}, "batchtopk": {"k": 4}, "relu": {"l1": 1.0}}
STEPS, BATCH = 12, 64


def _trainer(store: ActivationStore, architecture: str, width: int, seed: int) -> CoderTrainer:
    return CoderTrainer(
        f"{architecture}-{width}-s{seed}",
        make_coder(architecture, 16, width, **OPTIONS[architecture]),
        SITE,
        store.stats(SITE),
        Settings(steps=STEPS, batch=BATCH, dead_after=320, learning_rate=3e-3, seed=seed),
    )


GRID = [(name, width, seed) for name in OPTIONS for width in (32, 64) for seed in (0, 1)]


def test_a_coder_of_a_sweep_is_the_coder_trained_alone(
    store: ActivationStore, tmp_path: Path
) -> None:
    together = [_trainer(store, *point) for point in GRID]
    train(together, ShuffledReader(store, [SITE], BATCH), tmp_path / "a", STEPS, fingerprint="a")
    for trainer, point in zip(together, GRID, strict=True):
        alone = _trainer(store, *point)
        folder = tmp_path / alone.name
        train([alone], ShuffledReader(store, [SITE], BATCH), folder, STEPS, fingerprint="b")
        for a, b in zip(
            trainer.coder.state_dict().values(), alone.coder.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), trainer.name
        logs = [f / trainer.name / "training.jsonl" for f in (tmp_path / "a", folder)]
        losses = [
            [line.split('"loss"')[1] for line in log.read_text().splitlines()] for log in logs
        ]
        assert losses[0] == losses[1]


def test_a_batch_is_scaled_once_for_all_coders_of_a_site(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = [_trainer(store, *point) for point in GRID]
    calls = []
    scaled = CoderTrainer.scaled
    monkeypatch.setattr(
        CoderTrainer, "scaled", lambda t, raw: calls.append(t.name) or scaled(t, raw)
    )
    batch = next(ShuffledReader(store, [SITE], BATCH).batches())
    before = batch[SITE].copy()
    results = step_all(trainers, batch)
    assert calls == [trainers[0].name]
    assert list(results) == [trainer.name for trainer in trainers]
    assert (batch[SITE] == before).all()
