"""scikit-learn's dictionary learning and independent components, as controls.

Both are fitted on train rows in the units in which x − m has a variance of D, once for a store
and a site (and kept), so that the coders of a sweep share them.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.coders import Coder, Codes
from sae.coders.refit import orthogonal_matching_pursuit
from sae.kernels import kernels_for
from sae.metrics.controls.base import TrainData
from sae.metrics.controls.dictionaries import Basis

ATOMS_PER_DIMENSION = 4
ALPHAS = (0.5, 1.0, 2.0)  # of the lasso, in units in which a dimension has variance 1
LEARNING_BATCH, LEARNING_STEPS = 256, 60
TRIAL_STEPS, TRIAL_ROWS, TRIAL_K = 15, 1024, 32  # of the short trainings that choose among them
ICA_ROWS, ICA_ITERATIONS = 4096, 100
ICA_WIDEST = 1024  # dimensions; the rows are at least four times as many


class Pursued:
    """A dictionary whose codes are found by orthogonal matching pursuit, K per token."""

    def __init__(self, mean_D: Tensor, atoms_FD: Tensor, k: int) -> None:
        self.b_dec_D, self.W_dec_FD, self.k = mean_D, atoms_FD, min(k, *atoms_FD.shape)

    def encode(self, x_BD: Tensor) -> Codes:
        return orthogonal_matching_pursuit(x_BD - self.b_dec_D, self.W_dec_FD, self.k)

    def decode(self, codes: Codes, x_BD: Tensor | None = None) -> Tensor:
        kernels = kernels_for(self.W_dec_FD)
        return kernels.decode(codes.acts_N, self.W_dec_FD, codes.support) + self.b_dec_D

    def __call__(self, x_BD: Tensor) -> Tensor:
        return self.decode(self.encode(x_BD))


def dictionary_learning(coder: Coder, data: TrainData, l0: int, seed: int = 0) -> Pursued:
    """`MiniBatchDictionaryLearning` (Mairal et al. 2009), coded with OMP at the coder's L0.

    At most 4 D atoms: its lasso, one row at a time, does not reach the widths of coders here.
    Decoding by pursuit is stronger than any encoder: it is a control that may well win.
    """
    atoms = min(coder.d_sae, ATOMS_PER_DIMENSION * coder.d_in)
    settings = [atoms, *ALPHAS, LEARNING_BATCH, LEARNING_STEPS, TRIAL_STEPS]
    found = data.cache.tensors(
        "dictionary_learning", _key(data, seed, settings), lambda: _learn(data, atoms, seed)
    )
    return Pursued(data.mean_D, found["atoms_FD"].to(data.device), l0)


def _learn(data: TrainData, atoms: int, seed: int) -> dict[str, Tensor]:
    """At that of `ALPHAS` whose short training leaves the least of other rows to pursuit."""
    from sklearn.exceptions import ConvergenceWarning

    rows = _whitened_units(data, LEARNING_BATCH * LEARNING_STEPS, seed)
    steps = max(1, len(rows) // LEARNING_BATCH)
    trial, done, total = min(TRIAL_STEPS, steps), 0, steps + len(ALPHAS) * min(TRIAL_STEPS, steps)

    def learned(alpha: float, steps: int) -> Tensor:
        nonlocal done
        model = _model(atoms, alpha, seed)
        for step in range(steps):
            model.partial_fit(rows[step * LEARNING_BATCH : (step + 1) * LEARNING_BATCH])
            done += 1
            data.tell(done, total)
        return torch.from_numpy(model.components_).float()

    unseen = torch.from_numpy(rows[-TRIAL_ROWS:]).float()  # by the trials, unless the text is short
    centre_D = torch.zeros(unseen.shape[1])

    def left(alpha: float) -> float:
        pursued = Pursued(centre_D, learned(alpha, trial), TRIAL_K)
        return float((unseen - pursued(unseen)).square().sum())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of single codes while it learns
        return {"atoms_FD": learned(min(ALPHAS, key=left), steps)}


def _model(atoms: int, alpha: float, seed: int) -> Any:
    from sklearn.decomposition import MiniBatchDictionaryLearning

    return MiniBatchDictionaryLearning(
        n_components=atoms,
        alpha=alpha,  # pyright: ignore[reportArgumentType]
        batch_size=LEARNING_BATCH,
        fit_algorithm="cd",
        random_state=seed,
    )


def independent_components(coder: Coder, data: TrainData, l0: int, seed: int = 0) -> Basis:
    """FastICA (Hyvärinen & Oja 2000): of its D components, those K that write most."""
    settings = [ICA_ROWS, ICA_ITERATIONS]
    found = data.cache.tensors(
        "independent_components", _key(data, seed, settings), lambda: _separate(data, seed)
    )
    read, write = (found[name].to(data.device) for name in ("read_FD", "write_FD"))
    return Basis(data.mean_D, read, write, l0)


def _separate(data: TrainData, seed: int) -> dict[str, Tensor]:
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    rows = _whitened_units(data, ICA_ROWS, seed)
    if len(rows) <= rows.shape[1]:
        raise UserError(
            f"Independent components of {rows.shape[1]} dimensions need more than {len(rows)} "
            "train rows; leave `independent_components` out, or harvest more text."
        )
    model = FastICA(whiten="unit-variance", max_iter=ICA_ITERATIONS, tol=1e-3, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the budget is stated in the docs
        model.fit(rows.astype(np.float32))  # twice as fast, and the components are kept so
    return {
        "read_FD": torch.from_numpy(np.ascontiguousarray(model.components_)).float(),
        "write_FD": torch.from_numpy(np.ascontiguousarray(np.asarray(model.mixing_).T)).float(),
    }


def _whitened_units(data: TrainData, rows: int, seed: int) -> np.ndarray:
    """Train rows less their mean, in units of the root of the mean variance of a dimension."""
    x_BD = (data.spread(rows, seed) - data.mean_D).cpu()
    order = torch.randperm(len(x_BD), generator=torch.Generator().manual_seed(seed))
    scale = x_BD.square().mean().sqrt().clamp_min(1e-30)
    return (x_BD[order] / scale).double().numpy()


def _key(data: TrainData, seed: int, settings: Sequence[float]) -> list[object]:
    return [data.sample.store.attributes, data.site, data.sample.tokens, seed, settings]
