"""The scikit-learn face: a sparse autoencoder as a transformer over the rows of a matrix.

codes = SparseAutoencoder(n_components=512, k=16).fit(X).transform(X)    # scipy CSR
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from sae.coders import Codes, Support, make_coder
from sae.coders.registry import hyperparameters_of
from sae.store import SiteStats
from sae.training import CoderTrainer, Settings

MOST_LOST = 1e-6  # share of the variance of X that rounding it to float32 may take


class SparseAutoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A sparse dictionary of directions, each row of X a sum of few of them.

    Parameters
    ----------
    n_components : int, dictionary width F.
    architecture : "topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated", ...
    k : int, active latents per row (on average, but for topk); at most `n_components` are used.
    l1 : float, weight of the sparsity penalty of those without a `k` (relu, gated).
    epochs, batch_size, learning_rate : of the training; `learning_rate=None` follows the
        n^(-1/2) rule of `sae.training.Settings`.
    sparse_output : whether `transform` gives a SciPy CSR matrix (default) or an array.
    random_state : seed of the initial directions and of the order of rows.

    Attributes
    ----------
    components_ : (F, D) unit decoder directions.
    coder_ : the trained `sae.Coder`, for raw rows of X.
    n_steps_ : steps of training.
    """

    def __init__(
        self,
        n_components: int = 64,
        *,
        architecture: str = "topk",
        k: int = 8,
        l1: float = 5.0,
        epochs: int = 20,
        batch_size: int = 256,
        learning_rate: float | None = None,
        sparse_output: bool = True,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.architecture = architecture
        self.k = k
        self.l1 = l1
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.sparse_output = sparse_output
        self.random_state = random_state

    def fit(self, X: npt.ArrayLike, y: Any = None) -> Self:
        """Learns the dictionary from the rows of X (n_samples, n_features), in float32."""
        array = _rows(self, X, dtype=(np.float64, np.float32), ensure_min_samples=2)
        random = check_random_state(self.random_state)
        rows = _tensor(array)
        _require_precision(array, rows)
        for name in ("k", "n_components", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        batch = min(self.batch_size, len(rows))
        per_epoch = len(rows) // batch
        settings = Settings(
            steps=max(1, self.epochs * per_epoch),
            batch=batch,
            learning_rate=self.learning_rate,
            dead_after=max(1, 2 * len(rows)),
            seed=int(random.randint(2**31 - 1)),
        )
        k = min(self.k, self.n_components)
        given = {"k": k, "max_iterations": k, "target_l0": float(k), "l1": self.l1}
        known = hyperparameters_of(self.architecture)
        options = {name: value for name, value in given.items() if name in known}
        coder = make_coder(self.architecture, rows.shape[1], self.n_components, **options)
        trainer = CoderTrainer("sklearn", coder, "X", _stats(array), settings)
        for _ in range(self.epochs):
            order = torch.from_numpy(random.permutation(len(rows))[: per_epoch * batch])
            for chosen in order.split(batch):
                trainer.step(rows[chosen])
        coder = trainer.finished_coder()
        if not all(bool(weight.isfinite().all()) for weight in coder.parameters()):
            raise ValueError(
                "The training diverged: its weights are not finite; fit again with a lower "
                f"`learning_rate` than {settings.peak_rate(self.n_components):g}."
            )
        self.coder_ = coder
        self.components_ = self.coder_.W_dec_FD.numpy().copy()
        self.n_steps_ = trainer.done
        return self

    def transform(self, X: npt.ArrayLike) -> Any:
        """Codes (n_samples, n_components), CSR unless `sparse_output=False`."""
        check_is_fitted(self)
        array = _rows(self, X, dtype=(np.float64, np.float32), reset=False)
        acts, indices, offsets = self.coder_.encode(_tensor(array)).ragged()
        codes = sp.csr_matrix(
            (acts.numpy().astype(array.dtype), indices.numpy(), offsets.numpy()),
            (len(array), self.n_components),
        )
        return codes if self.sparse_output else codes.toarray()

    def inverse_transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Rows (n_samples, n_features) from codes, sparse or dense."""
        check_is_fitted(self)
        codes: Any = sp.csr_matrix(X)
        if codes.shape[1] != self.n_components:
            raise ValueError(
                f"X has {codes.shape[1]} columns; it must have one for each of the "
                f"{self.n_components} components."
            )
        support = Support(
            torch.from_numpy(codes.indices.astype(np.int64)),
            torch.from_numpy(codes.indptr.astype(np.int64)),
            self.n_components,
        )
        acts = torch.from_numpy(codes.data.astype(np.float32))
        return self.coder_.decode(Codes(acts, support)).numpy()

    @property
    def _n_features_out(self) -> int:
        return self.n_components


def _rows(estimator: BaseEstimator, X: npt.ArrayLike, **options: Any) -> npt.NDArray[Any]:
    """scikit-learn's own check of X, whose return type it does not tell."""
    checked: Any = validate_data(estimator, X=X, **options)  # pyright: ignore[reportArgumentType]
    return checked


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float32)  # a copy: X may be a read-only memory map


def _require_precision(array: npt.NDArray[Any], rows: torch.Tensor) -> None:
    """Rows that lie close together and far from 0 are not told apart in float32."""
    lost = np.var(array - rows.numpy(), axis=0, dtype=np.float64).sum()
    spread = np.var(array, axis=0, dtype=np.float64).sum()
    if np.ptp(array, axis=0).any() and lost > MOST_LOST * spread:
        raise ValueError(
            f"Rounding X to float32 changes it by {lost / spread:.0e} of its variance, since its "
            "rows lie far from 0 and close together; subtract their mean first (StandardScaler "
            "does), or scale them."
        )


def _stats(array: npt.NDArray[Any]) -> SiteStats:
    x = array.astype(np.float64)
    norms = np.linalg.norm(x, axis=1)
    return SiteStats(len(x), x.mean(axis=0), float((norms**2).mean()), float(norms.mean()))
