"""Where a coder's error comes from: FVU in parts that add up to it.

The codes of a sample of held-out tokens are bettered in steps, each on the same dictionary, and
each step's gain is a part of the budget:

    shrinkage      one factor on all codes, the best               (Wright & Sharkey 2024)
    amounts        the encoder's latents, refitted by least squares to each token
    choice         as many latents chosen anew, by orthogonal matching pursuit
    dead_width     silent latents given what was left of train tokens, and chosen from again
    linear         what a linear map of the input predicts of the error that is left, cross-fitted
                   (Engels et al. 2024, "Decomposing the dark matter of sparse autoencoders")
    rest

`amounts` and `choice` are the amortisation gap: what the dictionary could do and its encoder does
not. Pursuit is greedy, so that `choice` may be below 0: then the encoder chooses better. Factors
and refits are non-negative where the coder's codes are. `dead_width` is what a single resampling
would gain, so a lower bound.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sae.base.devices import in_float64
from sae.coders import Coder, Codes, Support
from sae.coders.refit import least_squares, orthogonal_matching_pursuit
from sae.kernels import kernels_for
from sae.metrics.bootstrap import Entry, entries
from sae.metrics.controls.base import best_scale
from sae.metrics.reconstruction import total_variance
from sae.metrics.registry import Metric
from sae.metrics.sample import Sample
from sae.metrics.sums import DocumentSums, Sums

STEPS = ("encoder", "rescaled", "refitted", "pursued", "revived", "linear")
PARTS = ("shrinkage", "amounts", "choice", "dead_width", "linear", "rest")
ROWS = 512  # rows that are pursued between two words of progress
REVIVERS = 512  # train rows whose residuals may take the place of silent latents
FOLDS = 2
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # shares of the mean eigenvalue
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Rows:
    """Scored rows: what the coder is given, what it should give, the unit of resampling."""

    given_BD: Tensor
    wanted_BD: Tensor
    unit_B: Tensor
    units: int
    over: str = "documents"  # what the units are

    @classmethod
    def of(cls, sample: Sample, site: str, source: str, device: torch.device) -> "Rows":
        batches = [
            (b.given_BD[kept], b.x_BD[kept], b.unit_B[b.scored_B])
            for b in sample.batches(site, device, source)
            for kept in [b.scored_B.to(device)]
        ]
        given, wanted, unit = (torch.cat(list(part)) for part in zip(*batches, strict=True))
        return cls(given, wanted, unit, sample.units, sample.over)


@torch.inference_mode()
def error_budget(
    coder: Coder,
    held: Rows,
    train: Rows,
    alive_F: np.ndarray,
    alive_within: int,
    seed: int,
    tell: Tell,
) -> dict[str, Any]:
    """`{"parts": {PART: share of FVU}, "fvu": {STEP: entry}, ...}`: see the module.

    `alive_F` says which latents fired within `alive_within` tokens; the others are the dead width.
    `train` is what these are revived from.
    """
    active, errors = _errors(coder, held, train, alive_F, seed, tell)
    sums = DocumentSums(held.units)
    centred_BD = (held.wanted_BD - held.wanted_BD.mean(0)).cpu()
    sums.add(
        held.unit_B,
        count=torch.ones(len(centred_BD)),
        c2=centred_BD.square().sum(1),
        centred=centred_BD,
        **{step: error_BD.square().sum(1).cpu() for step, error_BD in errors.items()},
    )
    found = entries(sums.arrays(), [_step(step) for step in STEPS], seed)
    shares = entries(sums.arrays(), [_part(i) for i in range(len(PARTS))], seed)
    return {
        "parts": {part: shares[part]["value"] for part in PARTS},
        "intervals": {part: _ends(shares[part]) for part in PARTS},
        "fvu": found,
        "tokens": len(centred_BD),
        "over": held.over,
        "units": len(held.unit_B.unique()),
        "pursued_latents": active,
        "silent": {"latents": int((~alive_F).sum()), "tokens": alive_within},
    }


def _errors(
    coder: Coder, held: Rows, train: Rows, alive_F: np.ndarray, seed: int, tell: Tell
) -> tuple[int, dict[str, Tensor]]:
    """Latents that pursuit may take on each row; x − x̂ of every step (B, D)."""
    codes = coder.encode(held.given_BD)
    wanted_BD = held.wanted_BD - coder.without_codes(held.given_BD)
    W_FD = coder.W_dec_FD.detach()
    nonnegative = bool((codes.acts_N >= 0).all())
    active = max(1, round(float(in_float64(codes.l0()).mean())))
    first_BD = _decode(codes, W_FD)
    scale = best_scale(wanted_BD, first_BD)
    _, indices_N, offsets_B1 = codes.ragged()  # latents that are chosen but 0 are not active
    support = Support(indices_N, offsets_B1, codes.width)
    refitted = least_squares(wanted_BD, W_FD, support, nonnegative=nonnegative)
    silent = torch.from_numpy(np.flatnonzero(~alive_F)).to(W_FD.device)
    done, passes = 0, (2 * len(wanted_BD) + REVIVERS if len(silent) else len(wanted_BD))

    def pursue(target_BD: Tensor, dictionary_FD: Tensor) -> Tensor:
        nonlocal done
        left = []
        for part in target_BD.split(ROWS):
            found = orthogonal_matching_pursuit(
                part, dictionary_FD, active, nonnegative=nonnegative
            )
            left.append(part - _decode(found, dictionary_FD))
            done += len(part)
            tell(min(done, passes), passes)
        return torch.cat(left)

    pursued_BD = revived_BD = pursue(wanted_BD, W_FD)
    if len(silent):
        target_BD = train.wanted_BD - coder.without_codes(train.given_BD)
        left_BD = pursue(target_BD[:: max(1, len(target_BD) // REVIVERS)], W_FD)
        revived_BD = pursue(wanted_BD, _revived(W_FD, silent, left_BD, seed))
    tell(passes, passes)
    return active, {
        "encoder": wanted_BD - first_BD,
        "rescaled": wanted_BD - max(0.0, scale) * first_BD,
        "refitted": wanted_BD - _decode(refitted, W_FD),
        "pursued": pursued_BD,
        "revived": revived_BD,
        "linear": revived_BD - _linear_part(held.given_BD, revived_BD, held.unit_B),
    }


def _decode(codes: Codes, W_FD: Tensor) -> Tensor:
    return kernels_for(W_FD).decode(codes.acts_N, W_FD, codes.support)


def _revived(W_FD: Tensor, silent: Tensor, left_BD: Tensor, seed: int) -> Tensor:
    """The dictionary with silent rows replaced by what was left of train rows, drawn with a
    probability that is their squared error (as resampling does: Bricken et al. 2023).
    """
    generator = torch.Generator().manual_seed(seed)
    weight_B = left_BD.square().sum(1).cpu().double()
    drawn = torch.multinomial(weight_B, len(silent), replacement=True, generator=generator)
    revived_FD = W_FD.clone()
    revived_FD[silent] = F.normalize(left_BD[drawn.to(left_BD.device)], dim=1)
    return revived_FD


def _linear_part(given_BD: Tensor, error_BD: Tensor, unit_B: Tensor) -> Tensor:
    """What a ridge regression on x predicts of the error, fitted on the other documents.

    Documents are split into two folds; the penalty is chosen in the fold that is fitted on, by
    leaving one row out (Allen's PRESS). Where a fold is empty, nothing is predicted.
    """
    found_BD = torch.zeros_like(error_BD)
    fold_B = (unit_B.unique(return_inverse=True)[1] % FOLDS).to(given_BD.device)
    for fold in range(FOLDS):
        fit_B, use_B = fold_B != fold, fold_B == fold
        if bool(fit_B.any()) and bool(use_B.any()):
            predict = _ridge(in_float64(given_BD[fit_B]), in_float64(error_BD[fit_B]))
            found_BD[use_B] = predict(in_float64(given_BD[use_B])).to(error_BD)
    return found_BD


def _ridge(x_BD: Tensor, y_BD: Tensor) -> Callable[[Tensor], Tensor]:
    mean_x, mean_y = x_BD.mean(0), y_BD.mean(0)
    U_BR, s_R, Vh_RD = torch.linalg.svd(x_BD - mean_x, full_matrices=False)
    projected_RO = U_BR.T @ (y_BD - mean_y)
    best = (float("inf"), 0.0)
    for share in RIDGES:
        ridge = share * float(s_R.square().mean())
        shrink_R = s_R.square() / (s_R.square() + ridge).clamp_min(1e-300)
        leverage_B = U_BR.square() @ shrink_R + 1 / len(x_BD)
        left_BO = y_BD - mean_y - U_BR @ (shrink_R[:, None] * projected_RO)
        press = float((left_BO / (1 - leverage_B).clamp_min(1e-6)[:, None]).square().sum())
        best = min(best, (press, ridge))
    divided_R = s_R / (s_R.square() + best[1]).clamp_min(1e-300)
    A_DO = Vh_RD.T @ (divided_R[:, None] * projected_RO)
    none = best[0] >= float((y_BD - mean_y).square().sum())  # no penalty beats the mean
    return lambda new_BD: mean_y + (0.0 if none else (new_BD - mean_x) @ A_DO)


def _fvu(s: Sums, step: str) -> np.ndarray:
    return s[step] / s["count"] / total_variance(s["count"], s["c2"], s["centred"])


def _step(step: str) -> Metric:
    return Metric(step, "reconstruction", "", "", "", "lower", lambda s: _fvu(s, step))


def _part(i: int) -> Metric:
    """Part i, as a share of the encoder's squared error."""

    def share(s: Sums) -> np.ndarray:
        before = s[STEPS[i]]
        after = s[STEPS[i + 1]] if i + 1 < len(STEPS) else 0.0 * before
        return (before - after) / s["encoder"]

    return Metric(PARTS[i], "reconstruction", "", "", "", "neither", share)


def _ends(entry: Entry) -> list[float | int | None]:
    return [entry["low"], entry["high"]]
