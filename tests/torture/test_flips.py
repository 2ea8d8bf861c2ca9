"""A thousand flips, cuts, lost and foreign files over every kind of file of a run.

Each must be named by `sae verify`, and never read as if it were sound by what Loupe computes with:
the reader of training, the tables of the store, coders, checkpoints, and the stages that read an
index or an evaluation. Default 1,000 damages; `TORTURE=full` 10,000.
"""

import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipelines.config import RunConfig
from pipelines.manifest import Manifest
from pipelines.results import require_current
from pipelines.verify import verify
from sae.base.config import load_config
from sae.base.errors import UserError
from sae.coders import load_coder
from sae.features import FeatureIndex
from sae.features.scorecard import read_scorecard
from sae.store import ActivationStore, ShuffledReader
from sae.training.checkpoint import load_checkpoint
from tests.conftest import tiny_settings
from tests.damage import Damage, kinds_of_files
from tests.pipelines.command import sae
from tests.torture.machine import number
from tests.torture.table import Tables

DAMAGES = number("DAMAGES", 1_000, full=10_000)
SITE = "blocks.0.hook_resid_post"

pytestmark = [pytest.mark.torture, pytest.mark.timeout(0)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_corpus: Path) -> Path:
    """A finished run, and beside its coder the checkpoints of another training."""
    folder = tmp_path_factory.mktemp("flips") / "run"
    sae("run", *tiny_settings(folder, tiny_folder, tiny_corpus))
    trainers = make_trainers(folder)
    from sae.training import train

    def stop_at_9(step: int) -> None:
        if step == 9:
            raise ZeroDivisionError

    store = ActivationStore.open(folder / "activations.zarr")
    scratch = folder.with_name("training")
    with pytest.raises(ZeroDivisionError):
        train(
            trainers,
            ShuffledReader(store, [SITE], 64),
            scratch,
            20,
            fingerprint="f",
            checkpoint_seconds=0,
            on_step=stop_at_9,
        )
    for commit in scratch.glob("checkpoint-*.json"):
        shutil.copy(commit, folder / "coders")
    shutil.copytree(scratch / "topk" / "checkpoint", folder / "coders" / "topk" / "checkpoint")
    return folder


def make_trainers(folder: Path):
    from sae.coders import make_coder
    from sae.training import CoderTrainer, Settings

    store = ActivationStore.open(folder / "activations.zarr")
    settings = Settings(steps=20, batch=64)
    coder = make_coder("topk", store.width[SITE], 64, k=4)
    return [CoderTrainer("topk", coder, SITE, store.stats(SITE), settings)]


def read(kind: str, run: Path) -> object:
    """All that Loupe reads of a kind of file before it computes with it."""
    if kind == "store":
        store = ActivationStore.open(run / "activations.zarr")
        reader = ShuffledReader(store, [SITE], batch=64)
        stream = reader.batches()
        batches = list(islice(stream, reader.order.batches_per_epoch))
        stream.close()
        store.read(SITE, 0, store.spec.rows)
        return store.tokens(), store.documents, store.stats(SITE), batches
    if kind == "coder":
        return load_coder(run / "coders" / "topk").state_dict()
    if kind == "index":
        index = FeatureIndex.open(run / "features" / "topk")
        return index.view(), read_scorecard(index)
    if kind == "evaluation":
        return require_current(load_config(RunConfig, run / "run.yaml"), ["topk"])
    if kind == "checkpoint":
        told: list[str] = []
        step = load_checkpoint(run / "coders", make_trainers(run), "f", told.append)
        if told:
            raise UserError(told[0])
        return step
    return Manifest.open(run)


def matters(kind: str, damage: Damage) -> bool:
    """Whether what `read` reads is damaged: not a log, a report, or a file that nobody knows."""
    alone = kind in ("export", "control")
    if damage.how == "extra" or damage.path.name == "run.yaml" or alone:
        return False
    unread = ("training.jsonl", "topk.html", "report.html", "compare", "tensorboard")
    return not any(part in damage.path.parts for part in unread)


def test_flips(run: Path, tables: Tables) -> None:
    assert verify(run) == []
    rng = np.random.default_rng(0)
    kinds = kinds_of_files(run)
    drawn: Counter[str] = Counter()
    named: Counter[str] = Counter()
    readable: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    silent: list[str] = []
    for i in range(DAMAGES):
        kind = list(kinds)[i % len(kinds)]
        damage = Damage.draw(rng, kinds[kind])
        drawn[kind] += 1
        with damage:
            problems = verify(run)
            if any(damage.name in problem for problem in problems):
                named[kind] += 1
            else:
                silent.append(f"verify: {damage}")
            if not matters(kind, damage):
                continue
            readable[kind] += 1
            try:
                read(kind, run)
            except UserError:
                refused[kind] += 1
            else:
                if not harmless(kind, damage):
                    silent.append(f"read: {damage}")
    assert verify(run) == []
    for kind in kinds:
        row = [kind, drawn[kind], named[kind], readable[kind], refused[kind]]
        tables.add("damages", ["kind", "damages", "named", "read", "refused"], row)
    assert not silent, silent[:20]


def harmless(kind: str, damage: Damage) -> bool:
    """What may pass unrefused, since what is read is sound: a damaged list of sums, the checkpoint
    before the last, a manifest that is gone (all stages are then done anew)."""
    if kind == "checkpoint":
        return damage.path.name in ("step-7.pt", "checkpoint-7.json")
    return damage.path.name == "SHA256SUMS" or (kind == "run" and damage.how == "gone")
