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
from sae.coders import TwoSites, make_coder
from sae.coders.registry import TWO_SITES
from sae.metrics.recovery import as_csr
from sae.synthetic import SITE, Recipe, Sample, SyntheticStream, SyntheticTruth
from sae.synthetic_sites import TARGET, TwoSiteStream, TwoSiteTruth
from sae.training import CoderTrainer, Settings

HERE = Path(__file__).parent
PLAIN = Recipe(d=64, features=256, l0=6.0)
CASES = {
    "independent": PLAIN,
    "structured": replace(PLAIN, families=16, exclusive=(16, 2), correlated=(16, 3)),
    "two sites": PLAIN,
}
D_OUT = {"two sites": 48}  # of the cases for transcoders: width of the site to be predicted
WIDTH, K, TEST_ROWS = PLAIN.features, round(PLAIN.l0), 20_000
L1 = 1.0  # the default of 5, for language models, silences most features here
OPTIONS = {
    **{
        key: {"l1": L1}
        for key in ("relu", "relu_unconstrained", "ista", "relu_transcoder", "relu_skip_transcoder")
    },
    **{
        key: {"k": K}
        for key in ("topk", "batchtopk", "matryoshka", "transcoder", "skip_transcoder")
    },
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
AUXK = 1 / 32  # weight of the auxiliary loss, of Loupe and of every peer (Gao et al. 2024)
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

    stream: SyntheticStream  # of the training rows
    test: Sample
    folder: Path
    steps: int
    seed: int

    @property
    def truth(self) -> SyntheticTruth:
        return self.stream.truth

    @property
    def batch(self) -> int:
        return self.stream.batch

    @property
    def sites(self) -> list[str]:
        """The one that is read and, where there are two, the one that is predicted."""
        return list(self.stream.rows(0))

    def file(self, site: str = SITE) -> Path:
        return self.folder / f"{site}.npy"

    def batches(self) -> Iterator[list[np.ndarray]]:
        """The rows of each site."""
        files = [np.load(self.file(site), mmap_mode="r") for site in self.sites]
        for i in range(self.steps):
            yield [np.array(rows[i * self.batch : (i + 1) * self.batch]) for rows in files]

    def wanted(self) -> np.ndarray:
        """The test rows that a coder is to reconstruct or predict."""
        if isinstance(self.truth, TwoSiteTruth):
            return self.truth.target_of(self.test)
        return self.test.x_BD


@dataclass(frozen=True)
class Found:
    """What a system learned: codes of the test rows, weights, and its training's CPU seconds."""

    acts: sp.csr_matrix
    W_enc_FD: np.ndarray | None
    W_dec_FD: np.ndarray
    b_dec_D: np.ndarray
    seconds: float
    samples: int
    W_skip_OD: np.ndarray | None = None


def fits(architecture: str, case: str) -> bool:
    """Whether an architecture is one for the case's number of sites."""
    return (architecture in TWO_SITES) == (case in D_OUT)


def truth_of(case: str, seed: int) -> SyntheticTruth:
    recipe = replace(CASES[case], seed=seed)
    return TwoSiteTruth(recipe, D_OUT[case]) if case in D_OUT else SyntheticTruth(recipe)


def draw(case: str, seed: int, size: Size, folder: Path) -> Data:
    """Writes the rows of a case. The dictionary, too, is another one for each seed."""
    truth = truth_of(case, seed)
    if isinstance(truth, TwoSiteTruth):
        stream: SyntheticStream = TwoSiteStream(truth, size.batch)
    else:
        stream = SyntheticStream(truth, size.batch)
    test = SyntheticStream(stream.truth, TEST_ROWS, seed=1).sample(0)
    data = Data(stream, test, folder, size.samples // size.batch, seed)
    files = {
        site: np.lib.format.open_memmap(
            data.file(site),
            mode="w+",
            dtype=np.float32,
            shape=(data.steps * size.batch, rows.shape[1]),
        )
        for site, rows in stream.rows(0).items()
    }
    for i in range(data.steps):
        for site, rows in stream.rows(i).items():
            files[site][i * size.batch : (i + 1) * size.batch] = rows
    for file in files.values():
        file.flush()
    np.save(folder / "test.npy", test.x_BD)
    return data


def settings_of(data: Data) -> Settings:
    """Loupe's defaults for as many steps."""
    return Settings(steps=data.steps, batch=data.batch, seed=data.seed)


def loupe(architecture: str, data: Data, multiple: float = 1.0) -> Found:
    """Trains with Loupe's defaults, at `multiple` of its default learning rate for this width."""
    settings = settings_of(data)
    settings = replace(settings, learning_rate=multiple * settings.peak_rate(WIDTH))
    options, target = dict(OPTIONS.get(architecture, {})), None
    if architecture in TWO_SITES:
        target = TARGET, data.stream.stats(site=TARGET)
        options["d_out"] = len(target[1].mean_D)
    coder = make_coder(architecture, data.truth.recipe.d, WIDTH, **options)
    stats = data.stream.stats()
    began = time.process_time()
    trainer = CoderTrainer(architecture, coder, SITE, stats, settings, target=target)
    for rows in data.batches():
        trainer.step(*map(torch.from_numpy, rows))
    seconds = time.process_time() - began
    coder = trainer.finished_coder()
    with torch.inference_mode():
        acts = as_csr(coder.encode(torch.from_numpy(data.test.x_BD)))
    weights = (coder.W_enc_FD.numpy(), coder.W_dec_FD.numpy(), coder.b_dec_D.numpy())
    W_skip = coder.W_skip_OD.numpy() if isinstance(coder, TwoSites) and coder.skip else None
    return Found(acts, *weights, seconds, data.steps * data.batch, W_skip)


def peer(
    system: str, architecture: str, python: Path, data: Data, limit: float, multiple: float
) -> Found:
    """Runs `peers/<system>_recovery.py` in the peer's environment, at `multiple` of its rate."""
    given = {
        "train": str(data.file()),
        "test": str(data.folder / "test.npy"),
        "out": str(data.folder / "found.npz"),
        "architecture": architecture,
        "k": K,
        "width": WIDTH,
        "batch": data.batch,
        "seed": data.seed,
        "multiple": multiple,
        "dead_after": settings_of(data).dead_tokens,
        "auxk_alpha": AUXK,
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
    mean_D = data.stream.stats().mean_D.astype(np.float32)
    samples, began = 0, time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # gaps of 1e-6: of no account here
        for (x_BD,) in data.batches():
            learner.partial_fit(x_BD - mean_D)
            samples += len(x_BD)
            if time.process_time() - began > limit:
                break
    seconds = time.process_time() - began
    learner.positive_code = False  # its OMP has no such constraint
    acts = sp.csr_matrix(learner.transform(data.test.x_BD - mean_D))
    return Found(acts, None, learner.components_, mean_D, seconds, samples)
