"""What a linear map of the input predicts of an error: cross-fitted, so a lower bound.

A few thousand rows do not teach a map of D × D weights: what it misses is not non-linear for that.
So as much as there is goes into the fit (four fifths of the documents, scored on the last), and the
fit begins with what few rows can tell. A dictionary's error lies largely along small principal
components of the input, which it leaves out: first comes one weight for each component, D in all,
then a ridge regression of what is left by these.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sae.base.devices import in_float64

FOLDS = 5
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # shares of the mean eigenvalue
Linear = Callable[[Tensor], Tensor]


def linear_part(given_BD: Tensor, error_BO: Tensor, unit_B: Tensor) -> tuple[Tensor, int]:
    """(B, O) what is predicted of the error of each row, fitted on other units; and on how many
    rows, in the fold that had fewest. With a single unit nothing is predicted, from 0 rows.
    """
    found_BO = torch.zeros_like(error_BO)
    fold_B = (unit_B.unique(return_inverse=True)[1] % FOLDS).to(given_BD.device)
    fitted_on = []
    for fold in fold_B.unique():
        use_B, fit_B = fold_B == fold, fold_B != fold
        fitted_on.append(int(fit_B.sum()))
        if fitted_on[-1]:
            predict = fit(in_float64(given_BD[fit_B]), in_float64(error_BO[fit_B]))
            found_BO[use_B] = predict(in_float64(given_BD[use_B])).to(error_BO)
    return found_BO, min(fitted_on, default=0)


def fit(x_BD: Tensor, y_BO: Tensor) -> Linear:
    """An affine map from x to y; the mean of y alone, where nothing better is found."""
    mean_D, mean_O = x_BD.mean(0), y_BO.mean(0)
    x_BD, y_BO = x_BD - mean_D, y_BO - mean_O
    eigen_R, V_DR = torch.linalg.eigh(x_BD.T @ x_BD)
    eigen_R = eigen_R.clamp_min(0)
    z_BR = x_BD @ V_DR
    A_RO = y_BO.new_zeros(z_BR.shape[1], y_BO.shape[1])
    if x_BD.shape == y_BO.shape:  # else x's components are no directions of y
        A_RO = _own_weights(z_BR, eigen_R, y_BO, V_DR)
        y_BO = y_BO - z_BR @ A_RO
    A_DO = V_DR @ (A_RO + _ridge(z_BR, eigen_R, y_BO))
    return lambda new_BD: mean_O + (new_BD - mean_D) @ A_DO


def _own_weights(z_BR: Tensor, eigen_R: Tensor, y_BO: Tensor, V_DR: Tensor) -> Tensor:
    """(R, O): component r of x, by one weight, predicts component r of y."""
    above_R = (z_BR * (y_BO @ V_DR)).sum(0)
    below_R = (eigen_R + RIDGES[0] * eigen_R.mean()).clamp_min(1e-300)
    return (above_R / below_R)[:, None] * V_DR.T


def _ridge(z_BR: Tensor, eigen_R: Tensor, y_BO: Tensor) -> Tensor:
    """(R, O) by ridge regression on uncorrelated columns z, whose squares sum to `eigen_R`.

    The penalty is chosen by leaving one row out (Allen's PRESS); 0 where every one does worse than
    predicting nothing.
    """
    cross_RO = z_BR.T @ y_BO
    best, found_RO = float(y_BO.square().sum()), torch.zeros_like(cross_RO)
    for share in RIDGES:
        below_R = (eigen_R + share * eigen_R.mean()).clamp_min(1e-300)
        A_RO = cross_RO / below_R[:, None]
        leverage_B = (z_BR.square() / below_R).sum(1) + 1 / len(z_BR)
        left_BO = (y_BO - z_BR @ A_RO) / (1 - leverage_B).clamp_min(1e-6)[:, None]
        press = float(left_BO.square().sum())
        if press < best:
            best, found_RO = press, A_RO
    return found_RO
