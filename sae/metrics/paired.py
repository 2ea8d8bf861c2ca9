"""Numbers that remember what they were computed from, so that two are compared on the same text."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from sae.metrics.bootstrap import Entry
from sae.metrics.estimate import estimate
from sae.metrics.sums import Sums

Floats = npt.NDArray[np.floating]


class PairedEntry(Entry):
    """The entry of `estimate`, which can be set against another of the same units.

    Once it has been written to JSON and read again, it is an entry like any other.
    """

    def __init__(
        self,
        compute: Callable[[Sums], np.ndarray],
        table: Mapping[str, Floats],
        tokens: int,
        seed: int = 0,
    ) -> None:
        super().__init__(estimate(compute, table, tokens, seed))
        self._compute, self._table = compute, dict(table)
        self._tokens, self._seed = tokens, seed

    def over(self, other: "PairedEntry") -> Entry | None:
        """How much larger this is than the other, both computed on the same resamples.

        The caller knows that they rest on the same examples; None where the units differ.
        """
        if len(self._first) != len(other._first):
            return None
        both = {
            f"{side} {name}": values
            for side, entry in (("own", self), ("other", other))
            for name, values in entry._table.items()
        }
        if "count" in self._table:
            both["count"] = self._table["count"]

        def difference(s: Sums) -> np.ndarray:
            return self._compute(s.under("own ")) - other._compute(s.under("other "))

        return estimate(difference, both, self._tokens, self._seed)

    @property
    def _first(self) -> Floats:
        return next(iter(self._table.values()))


def paired_ratio(above_U: Floats, below_U: Floats, tokens: int, seed: int = 0) -> PairedEntry:
    """Σ above / Σ below; None where the denominator is empty."""
    table = {"above": above_U, "below": below_U}
    return PairedEntry(lambda s: s["above"] / s["below"], table, tokens, seed)
