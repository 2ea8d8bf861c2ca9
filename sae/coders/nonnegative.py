"""Many small non-negative least squares at once, from their normal equations."""

import torch
from torch import Tensor

RIDGE = 1e-9  # of the mean of the diagonal
SINGLE_AFTER = 3  # full exchanges without progress before one variable at a time is exchanged


def solve_spd(gram_BKK: Tensor, target_BK: Tensor) -> Tensor:
    """argmin_z ½ zᵀ G z − cᵀ z of each row, G symmetric and positive semidefinite.

    By Cholesky; rows whose G is singular, up to rounding, take the solution of least norm.
    """
    tiny = torch.finfo(gram_BKK.dtype).eps * gram_BKK.shape[-1] * 8
    lower, failed_B = torch.linalg.cholesky_ex(gram_BKK)
    pivots_BK = lower.diagonal(dim1=-2, dim2=-1).square()
    diagonal_BK = gram_BKK.diagonal(dim1=-2, dim2=-1)
    singular_B = (failed_B > 0) | ~(pivots_BK > tiny * diagonal_BK).all(-1)
    lower[singular_B] = torch.eye(gram_BKK.shape[-1], dtype=lower.dtype, device=lower.device)
    z_BK = torch.cholesky_solve(target_BK[..., None], lower)[..., 0]
    if bool(singular_B.any()):
        inverse = torch.linalg.pinv(gram_BKK[singular_B], hermitian=True, rtol=tiny)
        z_BK[singular_B] = (inverse @ target_BK[singular_B, :, None])[..., 0]
    return z_BK


def solve_nonnegative(gram_BKK: Tensor, target_BK: Tensor) -> Tensor:
    """argmin_{z ≥ 0} ½ zᵀ G z − cᵀ z of each row: exact, not iterated to a tolerance.

    Block principal pivoting (Kim & Park 2011, "Fast nonnegative matrix factorization: an
    active-set-like method"): variables that violate the optimality conditions (z ≥ 0 where free,
    gradient ≥ 0 where bound) change sides all at once; where that stops helping, only the last of
    them does, which ends after finitely many exchanges if G is regular. Where it is not, it may go
    round in circles; such rows are solved with a little added to the diagonal.
    """
    z_BK, left = _pivoted(gram_BKK, target_BK)
    if len(left):
        mean_B = gram_BKK[left].diagonal(dim1=-2, dim2=-1).mean(1)
        regular_BKK = gram_BKK[left]
        regular_BKK.diagonal(dim1=-2, dim2=-1).add_(RIDGE * mean_B[:, None])
        z_BK[left], _ = _pivoted(regular_BKK, target_BK[left])
    return z_BK


def _pivoted(gram_BKK: Tensor, target_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Solutions, and the numbers of the rows for which none was found."""
    rows, width = target_BK.shape
    size_BK = gram_BKK.diagonal(dim1=-2, dim2=-1).sqrt()
    unit_BK = torch.where(size_BK > 0, 1 / size_BK.clamp_min(1e-300), 0.0)
    slack_BK = (
        torch.finfo(gram_BKK.dtype).eps * 64 * width * (target_BK * unit_BK).abs().amax(1, True)
    )
    free_BK = target_BK > 0
    fewest_B = torch.full((rows,), width + 1, device=target_BK.device)
    patience_B = torch.full_like(fewest_B, SINGLE_AFTER)
    z_BK = torch.zeros_like(target_BK)
    left = torch.arange(rows, device=target_BK.device)
    for _ in range(50 * (width + 1)):
        free = free_BK[left]
        z = _solve_free(gram_BKK[left], target_BK[left], free)
        gradient = (gram_BKK[left] @ z[..., None])[..., 0] - target_BK[left]
        slack, unit = slack_BK[left], unit_BK[left]
        wrong = torch.where(free, z < -slack * unit, gradient * unit < -slack)
        z_BK[left] = z.clamp_min(0)
        count = wrong.sum(1)
        if not bool(count.any()):
            break  # all are solved
        better = count < fewest_B[left]
        whole = better | (patience_B[left] > 0)
        patience_B[left] = torch.where(better, SINGLE_AFTER, (patience_B[left] - 1).clamp_min(0))
        fewest_B[left] = torch.where(better, count, fewest_B[left])
        last = width - 1 - wrong.flip(1).to(torch.uint8).argmax(1)
        single = torch.zeros_like(wrong).scatter_(1, last[:, None], True) & wrong
        free_BK[left] = free ^ torch.where(whole[:, None], wrong, single)
        left = left[count > 0]
    else:
        return z_BK, left
    return z_BK, left[:0]


def _solve_free(gram_BKK: Tensor, target_BK: Tensor, free_BK: Tensor) -> Tensor:
    """As `solve_spd` on the free variables; the others are 0."""
    both = free_BK[:, :, None] & free_BK[:, None, :]
    identity = torch.eye(gram_BKK.shape[-1], dtype=gram_BKK.dtype, device=gram_BKK.device)
    inner_BKK = torch.where(both, gram_BKK, identity)
    return solve_spd(inner_BKK, target_BK * free_BK) * free_BK
