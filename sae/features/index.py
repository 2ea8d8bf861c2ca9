"""The feature index: which tokens fire each feature, answered by slices of memory-mapped files.

Numpy, pandas and pyarrow only: opening and reading an index never imports torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from sae.base.errors import UserError
from sae.base.files import read_json_object
from sae.base.foreign import read_npy, read_npz, reading
from sae.base.sums import require_intact
from sae.features import enrichment, forms, layout
from sae.features.indexed_text import IndexedText
from sae.features.tables import read_table
from sae.features.windows import Example, Window

if TYPE_CHECKING:
    from sae.features.notes import Notes

AGAIN = "make the index again"
NeighbourKind = Literal["decoder", "encoder", "coactivation"]


class Neighbour(NamedTuple):
    """A related feature; `value` is a cosine, or for co-activation the Jaccard index of rows."""

    feature: int
    value: float


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` values lie in [edges[i], edges[i + 1]); the last bin holds its upper edge too."""

    edges: np.ndarray
    counts: np.ndarray


class FeatureIndex(IndexedText):
    """An index on disk; see `docs/formats.md`. Rows are the index's own: row = seq * T + pos.

    Attributes:
        folder: where it lies.
        meta: `index.json`.
        table: one row per feature (`features.parquet`), in the order of their ids; the automatic
            labels as they were built (`view` lays the user's own over them).
        vocabulary: the bytes of every token.
        tokens_ST: (S, T) memory-mapped token ids.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]):
        super().__init__(folder)
        self.meta = meta
        self.indptr = read_npy(folder / layout.INDPTR)
        self.rows = read_npy(folder / layout.ROWS, mapped=True)
        self.acts = read_npy(folder / layout.ACTS, mapped=True)
        with reading(folder, AGAIN):
            forms.require_firings(self.indptr, self.rows, self.acts, self.tokens_ST.size)
        self.table = read_table(folder / layout.FEATURES, self.width)
        with reading(folder / layout.FEATURES, AGAIN):
            forms.require_table(self.table, self.width, len(self.vocabulary))

    @classmethod
    def open(cls, folder: Path | str, *, scorecard: bool = True) -> "FeatureIndex":
        """Opens the index in `folder`; without `scorecard`, that file may be damaged.

        Raises:
            UserError: there is none, or one of another schema, or a file is not what was written.
                All files are read for that, once: what is mapped later is not looked at again.
        """
        folder = Path(folder)
        if not (folder / layout.META).is_file():
            raise UserError(
                f"{folder} is not a feature index (it has no {layout.META}); make one with "
                "`sae index`."
            )
        meta = read_json_object(folder / layout.META)
        if meta.get("schema") != layout.SCHEMA:
            raise UserError(
                f"{folder} is a feature index of schema {meta.get('schema')}, this version of "
                f"Loupe reads {layout.SCHEMA}; build it again with `sae index`."
            )
        missing = [name for name in layout.FILES if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder} lacks {', '.join(missing)}; build it again with `sae index`."
            )
        own = (layout.META, *layout.FILES)
        require_intact(folder, (*own, layout.SCORECARD) if scorecard else own)
        with reading(folder / layout.META, AGAIN):
            forms.require_meta(meta)
        return cls(folder, meta)

    @property
    def width(self) -> int:
        """F."""
        return len(self.indptr) - 1

    @cached_property
    def notes(self) -> "Notes":
        """The user's labels, stars and tags (`notes.sqlite3`; made on the first write)."""
        from sae.features.notes import Notes

        return Notes(self.folder / layout.NOTES, self.meta["coder_hash"], width=self.width)

    def labels(self) -> pd.Series:
        """Label of every feature: the user's where there is one, else the automatic one."""
        return _replaced(self.table.loc[:, "label"], self.notes.labels())

    def view(self) -> pd.DataFrame:
        """`table` with the user's labels laid over (`label_kind` "user"), and `star`, `tags`."""
        own, stars, tags = self.notes.labels(), self.notes.stars(), self.notes.tags()
        columns = {"label": own, "label_kind": dict.fromkeys(own, "user")}
        of_rule = [name for name in layout.OF_LABEL if name in self.table]
        columns |= dict.fromkeys(of_rule, dict.fromkeys(own, np.nan))
        replaced = {name: _replaced(self.table.loc[:, name], new) for name, new in columns.items()}
        star = np.zeros(self.width, bool)
        star[list(stars)] = True
        found = [tags.get(feature, []) for feature in range(self.width)]
        return self.table.assign(**replaced, star=star, tags=found)

    def check(self, feature: int) -> int:
        """`feature` as an int, or a `UserError` with the valid range."""
        if not 0 <= int(feature) < self.width:
            raise UserError(
                f"Feature {feature} does not exist; this index has features 0 to {self.width - 1}."
            )
        return int(feature)

    def slices(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows u32/u64 ascending, acts f16) of a feature: views of the files, not copies."""
        start, stop = self.indptr[self.check(feature)], self.indptr[feature + 1]
        return np.asarray(self.rows[start:stop]), np.asarray(self.acts[start:stop])

    def firings(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows int64 ascending, acts float32) of every place where `feature` fires."""
        rows, acts = self.slices(feature)
        return rows.astype(np.int64), acts.astype(np.float32)

    def acts_at(self, feature: int, rows_M: np.ndarray | Sequence[int]) -> np.ndarray:
        """Activations (M,) float32 of `feature` at any rows; 0 where it is silent."""
        rows, acts = self.slices(feature)
        wanted = np.asarray(rows_M).astype(rows.dtype)
        if not len(rows):
            return np.zeros(len(wanted), np.float32)
        at = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
        return np.where(rows[at] == wanted, acts[at], np.float16(0)).astype(np.float32)

    def active_at(self, row: int) -> list[tuple[int, float]]:
        """(feature, activation) of all that fire at one row, strongest first."""
        row_indptr, row_features = self._row_codes
        start, stop = row_indptr[row : row + 2]
        found = [int(f) for f in row_features[start:stop]]
        pairs = [(f, float(self.acts_at(f, [row])[0])) for f in found]
        return sorted(pairs, key=lambda pair: -pair[1])

    def counts_at(self, rows_M: np.ndarray | None) -> np.ndarray:
        """How many of the rows fire each feature, (F,) int64; None: of all rows."""
        row_indptr, features = self._row_codes
        if rows_M is not None:
            features = enrichment.firings_at(rows_M, row_indptr, features)
        return np.bincount(features, minlength=self.width)

    def firings_between(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows (N,) int64, features (N,)) of all firings in a stretch of rows, in row order."""
        row_indptr, row_features = self._row_codes
        ends = row_indptr[start : stop + 1]
        rows = np.repeat(np.arange(start, stop), np.diff(ends))
        return rows, np.asarray(row_features[ends[0] : ends[-1]])

    @cached_property
    def _row_codes(self) -> tuple[np.ndarray, np.ndarray]:
        """(row_indptr, row_features)"""
        files = (self.folder / layout.ROW_INDPTR, self.folder / layout.ROW_FEATURES)
        row_indptr, row_features = (read_npy(file, mapped=True) for file in files)
        with reading(self.folder, AGAIN):
            size = self.tokens_ST.size
            forms.require_row_codes(row_indptr, row_features, size, self.width)
        return row_indptr, row_features

    def span(self, feature: int, start: int, stop: int, focus: int = 0) -> Window:
        """Rows `start` to `stop` (they may cross packed rows: each begins with BOS) as a window."""
        stop = min(stop, self.tokens_ST.size)
        return self._windows(feature, np.array([start]), np.array([stop]), [focus])[0]

    def window(self, row: int, feature: int, context: int | None = 10) -> Window:
        """`context` tokens either side of `row`, within its packed row; None: all of it."""
        return self.windows([row], feature, context)[0]

    def windows(
        self, rows: Sequence[int] | np.ndarray, feature: int, context: int | None = 10
    ) -> list[Window]:
        """`window` of each row."""
        rows = np.asarray(rows, np.int64)
        first = rows // self.context * self.context
        reach = self.context if context is None else context
        starts = np.maximum(first, rows - reach)
        stops = np.minimum(first + self.context, rows + reach + 1)
        return self._windows(feature, starts, stops, (rows - starts).tolist())

    def _windows(
        self, feature: int, starts: np.ndarray, stops: np.ndarray, focuses: Sequence[int]
    ) -> list[Window]:
        lengths = stops - starts
        ends = np.cumsum(lengths)
        rows = np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)
        tokens = self.tokens_ST.reshape(-1)[rows].astype(np.int64)
        pieces = (np.split(array, ends[:-1]) for array in (tokens, self.acts_at(feature, rows)))
        return [
            Window(ids, acts, start, focus)
            for ids, acts, start, focus in zip(*pieces, starts.tolist(), focuses, strict=True)
        ]

    def examples(self, feature: int, kind: str = "top", n: int | None = None, **options) -> list:
        """Contexts of a feature: see `sae.features.examples.examples` for kinds and options."""
        from sae.features.examples import examples

        found: list[Example] = examples(self, feature, kind, n, **options)
        return found

    @cached_property
    def _histograms(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return (
            self._arrays(layout.ACTIVATION_HISTOGRAM, forms.require_histograms),
            self._arrays(layout.LOGIT_HISTOGRAM, forms.require_histograms),
        )

    def _arrays(self, name: str, require: Callable[..., None]) -> dict[str, np.ndarray]:
        arrays = read_npz(self.folder / name)
        with reading(self.folder / name, AGAIN):
            require(arrays, self.width)
        return arrays

    def histogram(self, feature: int) -> Histogram:
        """Histogram of the feature's nonzero activations."""
        arrays = self._histograms[0]
        return Histogram(arrays["edges"][self.check(feature)], arrays["counts"][feature])

    def logit_histogram(self, feature: int) -> Histogram:
        """Histogram of the feature's logit effect over the vocabulary."""
        arrays = self._histograms[1]
        return Histogram(arrays["edges"][self.check(feature)], arrays["counts"][feature])

    @cached_property
    def _neighbours(self) -> dict[str, np.ndarray]:
        return self._arrays(layout.NEIGHBOURS, forms.require_neighbours)

    def neighbours(
        self, feature: int, kind: NeighbourKind = "decoder", n: int = 10
    ) -> list[Neighbour]:
        """Related features, closest first.

        `kind`: "decoder" or "encoder" (cosine of the directions; at most 10 are stored), or
        "coactivation" (Jaccard index of the rows in which both fire; see `enrichment`).
        """
        self.check(feature)
        if kind == "coactivation":
            found, values = enrichment.coactivation(
                self.slices(feature)[0], feature, np.diff(self.indptr), self.counts_at
            )
            return [Neighbour(int(f), float(v)) for f, v in zip(found[:n], values[:n], strict=True)]
        if kind not in ("decoder", "encoder"):
            raise UserError(
                f"There are no `{kind}` neighbours; give decoder, encoder or coactivation."
            )
        ids, cos = self._neighbours[f"{kind}_ids"], self._neighbours[f"{kind}_cos"]
        pairs = zip(ids[feature][:n], cos[feature][:n], strict=True)
        return [Neighbour(int(f), float(v)) for f, v in pairs if f >= 0]

    def enrichment(self, feature: int, n: int | None = 50) -> pd.DataFrame:
        """The tokens a feature fires on, largest share of its activation mass first.

        Columns: token_id, token (text), count (firings on it), corpus_count, p_fires = count /
        corpus_count, mass_share (share of the sum of activations), lift = p_fires / density.
        """
        rows, acts = self.slices(feature)
        return enrichment.enrichment(
            self.tokens_ST.reshape(-1)[rows], acts, self.token_counts_V, self.vocabulary, n
        )


def _replaced(column: pd.Series, values: dict[int, Any]) -> pd.Series:
    """`column` with new values at some features."""
    if not values:
        return column
    column = column.copy()
    column.iloc[list(values)] = list(values.values())
    return column
