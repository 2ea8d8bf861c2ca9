"""The data of `benchmarks.recovery`, and how each system is trained on it."""

import json
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from sae.base.files import write_json
from sae.coders import make_coder
from sae.metrics.recovery import as_csr
from sae.synthetic import SITE, Recipe, Sample, SyntheticStream, SyntheticTruth
from sae.training import CoderTrainer, Settings

HERE = Path(__file__).parent
PLAIN = Recipe(d=64, features=256, l0=6.0)
CASES = {
    "independent": PLAIN,
    "structured": replace(PLAIN, families=16, exclusive=(16, 2), correlated=(16, 3)),
}
WIDTH, K, TEST_ROWS = PLAIN.features, round(PLAIN.l0), 20_000
L1 = 1.0  # the default of 5, for language models, silences most features here
OPTIONS = {
    **{key: {"l1": L1} for key in ("relu", "relu_unconstrained", "ista")},
    **{key: {"k": K} for key in ("topk", "batchtopk", "matryoshka")},
    "gated": {"l1": 3 * L1},
    "switch": {"k": K, "experts": 2},
    "jumprelu": {"target_l0": K},
    "matching_pursuit": {"max_iterations": K},
}
PEERS = {  # (system, architecture) -> package
    ("sae_lens", "topk"): "sae-lens",
    ("sae_lens", "batchtopk"): "sae-lens",
    ("sparsify", "topk"): "eai-sparsify",
    ("dictionary_learning", "topk"): "dictionary-learning",
    ("dictionary_learning", "batchtopk"): "dictionary-learning",
}
SKLEARN = ("sklearn", "MiniBatchDictionaryLearning")
ALPHA = 0.2  # of scikit-learn's lasso; its default of 1 would silence features of magnitude 1


@dataclass(frozen=True)
class Size:
    """Training rows and rows per step, the same for every system."""

    samples: int
    batch: int
    width: int = WIDTH
    k: int = K


@dataclass(frozen=True)
class Data:
    """The rows of one case and seed, on disk, and the truth behind them."""

    truth: SyntheticTruth
    test: Sample
    folder: Path
    steps: int
    batch: int
    seed: int

    @property
    def train(self) -> Path:
        return self.folder / "train.npy"

    def batches(self) -> Iterator[np.ndarray]:
        rows = np.load(self.train, mmap_mode="r")
        for i in range(self.steps):
            yield np.array(rows[i * self.batch : (i + 1) * self.batch])


@dataclass(frozen=True)
class Found:
    """What a system learned: codes of the test rows, weights, and its training's CPU seconds."""

    acts: sp.csr_matrix
    W_enc_FD: np.ndarray | None
    W_dec_FD: np.ndarray
    b_dec_D: np.ndarray
    seconds: float
    samples: int


def draw(case: str, seed: int, size: Size, folder: Path) -> Data:
    """Writes the rows of a case. The dictionary, too, is another one for each seed."""
    truth = SyntheticTruth(replace(CASES[case], seed=seed))
    test = SyntheticStream(truth, TEST_ROWS, seed=1).sample(0)
    data = Data(truth, test, folder, size.samples // size.batch, size.batch, seed)
    shape = (data.steps * size.batch, truth.recipe.d)
    rows = np.lib.format.open_memmap(data.train, mode="w+", dtype=np.float32, shape=shape)
    stream = SyntheticStream(truth, size.batch, seed=0)
    for i in range(data.steps):
        rows[i * size.batch : (i + 1) * size.batch] = stream.sample(i).x_BD
    rows.flush()
    np.save(folder / "test.npy", test.x_BD)
    return data


def loupe(architecture: str, data: Data) -> Found:
    settings = Settings(steps=data.steps, batch=data.batch, seed=data.seed)
    options = OPTIONS.get(architecture, {})
    coder = make_coder(architecture, data.truth.recipe.d, WIDTH, **options)
    stats = SyntheticStream(data.truth, data.batch).stats()
    began = time.process_time()
    trainer = CoderTrainer(architecture, coder, SITE, stats, settings)
    for x_BD in data.batches():
        trainer.step(torch.from_numpy(x_BD))
    seconds = time.process_time() - began
    coder = trainer.finished_coder()
    with torch.inference_mode():
        acts = as_csr(coder.encode(torch.from_numpy(data.test.x_BD)))
    weights = (coder.W_enc_FD.numpy(), coder.W_dec_FD.numpy(), coder.b_dec_D.numpy())
    return Found(acts, *weights, seconds, data.steps * data.batch)


def peer(system: str, architecture: str, python: Path, data: Data, limit: float) -> Found:
    """Runs `peers/<system>_recovery.py` in the peer's environment."""
    given = {
        "train": str(data.train),
        "test": str(data.folder / "test.npy"),
        "out": str(data.folder / "found.npz"),
        "architecture": architecture,
        "k": K,
        "width": WIDTH,
        "batch": data.batch,
        "seed": data.seed,
    }
    settings = data.folder / "settings.json"
    write_json(settings, given)
    script = HERE / "peers" / f"{system}_recovery.py"
    command = [str(python), str(script), str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    seconds = json.loads(done.stdout.strip().splitlines()[-1])["seconds"]
    with np.load(given["out"]) as found:
        shape = (len(data.test.x_BD), WIDTH)
        acts = sp.csr_matrix((found["acts"], found["indices"], found["offsets"]), shape)
        weights = (found["W_enc"], found["W_dec"], found["b_dec"])
    return Found(acts, *weights, seconds, data.steps * data.batch)


def sklearn(data: Data, limit: float) -> Found:
    """Online dictionary learning (Mairal et al. 2009) with non-negative lasso codes; OMP after.

    Stopped after `limit` seconds of processor time, so it sees fewer rows than the others.
    """
    from sklearn.decomposition import MiniBatchDictionaryLearning
    from sklearn.exceptions import ConvergenceWarning

    learner = MiniBatchDictionaryLearning(
        WIDTH,
        alpha=ALPHA,  # pyright: ignore[reportArgumentType] -- scikit-learn takes any float
        batch_size=data.batch,
        fit_algorithm="cd",
        positive_code=True,
        random_state=data.seed,
        transform_algorithm="omp",
        transform_n_nonzero_coefs=K,
    )
    mean_D = SyntheticStream(data.truth, data.batch).stats().mean_D.astype(np.float32)
    samples, began = 0, time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # gaps of 1e-6: of no account here
        for x_BD in data.batches():
            learner.partial_fit(x_BD - mean_D)
            samples += len(x_BD)
            if time.process_time() - began > limit:
                break
    seconds = time.process_time() - began
    learner.positive_code = False  # its OMP has no such constraint
    acts = sp.csr_matrix(learner.transform(data.test.x_BD - mean_D))
    return Found(acts, None, learner.components_, mean_D, seconds, samples)
