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
not. Pursuit is greedy: on a token where it does worse than what stood there, that is kept, so that
no later part is of an error that pursuit has made. Factors and refits are non-negative where the
coder's codes are. The best choice, the best use of silent latents and the best linear map are not
known: `LOWER_BOUNDS` are gained at least, and `rest` is at most what is left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sae.coders import Coder, Codes, Support
from sae.coders.refit import least_squares, orthogonal_matching_pursuit
from sae.kernels import kernels_for
from sae.metrics.bootstrap import Entry, entries
from sae.metrics.controls.base import best_scale
from sae.metrics.linear_part import linear_part
from sae.metrics.reconstruction import total_variance
from sae.metrics.registry import Metric
from sae.metrics.sample import Sample
from sae.metrics.sums import DocumentSums, Sums

STEPS = ("encoder", "rescaled", "refitted", "pursued", "revived", "linear")
PARTS = ("shrinkage", "amounts", "choice", "dead_width", "linear", "rest")
LOWER_BOUNDS = ("choice", "dead_width", "linear")
ALONE = "pursuit alone"  # the error of pursuit on every token, better or not
ROWS = 512  # rows that are pursued between two words of progress
REVIVERS = 512  # train rows whose residuals may take the place of silent latents
LEVELS = 32  # numbers of latents that pursuit is made with
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
    codes = coder.encode(held.given_BD)
    errors = _errors(coder, codes, held, train, alive_F, seed, tell)
    linear_BD, fitted_on = linear_part(held.given_BD, errors["revived"], held.unit_B)
    errors["linear"] = errors["revived"] - linear_BD
    squares = {step: error_BD.square().sum(1).cpu() for step, error_BD in errors.items()}
    sums = DocumentSums(held.units)
    centred_BD = (held.wanted_BD - held.wanted_BD.mean(0)).cpu()
    ones_B, c2_B = torch.ones(len(centred_BD)), centred_BD.square().sum(1)
    sums.add(held.unit_B, count=ones_B, c2=c2_B, centred=centred_BD, **squares)
    found = entries(sums.arrays(), [_step(step) for step in (*STEPS, ALONE)], seed)
    shares = entries(sums.arrays(), [_part(i) for i in range(len(PARTS))], seed)
    better_on = float((squares[ALONE] < squares["refitted"]).double().mean())
    return {
        "parts": {part: shares[part]["value"] for part in PARTS},
        "intervals": {part: _ends(shares[part]) for part in PARTS},
        "lower_bounds": list(LOWER_BOUNDS),
        "pursuit_alone": {"fvu": found.pop(ALONE), "better_on": better_on},
        "fvu": found,
        "tokens": len(centred_BD),
        "over": held.over,
        "units": sums.filled,
        "pursued_latents": float(_levels(codes).double().mean()),
        "linear_fitted_on": fitted_on,
        "silent": {"latents": int((~alive_F).sum()), "tokens": alive_within},
    }


def _errors(
    coder: Coder,
    codes: Codes,
    held: Rows,
    train: Rows,
    alive_F: np.ndarray,
    seed: int,
    tell: Tell,
) -> dict[str, Tensor]:
    """x − x̂ (B, D) of every step but the last, and of pursuit alone."""
    target_BD = held.wanted_BD - coder.without_codes(held.given_BD)
    W_FD = coder.W_dec_FD.detach()
    nonnegative = bool((codes.acts_N >= 0).all())
    first_BD = _decode(codes, W_FD)
    scale = best_scale(target_BD, first_BD)
    _, indices_N, offsets_B1 = codes.ragged()  # latents that are chosen but 0 are not active
    support = Support(indices_N, offsets_B1, codes.width)
    refitted = least_squares(target_BD, W_FD, support, nonnegative=nonnegative)
    refitted_BD = target_BD - _decode(refitted, W_FD)
    silent = torch.from_numpy(np.flatnonzero(~alive_F)).to(W_FD.device)
    some = slice(None, None, max(1, len(train.wanted_BD) // REVIVERS))
    given_BD, wanted_BD = train.given_BD[some], train.wanted_BD[some]
    rows = 2 * len(target_BD) + len(wanted_BD) if len(silent) else len(target_BD)
    pursuit = _Pursuit(nonnegative, tell, rows)
    alone_BD = pursuit.leaves(target_BD, W_FD, codes)
    pursued_BD = revived_BD = _better(refitted_BD, alone_BD)
    if len(silent):
        spare_BD = wanted_BD - coder.without_codes(given_BD)
        left_BD = pursuit.leaves(spare_BD, W_FD, coder.encode(given_BD))
        revived_FD = _revived(W_FD, silent, left_BD, seed)
        revived_BD = _better(pursued_BD, pursuit.leaves(target_BD, revived_FD, codes))
    return {
        "encoder": target_BD - first_BD,
        "rescaled": target_BD - max(0.0, scale) * first_BD,
        "refitted": refitted_BD,
        "pursued": pursued_BD,
        "revived": revived_BD,
        ALONE: alone_BD,
    }


@dataclass
class _Pursuit:
    """Orthogonal matching pursuit of rows, with as many latents on each as the encoder gave it."""

    nonnegative: bool
    tell: Tell
    rows: int  # that will be pursued in all
    done: int = 0

    def leaves(self, target_BD: Tensor, W_FD: Tensor, codes: Codes) -> Tensor:
        """(B, D) what is left of each row; `codes` are the encoder's."""
        level_B, left_BD = _levels(codes), torch.empty_like(target_BD)
        for level in level_B.unique().tolist():
            for part in (level_B == level).nonzero()[:, 0].split(ROWS):
                found = orthogonal_matching_pursuit(
                    target_BD[part], W_FD, level, nonnegative=self.nonnegative
                )
                left_BD[part] = target_BD[part] - _decode(found, W_FD)
                self.done += len(part)
                self.tell(self.done, self.rows)
        return left_BD


def _levels(codes: Codes) -> Tensor:
    """(B,) latents that pursuit may take on each row: the encoder's L0 there, and at least one.

    Rows are put into `LEVELS` groups of like L0, each of which has its mean: pursuit is made of
    many rows at a time. Of a coder with the same L0 on every row, that is all of them.
    """
    l0_B = codes.l0().cpu().double()
    level_B = torch.ones(len(l0_B), dtype=torch.int64)
    for part in l0_B.argsort(stable=True).tensor_split(LEVELS):
        if len(part):
            level_B[part] = max(1, round(float(l0_B[part].mean())))
    return level_B


def _better(one_BD: Tensor, other_BD: Tensor) -> Tensor:
    """Of two errors of each row, the smaller."""
    return torch.where(
        (other_BD.square().sum(1) < one_BD.square().sum(1))[:, None], other_BD, one_BD
    )


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
