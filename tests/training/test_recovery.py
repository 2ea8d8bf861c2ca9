"""Every architecture that can be trained finds a known dictionary."""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from sae.coders import Coder, make_coder
from sae.coders.registry import TRAINABLE, TWO_SITES
from sae.metrics.recovery import recovery
from sae.synthetic import SITE, Recipe, SyntheticStream, SyntheticTruth, write_store
from sae.synthetic_sites import TARGET, TwoSiteStream, TwoSiteTruth
from sae.training import CoderTrainer, Settings, train
from tests.contracts.test_coders import OPTIONS

WIDTH, STEPS, BATCH = 32, 1500, 256
TUNED = {  # what fits data with 3 features in a row
    **OPTIONS,
    "jumprelu": {"target_l0": 4},
    "gated": {"l1": 3.0},
    "matryoshka": {"k": 3, "prefixes": (0.5, 1.0)},
    "switch": {"k": 3, "experts": 2},
    **{name: {"k": 3} for name in ("transcoder", "skip_transcoder")},
    "relu_transcoder": {"l1": 0.5},
    "relu_skip_transcoder": {"l1": 0.1},
}
LEAST_MCC, LEAST_READ = 0.8, 0.7  # the latter of a transcoder's encoder
ONE_SITE = [name for name in TRAINABLE if name not in TWO_SITES]
BOTH_SITES = [name for name in TRAINABLE if name in TWO_SITES]
SETTINGS = Settings(steps=STEPS, batch=BATCH, learning_rate=5e-3, dead_after=10_000)


@pytest.fixture(scope="module")
def truth() -> SyntheticTruth:
    """24 directions in 16 dimensions, 3 of them in a row: superposition, but not much."""
    return SyntheticTruth(Recipe(d=16, features=24, l0=3.0, zipf=0.5, offset=1.0))


@pytest.fixture(scope="module")
def batches(truth: SyntheticTruth) -> list[np.ndarray]:
    def produced() -> Iterator[np.ndarray]:
        with closing(SyntheticStream(truth, BATCH).batches()) as stream:
            yield from (batch[SITE] for batch in islice(stream, STEPS))

    return list(produced())


def _trainer(architecture: str, truth: SyntheticTruth) -> CoderTrainer:
    coder = make_coder(architecture, truth.recipe.d, WIDTH, **TUNED.get(architecture, {}))
    return CoderTrainer(architecture, coder, SITE, SyntheticStream(truth, BATCH).stats(), SETTINGS)


def _mcc(coder: Coder, truth: SyntheticTruth) -> float:
    score = recovery(coder, truth, SyntheticStream(truth, 2000, seed=1).sample(0))
    assert isinstance(score["mcc"], float)
    return score["mcc"]


@pytest.mark.parametrize("architecture", ONE_SITE)
def test_the_dictionary_is_found(
    architecture: str, truth: SyntheticTruth, batches: list[np.ndarray]
) -> None:
    trainer = _trainer(architecture, truth)
    before = _mcc(trainer.finished_coder(), truth)
    for x_BD in batches:
        trainer.step(torch.from_numpy(x_BD))
    found = _mcc(trainer.finished_coder(), truth)
    assert before < 0.6
    assert found > LEAST_MCC


@pytest.fixture(scope="module")
def two_sites() -> TwoSiteStream:
    """36 directions in 24 dimensions, which write to 20 of another site; noise, so that features
    are best read along their own directions (`sae.synthetic_sites`)."""
    recipe = Recipe(d=24, features=36, l0=3.0, zipf=0.5, noise=0.3, offset=1.0)
    return TwoSiteStream(TwoSiteTruth(recipe, d_out=20), BATCH)


@pytest.fixture(scope="module")
def pairs(two_sites: TwoSiteStream) -> list[dict[str, torch.Tensor]]:
    return [
        {site: torch.from_numpy(rows) for site, rows in two_sites.rows(i).items()}
        for i in range(STEPS)
    ]


@pytest.mark.parametrize("architecture", BOTH_SITES)
def test_a_transcoder_finds_what_is_read_and_what_is_written(
    architecture: str, two_sites: TwoSiteStream, pairs: list[dict[str, torch.Tensor]]
) -> None:
    coder = make_coder(architecture, 24, 48, d_out=20, **TUNED[architecture])
    stats, target = two_sites.stats(), (TARGET, two_sites.stats(site=TARGET))
    trainer = CoderTrainer(architecture, coder, SITE, stats, SETTINGS, target=target)
    heldout = TwoSiteStream(two_sites.both, 2000, seed=1).sample(0)
    before = recovery(trainer.finished_coder(), two_sites.truth, heldout)
    for batch in pairs:
        trainer.step(batch[SITE], batch[TARGET])
    found = recovery(trainer.finished_coder(), two_sites.truth, heldout)
    for side, least in (("mcc", LEAST_MCC), ("mcc_encoder", LEAST_READ)):
        was, now = before[side], found[side]
        assert was is not None
        assert now is not None
        assert was < 0.6
        assert now > least, side


def test_train_reads_a_stream_and_resumes(truth: SyntheticTruth, tmp_path: Path) -> None:
    """In place of a store's reader; two halves are the whole, bit for bit."""
    settings = Settings(steps=20, batch=64, learning_rate=3e-3)

    def run(folder: str, until: int) -> tuple[CoderTrainer, dict[str, float]]:
        stream = SyntheticStream(truth, 64)
        coder = make_coder("topk", 16, WIDTH, k=4)
        trainer = CoderTrainer("c", coder, SITE, stream.stats(), settings)
        return trainer, train([trainer], stream, tmp_path / folder, until, fingerprint="x")

    whole, facts = run("a", 20)
    assert facts["tokens"] == 20 * 64
    assert 0 < facts["waited_share"] < 1
    run("b", 8)
    resumed, facts = run("b", 20)
    assert facts["steps"] == 12
    for ours, other in zip(whole.coder.parameters(), resumed.coder.parameters(), strict=True):
        assert torch.equal(ours, other)


def test_a_store_of_synthetic_rows_trains(truth: SyntheticTruth, tmp_path: Path) -> None:
    from sae.store import ShuffledReader

    store = write_store(tmp_path / "s.zarr", truth, 8192, context=32)
    settings = Settings(steps=100, batch=256, learning_rate=5e-3)
    trainer = CoderTrainer(
        "c", make_coder("topk", 16, WIDTH, k=4), SITE, store.stats(SITE), settings
    )
    before = _mcc(trainer.finished_coder(), truth)
    train([trainer], ShuffledReader(store, [SITE], 256), tmp_path / "c", 100, fingerprint="x")
    assert _mcc(trainer.finished_coder(), truth) > before + 0.1
