"""scikit-learn's dictionary learning and independent components, as controls.

Both are fitted on train rows in the units in which x − m has a variance of D, once for a store
and a site (and kept), so that the coders of a sweep share them.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.base.devices import in_float64
from sae.base.errors import UserError
from sae.coders import Coder, Codes
from sae.coders.nonnegative import solve_spd
from sae.coders.refit import orthogonal_matching_pursuit
from sae.kernels import chunks, kernels_for
from sae.metrics.controls.base import Tell, TrainData
from sae.metrics.controls.dictionaries import Basis

ATOMS_PER_DIMENSION = 4
ALPHAS = (0.5, 1.0, 2.0)  # of the lasso, in units in which a dimension has variance 1
LEARNING_BATCH, FEWEST_STEPS, MOST_STEPS = 256, 60, 400
WORK = 200 * 1024**2  # steps times atoms² / α: a step costs as the inverse, with its codes' density
TRIAL_STEPS, TRIAL_ROWS = 12, 1024  # of the short trainings that choose among them
ICA_ROWS, ICA_ITERATIONS = 4096, 100
ICA_WIDEST = 1024  # dimensions; the rows are at least four times as many


class Oblique(Basis):
    """A basis of directions that are not orthogonal: the K that are kept get the amounts that
    bring them closest to x − m, not those that they have where all D are written.
    """

    def encode(self, x_BD: Tensor) -> Codes:
        chosen_BK = super().encode(x_BD).indices_BK
        target_BF = (x_BD - self.b_dec_D) @ self.W_dec_FD.T
        write_FD = in_float64(self.W_dec_FD)
        gram_FF = write_FD @ write_FD.T
        wanted_BK = in_float64(target_BF.gather(1, chosen_BK))
        size, acts = max(1, chunks.SYSTEMS // self.k**2), []
        parts = (t.to(gram_FF.device).split(size) for t in (chosen_BK, wanted_BK))
        for few_BK, some_BK in zip(*parts, strict=True):
            gram_BKK = gram_FF[few_BK[:, :, None], few_BK[:, None, :]]
            acts.append(solve_spd(gram_BKK, some_BK))
        return Codes.fixed(torch.cat(acts).to(x_BD), chosen_BK, len(self.W_dec_FD))


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

    At most 4 D atoms: its lasso, one row at a time, does not reach the widths of coders here. Its
    α is the one of `ALPHAS` whose trial leaves the least of other rows to pursuit at this L0; the
    trials, and the dictionary of each α, are kept for all L0s.
    Decoding by pursuit is stronger than any encoder: it is a control that may well win.
    """
    atoms = min(coder.d_sae, ATOMS_PER_DIMENSION * coder.d_in)
    steps = {alpha: _steps(atoms, alpha) for alpha in ALPHAS}
    most = max(steps.values())
    key = _key(data, seed, [atoms, LEARNING_BATCH, most, TRIAL_STEPS, TRIAL_ROWS])

    @functools.cache
    def rows() -> np.ndarray:
        return _whitened_units(data, LEARNING_BATCH * most, seed)

    def learned(alpha: float, steps: int) -> Tensor:
        return _learn(rows(), _model(atoms, alpha, seed), steps, data.tell)

    def trials() -> dict[str, Tensor]:
        found = {f"{alpha:g}": learned(alpha, TRIAL_STEPS) for alpha in ALPHAS}
        unseen_BD = rows()[-TRIAL_ROWS:]  # by the trials, unless the text is short
        return found | {"unseen_BD": torch.from_numpy(unseen_BD).float()}

    tried = data.cache.tensors("dictionary_learning_trials", [*key, *ALPHAS], trials)
    alpha = min(ALPHAS, key=lambda alpha: _left(tried[f"{alpha:g}"], tried["unseen_BD"], l0))
    found = data.cache.tensors(
        "dictionary_learning",
        [*key, alpha, steps[alpha]],
        lambda: {"atoms_FD": learned(alpha, steps[alpha])},
    )
    return Pursued(data.mean_D, found["atoms_FD"].to(data.device), l0)


def _steps(atoms: int, alpha: float) -> int:
    """Batches that a dictionary is learned from."""
    return min(MOST_STEPS, max(FEWEST_STEPS, int(WORK * alpha) // atoms**2))


def _learn(rows_ND: np.ndarray, model: Any, steps: int, tell: Tell) -> Tensor:
    """(F, D): the dictionary after so many batches, or after all that there are."""
    from sklearn.exceptions import ConvergenceWarning

    steps = max(1, min(steps, len(rows_ND) // LEARNING_BATCH))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of single codes while it learns
        for step in range(steps):
            model.partial_fit(rows_ND[step * LEARNING_BATCH : (step + 1) * LEARNING_BATCH])
            tell(step + 1, steps)
    return torch.from_numpy(model.components_).float()


def _left(atoms_FD: Tensor, rows_BD: Tensor, l0: int) -> float:
    """What pursuit of so many atoms leaves of the rows."""
    pursued = Pursued(torch.zeros(rows_BD.shape[1]), atoms_FD, l0)
    return float((rows_BD - pursued(rows_BD)).square().sum())


def _model(atoms: int, alpha: float, seed: int) -> Any:
    from sklearn.decomposition import MiniBatchDictionaryLearning

    return MiniBatchDictionaryLearning(
        n_components=atoms,
        alpha=alpha,  # pyright: ignore[reportArgumentType]
        batch_size=LEARNING_BATCH,
        fit_algorithm="cd",
        random_state=seed,
    )


def independent_components(coder: Coder, data: TrainData, l0: int, seed: int = 0) -> Oblique:
    """FastICA (Hyvärinen & Oja 2000): of its D components, those K that write most, refitted."""
    settings = [ICA_ROWS, ICA_ITERATIONS]
    found = data.cache.tensors(
        "independent_components", _key(data, seed, settings), lambda: _separate(data, seed)
    )
    read, write = (found[name].to(data.device) for name in ("read_FD", "write_FD"))
    return Oblique(data.mean_D, read, write, l0)


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
