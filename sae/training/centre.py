"""Where b_dec starts: at the mean of the data, or at its geometric median.

The geometric median is the point whose mean distance (not squared distance) to the rows is least,

    argmin_y  E ‖x − y‖,

so that rows far off pull no harder than rows near by. Bricken et al. 2023, "Towards
Monosemanticity", start there. Unlike the mean it is no running sum, so it is taken of a sample.
Without torch.
"""

from contextlib import closing
from typing import Literal

import numpy as np
import numpy.typing as npt

from sae.store.shuffled import BatchSource

Centre = Literal["mean", "geometric_median"]
Floats = npt.NDArray[np.float64]
SAMPLE = 16_384  # rows: a median of so many is off by a hundredth of the data's spread
BLOCK = 4096  # rows in float64 at a time
TOLERANCE = 1e-9  # length of the last step, in mean distances
MOST_STEPS = 1000


def first_rows(source: BatchSource, site: str, count: int = SAMPLE) -> npt.NDArray[np.floating]:
    """(count, D): the rows of the first batches of `source`, which are shuffled already."""
    parts, have = [], 0
    with closing(source.batches()) as batches:
        while have < count:
            parts.append(next(batches)[site])
            have += len(parts[-1])
    return np.concatenate(parts)[:count]


def geometric_median(rows_ND: npt.NDArray[np.floating]) -> Floats:
    """(D,) of at least one row of any floating dtype.

    Weiszfeld's algorithm (1937): from the mean on, each step goes to the average of the rows
    weighted by 1 / distance. Where it comes to lie on rows, the step of Vardi & Zhang 2000, "The
    multivariate L1-median and associated data depth", leads on, or tells that this is the median.
    """
    y_D = rows_ND.mean(axis=0, dtype=np.float64)
    for _ in range(MOST_STEPS):
        step_D, mean_distance = _step(rows_ND, y_D)
        y_D = y_D + step_D
        if np.linalg.norm(step_D) <= TOLERANCE * mean_distance:
            break
    return y_D


def _step(rows_ND: npt.NDArray[np.floating], y_D: Floats) -> tuple[Floats, float]:
    """The step from y, and the mean distance of the rows to y."""
    pull_D, weight, lying_there, distance = np.zeros(len(y_D)), 0.0, 0, 0.0
    for start in range(0, len(rows_ND), BLOCK):
        away_BD = rows_ND[start : start + BLOCK].astype(np.float64) - y_D
        distance_B = np.linalg.norm(away_BD, axis=1)
        elsewhere_B = distance_B > 0
        nearness_B = 1 / distance_B[elsewhere_B]
        pull_D += nearness_B @ away_BD[elsewhere_B]
        weight += nearness_B.sum()
        lying_there += int((~elsewhere_B).sum())
        distance += distance_B.sum()
    strength = float(np.linalg.norm(pull_D))
    if strength <= lying_there:  # the rows at y hold it against the pull of all others
        return np.zeros_like(y_D), distance / len(rows_ND)
    return (1 - lying_there / strength) * pull_D / weight, distance / len(rows_ND)
