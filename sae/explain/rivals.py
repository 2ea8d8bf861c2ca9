"""Where a feature's neighbours fire strongly: the hard negatives of its labels and tests."""

import numpy as np

from sae.features.contexts import strong_rows
from sae.features.index import FeatureIndex
from sae.features.labels import FIRES_SHARE, RIVALS


def strong_firings(index: FeatureIndex, feature: int) -> np.ndarray:
    """Rows, ascending, at which it fires with `FIRES_SHARE` of its maximum."""
    largest = float(index.table["max"].iloc[feature])
    return strong_rows(*index.slices(feature), FIRES_SHARE * largest)


def rivals_of(index: FeatureIndex, feature: int) -> list[np.ndarray]:
    """`strong_firings` of each of the `RIVALS` nearest features by decoder cosine."""
    near = index.neighbours(feature, "decoder", RIVALS)
    return [strong_firings(index, one.feature) for one in near]
