"""Checks that all parts of a coder are in the units of x.

Training scales x so that its variance is D; a finished coder has that folded into its weights.
Where it was not, or not into all of them, or twice, or where another tool's factor was lost, the
numbers look like those of a poor coder.
"""

import copy
import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from sae.base.devices import in_float64
from sae.coders import Coder
from sae.metrics.known_answers import SelfTest, explained
from sae.metrics.sample import Batch, Sample

EV_IN_OTHER_UNITS = 0.1  # how much more may be explained in the units of training
FVU_IN_OTHER_UNITS = 0.1  # the share of it that a part in the units of training may save
SCALE_IS_1 = 1.1  # training scales by less than this factor either way: the units are the same
SCALE_NEAR_1 = 2.0  # by less than this: what has thresholds hardly notices
PEAK = 0.03  # of the FVU: what a second step must cost, so that the first one ended at a peak
DENSER = 0.5  # of its EV: a code of more latents is no sign where the coder explains more
TOO_SHORT = 3.0  # the factor that codes want: no penalty shrinks so much, and explains anything
TOO_LONG = 0.5  # below, the latents raise the error instead of lowering it
ALONE = 0.8  # below, each of them is too long by itself: untrained it is 1, trained it is more
HOLDS_SOMETHING = 0.1  # share of x that the codes explain once they are scaled: else it is no unit


@torch.inference_mode()
def units(coder: Coder, own: Batch, few: Sample, source: str, site: str) -> list[SelfTest]:
    """The three checks on the activations `own`, of the few sequences at the coder's sites."""
    return [
        scale_identity(coder, own, few, source, site),
        fold_identity(coder, own, few, site),
        decoder_scale(coder, own),
    ]


def scale_identity(coder: Coder, own: Batch, few: Sample, source: str, site: str) -> SelfTest:
    """EV of the coder as it is, against EV in the units of training.

    A coder that was saved without folding the scale of training in explains x only once it is
    scaled; a folded one explains it as it is. A coder that was hardly trained may explain more of
    larger x as well, because its thresholds then matter less; where its `b_dec` lies at the mean
    of x, not at the scaled one, its units are right, and what is explained says nothing of them.
    """
    scale_in, scale_out = (_training_scale(few, s) for s in (source, site))

    def in_units_of_training(x_BD: Tensor) -> Tensor:
        return coder(x_BD * scale_in) / scale_out

    more: float | None = max(0.0, explained(in_units_of_training, own) - explained(coder, own))
    note = None
    if all(abs(math.log(scale)) < math.log(SCALE_IS_1) for scale in (scale_in, scale_out)):
        more, note = None, f"training scales these activations by {scale_out:.4g}: hardly at all"
    elif more > EV_IN_OTHER_UNITS and _lies_at(coder.b_dec_D, own.x_BD.mean(0), scale_out):
        more, note = (
            None,
            (
                f"it explains {more:.3f} more of activations scaled by {scale_in:.4g}, but its "
                "`b_dec` lies at their mean as they are: thresholds that are too high, not units"
            ),
        )
    return SelfTest(
        "scale_identity",
        more,
        EV_IN_OTHER_UNITS,
        "a coder must take activations as they are; this one explains more of them scaled by "
        f"{scale_in:.4g}, as in training, so that its weights were not folded",
        note,
    )


def _lies_at(b_D: Tensor, mean_D: Tensor, scale: float) -> bool:
    """Whether a bias's part along the mean of x is nearer to that mean than to the scaled one.

    Nearer by ratio, since the two differ by a factor; across the mean, a short training leaves
    noise that says nothing about units. A bias of zero is near to neither.
    """
    share = float(b_D @ mean_D) / max(float(mean_D @ mean_D), 1e-30)
    return share > 0 and abs(math.log(share)) < abs(math.log(scale)) / 2


@dataclass(frozen=True)
class _Code:
    """What a coder makes of a batch: EV, mean active latents."""

    ev: float
    l0: float

    @classmethod
    def of(cls, coder: Coder, batch: Batch) -> "_Code":
        codes = coder.encode(batch.given_BD)
        x_hat_BD = coder.decode(codes, batch.given_BD)
        return cls(explained(lambda _: x_hat_BD, batch), float(codes.l0().double().mean()))


def fold_identity(coder: Coder, own: Batch, few: Sample, site: str) -> SelfTest:
    """Share of FVU that thresholds, b_enc or both save times or divided by the scale of training.

    Folding divides both; who forgets one, or does it twice, has a coder whose other parts are
    right, `b_dec` among them. Not asked where that scale is near 1: who forgot it, lost little.
    """
    scale = _training_scale(few, site)
    parts = (["thresholds"] if type(coder).scale_units is not Coder.scale_units else []) + (
        ["`b_enc`"] if bool(coder.b_enc_F.any()) else []
    )
    note = "the coder has neither thresholds nor `b_enc`" if not parts else None
    if 1 / SCALE_NEAR_1 < scale < SCALE_NEAR_1:
        note = f"training scales these activations by {scale:.4g}, which hardly moves a threshold"
    signs = {} if note else _signs_of_units(coder, own, parts, scale)
    worst = max(signs, key=lambda how: signs[how], default="")
    return SelfTest(
        "fold_identity",
        signs.get(worst),
        FVU_IN_OTHER_UNITS,
        f"all parts of a coder must be in the same units; this one explains more {worst}, which is "
        "the scale of training, so that a part of it was not folded, or was twice",
        note,
    )


def _signs_of_units(coder: Coder, own: Batch, parts: list[str], scale: float) -> dict[str, float]:
    """By how it was changed, the share of FVU that the change saves."""
    as_is, signs = _Code.of(coder, own), {}
    choices = {*((part,) for part in parts), tuple(parts)}
    for changed, factor in product(sorted(choices), (scale, 1 / scale)):
        steps = (_rescaled(coder, changed, factor**power) for power in (1, 2))
        once, twice = (_Code.of(other, own) for other in steps)
        how = f"with its {' and '.join(changed)} times {factor:.4g}"
        signs[how] = _sign_of_units(as_is, once, twice)
    return signs


def _sign_of_units(as_is: _Code, once: _Code, twice: _Code) -> float:
    """The share of FVU that the step saves, if it ends at a peak.

    Coders that were hardly trained, or that a penalty made too sparse, explain more the lower
    their thresholds are, and as much by a second step. And a code of more latents is no wonder
    if it explains more: what was not folded explains next to nothing as it is.
    """
    if once.ev - twice.ev < PEAK * (1 - once.ev):
        return 0.0
    if once.l0 > as_is.l0 and as_is.ev > DENSER * once.ev:
        return 0.0
    return max(0.0, (once.ev - as_is.ev) / (1 - as_is.ev))


def _rescaled(coder: Coder, parts: tuple[str, ...], factor: float) -> Coder:
    """A copy of the coder in which these parts, and nothing else, are in other units."""
    wide = (coder.W_enc_FD, coder.W_dec_FD)  # shared: no copies of wide matrices
    other = copy.deepcopy(coder, {id(weight): weight for weight in wide})
    if "thresholds" in parts:
        other.scale_units(factor)
    if "`b_enc`" in parts:
        with torch.no_grad():
            other.b_enc_F.mul_(factor)
    return other


@dataclass(frozen=True)
class _Written:
    """w = Σ_i f_i d_i, what the codes write, beside y = x − x̂ + w, what they should: sums."""

    square: float  # ‖w‖²
    apart: float  # Σ_i f_i² ‖d_i‖², which is ‖w‖² where no two latents overlap
    wanted: float  # ‖y‖²
    agreed: float  # w·y

    @classmethod
    def of(cls, coder: Coder, batch: Batch) -> "_Written":
        codes = coder.encode(batch.given_BD)
        empty_BD = coder.without_codes(batch.given_BD)
        w_BD = in_float64(coder.decode(codes, batch.given_BD) - empty_BD)
        y_BD = in_float64(batch.x_BD - empty_BD)
        each_N = codes.acts_N * coder.W_dec_FD.norm(dim=1)[codes.support.indices_N]
        square, apart, wanted = (float(t.square().sum()) for t in (w_BD, in_float64(each_N), y_BD))
        return cls(square, apart, wanted, float((w_BD * y_BD).sum()))


def decoder_scale(coder: Coder, own: Batch) -> SelfTest:
    """Share of the squared error that one factor on all codes saves, where it can only be a unit.

    That factor is c = Σ w·y / Σ ‖w‖². With a decoder in other units it is the factor that was
    forgotten, of any tool. Two things that are no units move it as well: a penalty shrinks codes,
    but hardly to a third before it leaves none; and latents of a coder that was hardly trained, or
    has too many active ones, write the same again and again, where each alone is not too long:
    Σ w·y / Σ f_i² ‖d_i‖² is then about 1.
    """
    found = _Written.of(coder, own)
    if not found.square or not found.apart:
        return SelfTest("decoder_scale", None, FVU_IN_OTHER_UNITS, "", "no latent fires here")
    factor, alone = found.agreed / found.square, found.agreed / found.apart
    too_short, too_long = factor > TOO_SHORT, factor < TOO_LONG and alone < ALONE
    holds = found.agreed * factor / max(found.wanted, 1e-30)
    saved = 0.0
    if found.agreed > 0 and holds > HOLDS_SOMETHING and (too_short or too_long):
        error = found.wanted - 2 * found.agreed + found.square
        saved = (1 - factor) ** 2 * found.square / error
    return SelfTest(
        "decoder_scale",
        saved,
        FVU_IN_OTHER_UNITS,
        "a decoder must write in the units of x; this one's latents explain more with all that "
        f"they write times {factor:.4g}",
    )


def _training_scale(few: Sample, site: str) -> float:
    stats = few.store.stats(site)
    return float((len(stats.mean_D) / max(stats.variance, 1e-30)) ** 0.5)
