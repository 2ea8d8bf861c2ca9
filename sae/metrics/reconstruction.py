"""How well x̂ stands for x: FVU, EV and their published variants, by name.

Sums per token, over scored tokens (no position 0, BOS, EOS, PAD), in float64:

    count   1              x2    ‖x‖²          c2      ‖x − c‖²       centred   x − c  (D,)
    e2      ‖x − x̂‖²       xh2   ‖x̂‖²          xxh     x·x̂            nmse      ‖e‖²/‖x‖²
    legacy  ‖e‖²/‖x − c‖²  cos   cos(x, x̂)     shrink  ‖x̂‖/‖x‖        l0, l1
    error   e  (D,)        error_squares   e²  (D,)     centred_squares   (x − c)²  (D,)

and e2, c2, centred again over position 0 alone (`_at_0`) for the one variant that has it.
c is the mean of the *train* split; it only conditions the variance numerically, because
E‖x‖² − ‖E x‖² = E‖x − c‖² − ‖E(x − c)‖² for any c.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sae.metrics.registry import metric
from sae.metrics.sample import Batch
from sae.metrics.sums import DocumentSums, Sums


@runtime_checkable
class CoderLike(Protocol):
    """What is scored: a coder, or a control that has the same methods."""

    @property
    def W_dec_FD(self) -> Tensor: ...
    def __call__(self, x_BD: Tensor, /) -> Tensor: ...
    def encode(self, x_BD: Tensor, /) -> Any: ...
    def decode(self, codes: Any, x_BD: Tensor | None = None, /) -> Tensor: ...


def reconstruct(coder: CoderLike | Callable[[Tensor], Tensor], x_BD: Tensor) -> tuple[Tensor, Any]:
    """(x̂, codes) of a coder; for a bare function, which has no codes, (x̂, None)."""
    if isinstance(coder, CoderLike):
        codes = coder.encode(x_BD)
        return coder.decode(codes, x_BD), codes
    return coder(x_BD), None


def add_data(sums: DocumentSums, batch: Batch, centre_D: Tensor) -> None:
    """Adds the terms that depend on x alone: the same for every coder of a pass."""
    centred_BD = batch.x_BD - centre_D
    c2_B, x2_B = _dot(centred_BD, centred_BD).cpu(), _dot(batch.x_BD, batch.x_BD).cpu()
    centred_BD, scored_B = centred_BD.cpu(), batch.scored_B
    one_B = torch.ones(len(scored_B))
    sums.add(batch.unit_B, count_with_0=one_B)
    sums.add(
        batch.unit_B[scored_B],
        count=one_B[scored_B],
        c2=c2_B[scored_B],
        x2=x2_B[scored_B],
        centred=centred_BD[scored_B],
        centred_squares=centred_BD[scored_B].square(),
    )
    first_B = ~scored_B
    sums.add(batch.unit_B[first_B], c2_at_0=c2_B[first_B], centred_at_0=centred_BD[first_B])


def add_errors(sums: DocumentSums, batch: Batch, x_hat_BD: Tensor, centre_D: Tensor) -> None:
    """Adds the terms that depend on a coder's reconstruction of the batch."""
    x_BD, scored_B = batch.x_BD, batch.scored_B
    error_BD, centred_BD = x_BD - x_hat_BD, x_BD - centre_D
    e2, x2, xh2 = _dot(error_BD, error_BD), _dot(x_BD, x_BD), _dot(x_hat_BD, x_hat_BD)
    xxh, c2 = _dot(x_BD, x_hat_BD), _dot(centred_BD, centred_BD)
    per_token = {
        "e2": e2,
        "xh2": xh2,
        "xxh": xxh,
        "nmse": _ratio(e2, x2),
        "legacy": _ratio(e2, c2),
        "cos": _ratio(xxh, x2.sqrt() * xh2.sqrt()),
        "shrink": _ratio(xh2.sqrt(), x2.sqrt()),
    }
    error = error_BD.cpu()[scored_B]
    sums.add(
        batch.unit_B[scored_B],
        **{name: v.cpu()[scored_B] for name, v in per_token.items()},
        error=error,
        error_squares=error.square(),
    )
    sums.add(batch.unit_B[~scored_B], e2_at_0=e2.cpu()[~scored_B])


def _dot(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    return torch.linalg.vecdot(a_BD, b_BD)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0 (a row that is all zeros has no ratio to give)."""
    return torch.where(b > 0, a / b.clamp_min(torch.finfo(b.dtype).tiny), 0.0)


def total_variance(n: np.ndarray, squares: np.ndarray, total_RD: np.ndarray) -> np.ndarray:
    """E‖x − c‖² − ‖E(x − c)‖² of each resample."""
    mean_RD = total_RD / n[:, None]
    return squares / n - np.einsum("rd,rd->r", mean_RD, mean_RD)


def _width(s: Sums) -> int:
    return s["centred"].shape[1]


@metric("reconstruction", "share of variance", "higher")
def ev(s: Sums) -> np.ndarray:
    """EV = 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²).

    Explained variance, the headline: 1 is perfect, 0 is what predicting the mean gets.
    """
    return 1 - fvu(s)


@metric("reconstruction", "share of variance", "lower")
def fvu(s: Sums) -> np.ndarray:
    """FVU = E‖x − x̂‖² / (E‖x‖² − ‖E x‖²).

    Fraction of variance unexplained, from global sums; the mean predictor has exactly 1.
    """
    return s["e2"] / s["count"] / total_variance(s["count"], s["c2"], s["centred"])


@metric("reconstruction", "share of variance", "lower", count="count_with_0")
def fvu_with_position_0(s: Sums) -> np.ndarray:
    """FVU over the scored tokens and position 0.

    In GPT-2 small the first position's norm is some twenty times the others'; its variance swamps
    theirs and flatters any coder that fits it. Only for comparison with tools that include it.
    """
    n, total_RD = s["count_with_0"], s["centred"] + s["centred_at_0"]
    return (s["e2"] + s["e2_at_0"]) / n / total_variance(n, s["c2"] + s["c2_at_0"], total_RD)


@metric("reconstruction", "share of variance", "higher")
def ev_centred_error(s: Sums) -> np.ndarray:
    """1 − (E‖e‖² − ‖E e‖²) / (E‖x‖² − ‖E x‖²), e = x − x̂.

    The variance of the error, not its mean square (dictionary_learning's
    `frac_variance_explained`): a constant offset of x̂ costs nothing, so it is at least EV.
    """
    n = s["count"]
    return 1 - total_variance(n, s["e2"], s["error"]) / total_variance(n, s["c2"], s["centred"])


@metric("reconstruction", "share of variance", "higher")
def ev_per_dimension(s: Sums) -> np.ndarray:
    """mean_d (1 − E e_d² / Var x_d), the mean of R² over the D dimensions.

    scikit-learn's `r2_score` with its uniform average: a dimension of little variance weighs as
    much as one of a lot.
    """
    n = s["count"][:, None]
    variance_RD = s["centred_squares"] / n - np.square(s["centred"] / n)
    return 1 - (s["error_squares"] / n / variance_RD).mean(axis=1)


@metric("reconstruction", "share of E‖x‖²", "higher")
def ev_uncentred(s: Sums) -> np.ndarray:
    """1 − E‖x − x̂‖² / E‖x‖².

    The mean of x counts as signal: predicting it scores above 0, and every coder above its EV.
    """
    return 1 - s["e2"] / s["x2"]


@metric("reconstruction", "share", "higher")
def ev_legacy(s: Sums) -> np.ndarray:
    """E[1 − ‖x − x̂‖² / ‖x − c‖²], c the mean of the train split.

    A mean of ratios per token, as older tools print ("legacy EV", there with the batch's mean);
    tokens near the mean weigh as much as all others.
    """
    return 1 - s["legacy"] / s["count"]


@metric("reconstruction", "share", "lower")
def nmse(s: Sums) -> np.ndarray:
    """E[‖x − x̂‖² / ‖x‖²].

    Normalised MSE per token (OpenAI's): the mean of x counts as signal, so it is mostly
    lower than FVU; tokens of small norm can turn that round.
    """
    return s["nmse"] / s["count"]


@metric("reconstruction", "activation²", "lower")
def mse(s: Sums) -> np.ndarray:
    """E‖x − x̂‖².

    Summed over the D dimensions of a token, averaged over tokens.
    """
    return s["e2"] / s["count"]


@metric("reconstruction", "activation²", "lower")
def mse_per_dimension(s: Sums) -> np.ndarray:
    """E‖x − x̂‖² / D."""
    return s["e2"] / s["count"] / _width(s)


@metric("reconstruction", "cosine", "higher")
def cosine(s: Sums) -> np.ndarray:
    """E[x·x̂ / (‖x‖ ‖x̂‖)]."""
    return s["cos"] / s["count"]


@metric("reconstruction", "ratio")
def shrinkage(s: Sums) -> np.ndarray:
    """E[‖x̂‖ / ‖x‖].

    Below 1 the reconstructions are too short; even the best projection is a little below.
    """
    return s["shrink"] / s["count"]


@metric("reconstruction", "ratio")
def gamma(s: Sums) -> np.ndarray:
    """γ = E‖x̂‖² / E[x·x̂].

    1 when no rescaling of x̂ would lower the error; below 1 the reconstructions are shrunk.
    """
    return s["xh2"] / s["xxh"]


@metric("codes", "latents per token", "lower")
def l0(s: Sums) -> np.ndarray:
    """L0 = E #{i : f_i ≠ 0}."""
    return s["l0"] / s["count"]


@metric("codes", "activation", "lower")
def l1(s: Sums) -> np.ndarray:
    """L1 = E Σ_i |f_i| ‖d_i‖, d_i the decoder rows."""
    return s["l1"] / s["count"]


@metric("comparison", "ratio", "lower")
def fvu_ratio(s: Sums) -> np.ndarray:
    """FVU of the coder / FVU of this control, on the same tokens and resamples.

    Below 1 the coder is better than the control.
    """
    return s["coder_e2"] / s["e2"]
