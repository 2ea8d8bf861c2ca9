"""Data with a known dictionary at two sites, to measure whether a transcoder finds the truth.

The features of a row x = Σ_i a_i d_i (`sae.synthetic`) write other directions to another site,

    y = Σ_i a_i e_i + offset,

so that a latent of a transcoder that has found feature i reads d_i and writes e_i. No linear map
gives y from x where there are more features than dimensions. But with a skip connection, y − L x =
Σ_i a_i (e_i − L d_i) holds for every map L: what is left for the latents to write depends on it.

In superposition and without noise, the best reader of a feature is not d_i but what tells it from
the others, which may point elsewhere (of 24 directions in 16 dimensions, the best linear readers
have a cosine of 0.57 with their own, no more than random ones); with `noise`, it comes near d_i.

    truth = TwoSiteTruth(Recipe(d=64, features=256), d_out=48)
    stream = TwoSiteStream(truth, batch=1024)       # batches of {SITE: x_BD, TARGET: y_BD}
    CoderTrainer(..., SITE, stream.stats(), ..., target=(TARGET, stream.stats(site=TARGET)))

Batch i is the same pure function as that of a `SyntheticStream`. Without torch.
"""

from copy import copy
from typing import Self

import numpy as np
import numpy.typing as npt

from sae.base.errors import UserError
from sae.synthetic import SITE, Floats, Recipe, Sample, SyntheticStream, SyntheticTruth, unit_rows

TARGET = "synthetic_target"


class TwoSiteTruth(SyntheticTruth):
    """A truth whose features also have `target_nD`, unit rows of width `d_out`.

    The target's offset has the norm of the input's, `recipe.offset`.
    """

    def __init__(self, recipe: Recipe, d_out: int) -> None:
        if d_out < 1:
            raise UserError(f"`d_out` is {d_out}; the second site needs at least one dimension.")
        super().__init__(recipe)
        rng = np.random.default_rng([recipe.seed, 2])
        self.target_nD = unit_rows(rng, recipe.features, d_out)
        self.target_offset_D = recipe.offset * unit_rows(rng, 1, d_out)[0]

    def beside(self, W_skip_OD: npt.NDArray[np.floating]) -> Self:
        """The truth for the latents beside a skip connection: they write e_i − W_skip d_i."""
        truth = copy(self)
        left_nD = self.target_nD - self.dictionary_nD @ W_skip_OD.T
        norms_n1 = np.linalg.norm(left_nD, axis=1, keepdims=True)
        truth.target_nD = left_nD / np.where(norms_n1 > 0, norms_n1, 1.0)
        return truth

    def target_of(self, sample: Sample) -> Floats:
        """y_BD, the second site's rows of a sample."""
        y_BD = sample.acts @ self.target_nD.astype(np.float32)
        return y_BD + self.target_offset_D.astype(np.float32)


class TwoSiteStream(SyntheticStream):
    """Batches of both sites, the same rows in each."""

    def __init__(self, truth: TwoSiteTruth, batch: int, seed: int = 0) -> None:
        super().__init__(truth, batch, seed, SITE)
        self.both = truth

    def rows(self, number: int) -> dict[str, np.ndarray]:
        sample = self.sample(number)
        return {self.site: sample.x_BD, TARGET: self.both.target_of(sample)}
