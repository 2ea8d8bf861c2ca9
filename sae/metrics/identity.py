"""Checks that a coder is what its folder says: of this site, in these units, with this decoder.

Weights at the wrong layer, weights saved in the units of training, and decoders of another coder
have all been published; each gives numbers that look like those of a poor coder. Here each has a
counterpart that must not do better than the coder as it is.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sae.base.devices import in_float64
from sae.coders import Coder, TwoSites
from sae.lm.sites import Site, parse_site
from sae.metrics.continuation import Replace
from sae.metrics.known_answers import SelfTest, score
from sae.metrics.other_decoder import OtherDecoder, shuffled
from sae.metrics.reconstruction import CoderLike
from sae.metrics.sample import Batch, Sample

if TYPE_CHECKING:
    from sae.lm import LanguageModel

WORTH_MORE_ELSEWHERE = 0.05  # share of the principal components that it is worth there
SPECTRUM_ROWS = 1024  # from which those are found
EV_IN_OTHER_UNITS = 0.1  # how much more may be explained in the units of training
FVU_IN_OTHER_UNITS = 0.1  # the share of it that a part in the units of training may save
SCALE_NEAR_1 = 2.0  # training scales by less than this factor either way: units hardly matter
PEAK = 0.03  # of the FVU: what a second step must cost, so that the first one ended at a peak
DENSER = 0.5  # of its EV: a code of more latents is no sign where the coder explains more
NOT_BETTER = 0.9  # of the squared error with shuffled rows: above, the rows are no better
RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")


@torch.inference_mode()
def identities(
    coder: Coder, lm: "LanguageModel", site: str, source: str, few: Sample
) -> list[SelfTest]:
    """The four checks, on the model's own activations of a few held-out sequences."""
    rows = _Rows(lm, few, {(source, site), *_elsewhere(coder, lm, source, site)})
    own = rows.batch(source, site)
    return [
        layer_identity(coder, rows, source, site),
        scale_identity(coder, own, few, source, site),
        fold_identity(coder, own, few, site),
        decoder_identity(coder, own),
    ]


class _Rows:
    """Scored rows of pairs of sites (read, predicted) in one pass of the model."""

    def __init__(self, lm: "LanguageModel", few: Sample, pairs: set[tuple[str, str]]) -> None:
        self.pairs = pairs
        scored_ST = torch.from_numpy(few.scored_ST)
        sites = sorted({site for pair in pairs for site in pair})
        found = lm.capture(torch.from_numpy(few.tokens_ST), sites)
        self._rows = {
            site: x_STD.float()[scored_ST.to(x_STD.device)] for site, x_STD in found.items()
        }

    def batch(self, source: str, site: str) -> Batch:
        x_BD = self._rows[site]
        unit_B = torch.zeros(len(x_BD), dtype=torch.int64)
        read_BD = None if source == site else self._rows[source]
        return Batch(x_BD, unit_B, torch.ones(len(x_BD), dtype=torch.bool), read_BD)


def layer_identity(coder: Coder, rows: _Rows, source: str, site: str) -> SelfTest:
    """How much more the coder is worth at another site of the same kind than at the claimed one.

    Sites differ in how much of x lies in a few directions, which a coder learns first wherever it
    is trained: one that was hardly trained has its best EV where that is most. So a coder is worth,
    at a site, as many principal components of that site as explain what it explains. One that
    explains nothing anywhere (EV below 0) proves nothing, and passes.
    """
    evs = {pair: _ev(coder, rows.batch(*pair)) for pair in sorted(rows.pairs)}
    worth = {pair: _components(ev, rows.batch(*pair).x_BD) for pair, ev in evs.items()}
    own = (source, site)
    best = max((pair for pair in worth if pair != own), key=lambda pair: worth[pair], default=own)
    more = 0.0 if worth[best] <= worth[own] else 1 - worth[own] / worth[best]
    sentence = f"a coder must explain most at the site that it claims, `{site}`"
    if more:
        sentence += (
            f"; its EV is {evs[own]:.3f} there, that of {worth[own]:.1f} principal components, and "
            f"{evs[best]:.3f} at `{best[1]}`, that of {worth[best]:.1f}"
        )
    return SelfTest("layer_identity", more, WORTH_MORE_ELSEWHERE, sentence)


def _components(ev: float, x_BD: Tensor) -> float:
    """How many principal components of these rows have this EV; between two, a share of the next.

    0 for an EV of 0 and below.
    """
    some_BD = in_float64(x_BD[:: max(1, len(x_BD) // SPECTRUM_ROWS)])
    power = torch.linalg.svdvals(some_BD - some_BD.mean(0)).square().cpu().numpy()
    explained = np.concatenate([[0.0], np.cumsum(power) / max(power.sum(), 1e-30)])
    return float(np.interp(ev, explained, np.arange(len(explained))))


def scale_identity(coder: Coder, own: Batch, few: Sample, source: str, site: str) -> SelfTest:
    """EV of the coder as it is, against EV in the units of training.

    Training scales x so that its variance is D. A coder that was saved without folding that in
    explains x only once it is scaled; a folded one explains it as it is. A coder that was hardly
    trained may explain more of larger x as well, because its thresholds then matter less; that its
    `b_dec` lies at the mean of x, not at the scaled one, shows that its units are right.
    """
    scale_in, scale_out = (_training_scale(few, s) for s in (source, site))

    def in_units_of_training(x_BD: Tensor) -> Tensor:
        return coder(x_BD * scale_in) / scale_out

    folded = _lies_at(coder.b_dec_D, own.x_BD.mean(0), scale_out)
    more = 0.0 if folded else max(0.0, _ev(in_units_of_training, own) - _ev(coder, own))
    return SelfTest(
        "scale_identity",
        more,
        EV_IN_OTHER_UNITS,
        "a coder must take activations as they are; this one explains more of them scaled by "
        f"{scale_in:.4g}, as in training, so that its weights were not folded",
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
        return cls(_ev(lambda _: x_hat_BD, batch), float(codes.l0().double().mean()))


def fold_identity(coder: Coder, own: Batch, few: Sample, site: str) -> SelfTest:
    """Share of FVU that thresholds, b_enc or both save times or divided by the scale of training.

    Folding divides both; who forgets one, or does it twice, has a coder whose other parts are
    right, `b_dec` among them. Not asked where that scale is near 1: who forgot it, lost little.
    """
    scale, as_is = _training_scale(few, site), _Code.of(coder, own)
    parts = (["thresholds"] if type(coder).scale_units is not Coder.scale_units else []) + (
        ["`b_enc`"] if bool(coder.b_enc_F.any()) else []
    )
    choices = {*((part,) for part in parts), tuple(parts)} - {()}
    signs = {}
    if not 1 / SCALE_NEAR_1 < scale < SCALE_NEAR_1:
        for changed, factor in product(sorted(choices), (scale, 1 / scale)):
            steps = (_rescaled(coder, changed, factor**power) for power in (1, 2))
            once, twice = (_Code.of(other, own) for other in steps)
            how = f"with its {' and '.join(changed)} times {factor:.4g}"
            signs[how] = _sign_of_units(as_is, once, twice)
    worst = max(signs, key=lambda how: signs[how], default="")
    return SelfTest(
        "fold_identity",
        signs.get(worst, 0.0),
        FVU_IN_OTHER_UNITS,
        f"all parts of a coder must be in the same units; this one explains more {worst}, which is "
        "the scale of training, so that a part of it was not folded, or was twice",
    )


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


def decoder_identity(coder: Coder, own: Batch) -> SelfTest:
    """Squared error with the coder's decoder, against none of it and against its rows shuffled.

    Directions that belong to the latents lower the error, or at least are better than others in
    their place; a decoder of another coder does neither.
    """
    without = OtherDecoder(coder, torch.zeros_like(coder.W_dec_FD))
    permuted = OtherDecoder(coder, shuffled(coder, 0))
    own_fvu, none, others = (1 - _ev(c, own) for c in (coder, without, permuted))
    return SelfTest(
        "decoder_identity",
        own_fvu / max(none, NOT_BETTER * others, 1e-30),
        1 + 1e-6,
        "a coder's decoder must belong to its encoder; this one reconstructs no better than with "
        "no latents and no better than with its rows shuffled",
    )


def _ev(coder: CoderLike | Replace, batch: Batch) -> float:
    return score(coder, [batch], batch.x_BD.mean(0))["ev"]


def _training_scale(few: Sample, site: str) -> float:
    stats = few.store.stats(site)
    return float((len(stats.mean_D) / max(stats.variance, 1e-30)) ** 0.5)


def _elsewhere(
    coder: Coder, lm: "LanguageModel", source: str, site: str
) -> Iterator[tuple[str, str]]:
    """Where else the coder could be of: all residual sites, the same point in other blocks, or,
    of a transcoder, both its sites moved by as many blocks.
    """
    read, wrote = parse_site(source), parse_site(site)
    if not isinstance(coder, TwoSites):
        yield from ((str(s), str(s)) for s in _of_a_kind(wrote, lm.n_layers))
        return
    for moved in range(-lm.n_layers, lm.n_layers + 1):
        layers = read.layer + moved, wrote.layer + moved
        if moved and all(0 <= layer < lm.n_layers for layer in layers):
            yield str(Site(layers[0], read.point)), str(Site(layers[1], wrote.point))


def _of_a_kind(site: Site, layers: int) -> Iterator[Site]:
    if site.point not in RESIDUAL:
        yield from (Site(layer, site.point) for layer in range(layers) if layer != site.layer)
        return
    every = [Site(0, "hook_resid_pre")]
    for layer in range(layers):
        every += [Site(layer, "hook_resid_mid"), Site(layer, "hook_resid_post")]
    before = Site(site.layer - 1, "hook_resid_post")  # the same place as this block's resid_pre
    same = before if site.point == "hook_resid_pre" and site.layer else site
    yield from (other for other in every if other != same)
