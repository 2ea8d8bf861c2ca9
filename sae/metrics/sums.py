"""Float64 sums over tokens, kept per document so that any metric gets a bootstrap interval.

A metric is always a function of global sums, never an average of ratios per batch. Because the
sums are kept per document (the *unit* of resampling), a bootstrap resample is one product of a
weight vector with the table, and all resamples together are one matrix product.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor


class DocumentSums:
    """Tables of sums, one row per unit: `table[term]` is (U, *shape).

    `add` takes one value per token (or a vector per token) and the unit of each.
    """

    def __init__(self, units: int) -> None:
        self.units = units
        self.table: dict[str, Tensor] = {}

    def add(self, unit_B: Tensor, **terms_B: Tensor) -> None:
        """Adds each term, (B,) or (B, n) of any float or integer type, to the rows `unit_B`."""
        unit_B = unit_B.cpu()
        for name, value in terms_B.items():
            value = value.detach().cpu().double()
            if name not in self.table:
                self.table[name] = torch.zeros(self.units, *value.shape[1:], dtype=torch.float64)
            self.table[name].index_add_(0, unit_B, value)

    def add_grouped(self, unit_B: Tensor, label_B: Tensor, groups: int, **terms_B: Tensor) -> None:
        """Adds each term (B,) to the column `label_B` of a table of `groups` columns."""
        cell_B = unit_B.cpu() * groups + label_B.cpu()
        for name, value in terms_B.items():
            if name not in self.table:
                self.table[name] = torch.zeros(self.units, groups, dtype=torch.float64)
            self.table[name].view(-1).index_add_(0, cell_B, value.detach().cpu().double())

    @property
    def filled(self) -> int:
        """Units that hold tokens: those that are resampled."""
        return int((self.table["count"] > 0).sum()) if "count" in self.table else 0

    def total(self, term: str) -> float:
        return float(self.table[term].sum()) if term in self.table else 0.0

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self.table.items()}

    def __add__(self, other: "DocumentSums") -> "DocumentSums":
        """The same terms over two disjoint sets of tokens of the same units."""
        merged = DocumentSums(self.units)
        for name in self.table.keys() | other.table.keys():
            parts = [s.table[name] for s in (self, other) if name in s.table]
            merged.table[name] = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        return merged

    def __or__(self, other: "DocumentSums") -> "DocumentSums":
        """Different terms over the same tokens."""
        merged = DocumentSums(self.units)
        merged.table = {**self.table, **other.table}
        return merged


class Sums(Mapping[str, np.ndarray]):
    """`sums[term]`: the weighted sum over units, (R,) or (R, n), for R weightings of the units."""

    def __init__(self, table: Mapping[str, np.ndarray], weights_RU: np.ndarray) -> None:
        self._table, self._weights = table, weights_RU
        self._found: dict[str, np.ndarray] = {}
        self._under: dict[str, Sums] = {}

    def under(self, prefix: str) -> "Sums":
        """The terms whose names begin with `prefix`, without it, under the same weightings."""
        if prefix not in self._under:
            table = {
                n.removeprefix(prefix): v for n, v in self._table.items() if n.startswith(prefix)
            }
            self._under[prefix] = Sums(table, self._weights)
        return self._under[prefix]

    def __getitem__(self, term: str) -> np.ndarray:
        if term not in self._found:
            table = self._table[term]
            self._found[term] = self._weights.astype(table.dtype, copy=False) @ table
        return self._found[term]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
