"""Induction features: latents that fire where a random sequence repeats, and what they do.

Olsson et al. 2022, "In-context Learning and Induction Heads": in a random sequence shown twice,
nothing but a look at the first occurrence tells what comes next in the second. A latent belongs to
this mechanism if it fires more at the second occurrence of the same tokens than at the first, and
more than at the same positions where what came before was something else (else every latent that
knows the position would pass); whether the model needs it is seen by taking it out and measuring
the loss of copying. Thousands of latents are tested, and some pass by chance: how many, the same
search says where nothing repeats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.coders import Coder
from sae.metrics.bootstrap import LEVEL, draws
from sae.metrics.copying import RUNS, CopyingBench, Floats, Repeats
from sae.metrics.estimate import INTERVAL
from sae.metrics.scoring import Progress
from sae.metrics.steps import counted, silent

if TYPE_CHECKING:
    from sae.lm import LanguageModel

SCHEMA = 2
COUNTS = (1, 4, 16, 64, 256)  # features that are taken out together; and all that were found
SHOWN = 64  # features that are described one by one
SEARCHED = 0.75  # share of the sequences in which features are looked for; the rest are the test
Half = Literal["first", "second"]


@dataclass(frozen=True)
class Acts:
    """Mean activation of each latent in every sequence; share of positions at which it fires."""

    mean_SF: Floats
    density_F: Floats


@dataclass(frozen=True)
class Induction:
    """Of every latent (F,): mean activation at the second occurrence less that at the first
    (`value`), less that in other sequences at the same positions (`over_other`), the lower ends of
    their intervals, and the share of positions at which it fires.
    """

    value_F: Floats
    low_F: Floats
    high_F: Floats
    over_other_F: Floats
    over_other_low_F: Floats
    density_first_F: Floats
    density_second_F: Floats

    @classmethod
    def of(cls, first: Acts, second: Acts, other: Acts, seed: int) -> "Induction":
        value_F, low_F, high_F = _mean_interval(second.mean_SF - first.mean_SF, seed)
        over_F, over_low_F, _ = _mean_interval(second.mean_SF - other.mean_SF, seed)
        densities = first.density_F, second.density_F
        return cls(value_F, low_F, high_F, over_F, over_low_F, *densities)

    @property
    def found_F(self) -> npt.NDArray[np.bool_]:
        return (self.low_F > 0) & (self.over_other_low_F > 0)

    def describe(self, latent: int) -> dict[str, int | float]:
        return {
            "latent": latent,
            "difference": float(self.value_F[latent]),
            "low": float(self.low_F[latent]),
            "high": float(self.high_F[latent]),
            "over_other": float(self.over_other_F[latent]),
            "density_first": float(self.density_first_F[latent]),
            "density_second": float(self.density_second_F[latent]),
        }


def induction_report(
    coder: Coder,
    lm: "LanguageModel",
    *,
    sequences: int = 64,
    length: int | None = None,
    counts: Sequence[int] = COUNTS,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Finds induction features on most of the sequences and takes them out on the others.

    A latent that writes one token fires once where that token is copied, so that the more
    sequences are searched, the more features are found.

    JSON: losses in nats per token, intervals from resampled sequences; `docs/metrics.md` has the
    keys. `length` defaults to the longest that fits the context twice. Raises `UserError` for a
    transcoder, whose latents do not write where they read, and unless the model is in float32.
    """
    site = coder.site
    if site is None or coder.target_site != site:
        raise UserError(
            "Induction features are taken out of the site that they are read from; this coder "
            f"reads `{site}` and writes `{coder.target_site}`."
        )
    if sequences < 4:
        raise UserError(f"`sequences` is {sequences}; induction is measured on at least 4.")
    length = length or (lm.context - 1) // 2
    searched = int(SEARCHED * sequences)
    found = Repeats.draw(lm, searched, length, seed)
    tested = Repeats.draw(lm, max(2, sequences - searched), length, seed + 1)
    latents, chance = find(coder, lm, site, found, seed, partial(progress, "search"))
    features = ranked(coder, latents)
    sizes = sorted({min(count, len(features)) for count in (*counts, len(features))} - {0})
    density_F = latents.density_second_F
    pool = np.flatnonzero((density_F > 0) & ~latents.found_F)
    step = counted(partial(progress, "ablations"), 1 + len(sizes) * RUNS)
    bench = CopyingBench(coder, lm, site, tested, seed, step)
    return {
        "schema": SCHEMA,
        "site": site,
        "length": length,
        "sequences": {"found_on": len(found.tokens_ST), "tested_on": len(tested.tokens_ST)},
        "tokens": tested.predictions,
        "interval": {**INTERVAL, "over": "sequences"},
        "clean": bench.clean(),
        "found": len(features),
        "found_by_chance": int(chance.found_F.sum()),
        "features": [latents.describe(int(i)) for i in features[:SHOWN]],
        "ablations": [bench.ablate(features[:size], density_F, pool) for size in sizes],
    }


def find(
    coder: Coder,
    lm: "LanguageModel",
    site: str,
    repeats: Repeats,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[Induction, Induction]:
    """Compares every latent at the second occurrence with the first, and with other sequences;
    and, with other sequences in the place of the second occurrence, what passes by chance.
    """
    halves: tuple[tuple[Tensor, Half], ...] = (
        (repeats.tokens_ST, "first"),
        (repeats.tokens_ST, "second"),
        (repeats.other_ST, "second"),
        (repeats.another_ST, "second"),
    )
    step, acts = counted(tell, len(halves)), []
    for tokens_ST, half in halves:
        acts.append(activations(coder, lm, site, repeats, tokens_ST, half))
        step()
    first, second, other, another = acts
    return Induction.of(first, second, other, seed), Induction.of(first, another, other, seed)


def ranked(coder: Coder, latents: Induction) -> npt.NDArray[np.int64]:
    """The latents that were found; first the one that adds most to the stream where it repeats."""
    strength_F = latents.value_F * coder.W_dec_FD.norm(dim=1).cpu().double().numpy()
    found = np.flatnonzero(latents.found_F)
    return found[np.argsort(-strength_F[found], kind="stable")]


@torch.inference_mode()
def activations(
    coder: Coder,
    lm: "LanguageModel",
    site: str,
    repeats: Repeats,
    tokens_ST: Tensor,
    half: Half,
) -> Acts:
    """Of one half of each sequence."""
    part = repeats.first if half == "first" else repeats.second
    places = part.stop - part.start
    means, fired_F = [], np.zeros(coder.d_sae)
    for some_ST in tokens_ST.split(repeats.at_once):
        x_STD = lm.capture(some_ST, [site])[site].float()
        rows_BD = x_STD[:, part].flatten(0, 1)
        acts_N, latent_N, offsets_B1 = (t.cpu() for t in coder.encode(rows_BD).ragged())
        sequence_N = torch.repeat_interleave(offsets_B1.diff()) // places
        cell_N = (sequence_N * coder.d_sae + latent_N).numpy()
        cells = len(some_ST) * coder.d_sae
        sums = np.bincount(cell_N, acts_N.double().numpy(), cells)
        means.append(sums.reshape(len(some_ST), -1) / places)
        fired_F += np.bincount(latent_N.numpy(), minlength=coder.d_sae)
    return Acts(np.concatenate(means), fired_F / (places * len(tokens_ST)))


def _mean_interval(values_SF: Floats, seed: int) -> tuple[Floats, Floats, Floats]:
    """(mean, low, high), each (F,), over resampled sequences."""
    means_RF = draws(len(values_SF), seed) @ values_SF / len(values_SF)
    tail = (1 - LEVEL) / 2
    low_F, high_F = np.quantile(means_RF, [tail, 1 - tail], axis=0)
    return values_SF.mean(0), low_F, high_F
