"""Checks that a coder is what its folder says: of this site, in these units, with this decoder.

Weights at the wrong layer, weights saved in the units of training, and decoders of another coder
have all been published; each gives numbers that look like those of a poor coder. Here each has a
counterpart that must not do better than the coder as it is. Those of units: `sae/metrics/units.py`.
"""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sae.base.devices import in_float64
from sae.coders import Coder, TwoSites
from sae.lm.sites import POINTS, Site, parse_site
from sae.metrics.known_answers import SelfTest, explained
from sae.metrics.other_decoder import OtherDecoder, shuffled
from sae.metrics.sample import Batch, Sample
from sae.metrics.units import units

if TYPE_CHECKING:
    from sae.lm import LanguageModel

WORTH_MORE_ELSEWHERE = 0.05  # share of the principal components that it is worth there
FVU_BESIDE = 0.5  # of the FVU here: what it must leave less than at a site of another kind
SPECTRUM_ROWS = 1024  # from which those are found
NOT_BETTER = 0.9  # of the squared error with shuffled rows: above, the rows are no better
RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")


@torch.inference_mode()
def identities(
    coder: Coder, lm: "LanguageModel", site: str, source: str, few: Sample
) -> list[SelfTest]:
    """The checks of the coder, on the model's own activations of a few held-out sequences."""
    beside = set(_beside(coder, lm, site))
    rows = _Rows(lm, few, {(source, site), *_elsewhere(coder, lm, source, site), *beside})
    own = rows.batch(source, site)
    return [
        layer_identity(coder, rows, source, site, beside),
        *units(coder, own, few, source, site),
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


def layer_identity(
    coder: Coder, rows: _Rows, source: str, site: str, beside: AbstractSet[tuple[str, str]]
) -> SelfTest:
    """How much more the coder is worth at another site than at the claimed one.

    Sites differ in how much of x lies in a few directions, which a coder learns first wherever it
    is trained: one that was hardly trained has its best EV where that is most. So a coder is worth,
    at a site, as many principal components of that site as explain what it explains. Those
    `beside` it are of another kind, where variance is spread otherwise altogether: there it must
    leave less than half of the FVU as well. One that explains nothing anywhere (EV below 0) is not
    asked.
    """
    own = (source, site)
    evs = {pair: explained(coder, rows.batch(*pair)) for pair in sorted(rows.pairs)}
    enough = 1 - FVU_BESIDE * (1 - evs[own])
    rivals = [p for p in evs if p != own and (p not in beside or evs[p] > enough)]
    worth = {pair: _components(evs[pair], rows.batch(*pair).x_BD) for pair in [own, *rivals]}
    best = max(worth, key=lambda pair: worth[pair])
    more: float | None = 1 - worth[own] / worth[best] if worth[best] > worth[own] else 0.0
    sentence, note = f"a coder must explain most at the site that it claims, `{site}`", None
    if more:
        sentence += (
            f"; its EV is {evs[own]:.3f} there, that of {worth[own]:.1f} principal components, and "
            f"{evs[best]:.3f} at `{best[1]}`, that of {worth[best]:.1f}"
        )
    if len(evs) == 1:
        more, note = None, "the model has no other site that this coder could be of"
    elif max(evs.values()) <= 0:
        more, note = None, "the coder explains nothing at any site (no EV above 0)"
    return SelfTest("layer_identity", more, WORTH_MORE_ELSEWHERE, sentence, note)


def _components(ev: float, x_BD: Tensor) -> float:
    """How many principal components of these rows have this EV; between two, a share of the next.

    0 for an EV of 0 and below.
    """
    if ev <= 0:
        return 0.0
    some_BD = in_float64(x_BD[:: max(1, len(x_BD) // SPECTRUM_ROWS)])
    power = torch.linalg.svdvals(some_BD - some_BD.mean(0)).square().cpu().numpy()
    explained = np.concatenate([[0.0], np.cumsum(power) / max(power.sum(), 1e-30)])
    return float(np.interp(ev, explained, np.arange(len(explained))))


def decoder_identity(coder: Coder, own: Batch) -> SelfTest:
    """Squared error with the coder's decoder, against none of it and against its rows shuffled.

    Directions that belong to the latents lower the error, or at least are better than others in
    their place; a decoder of another coder does neither. The latter alone, as in a coder that was
    hardly trained, is a pass with a warning: no latent at all would be a better coder.
    """
    without = OtherDecoder(coder, torch.zeros_like(coder.W_dec_FD))
    permuted = OtherDecoder(coder, shuffled(coder, 0))
    own_fvu, none, others = (1 - explained(c, own) for c in (coder, without, permuted))
    value: float | None = own_fvu / max(none, NOT_BETTER * others, 1e-30)
    note = None
    if not bool((coder.encode(own.given_BD).acts_N != 0).any()):
        value, note = None, "no latent fires here"
    elif own_fvu > none:
        note = (
            "this coder is worse than its bias alone, with no latents at all: "
            f"FVU {own_fvu:.4g} against {none:.4g}"
        )
    return SelfTest(
        "decoder_identity",
        value,
        1 + 1e-6,
        "a coder's decoder must belong to its encoder; this one reconstructs no better than with "
        "no latents and no better than with its rows shuffled",
        note,
    )


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


def _beside(coder: Coder, lm: "LanguageModel", site: str) -> Iterator[tuple[str, str]]:
    """The other points of the same block that are as wide, and of another kind; of a coder that
    reads what it predicts: what a transcoder reads, resembles all that comes after it.
    """
    own = parse_site(site)
    for point in POINTS if not isinstance(coder, TwoSites) else ():
        other = str(Site(own.layer, point))
        alike = point == own.point or {point, own.point} <= set(RESIDUAL)
        if not alike and lm.site_width(other) == lm.site_width(site):
            yield other, other


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
