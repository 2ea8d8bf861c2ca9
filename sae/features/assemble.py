"""Puts an index together from codes in row order and the decoder's effects: numpy alone."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae import __version__
from sae.base.files import (
    atomic_write,
    sha256_file,
    sync_file,
    sync_folder,
    write_array,
    write_json,
)
from sae.base.foreign import read_npz, reading
from sae.base.sums import SUMS, write_sums
from sae.features import layout
from sae.features.labels import label_features
from sae.features.notes_file import make_notes, moving_notes
from sae.features.scatter import scatter
from sae.features.statistics import feature_statistics
from sae.features.vocabulary import Vocabulary

LATE = (layout.FEATURES, layout.DOCUMENTS, layout.VOCABULARY)
"""Files that are written after the labels."""
Progress = Callable[[str, int, int], object]
"""Called as progress(what, done, total)."""


@dataclass(frozen=True)
class DecoderEffects:
    """What the weights alone say of each latent (see `sae.features.effects`); numpy arrays.

    Token lists are (F, 10), neighbours (F, up to 10) with -1 where there is none, histograms
    (F, BINS + 1) and (F, BINS).
    """

    promoted_ids: np.ndarray
    promoted_logits: np.ndarray
    suppressed_ids: np.ndarray
    suppressed_logits: np.ndarray
    decoder_norm: np.ndarray
    enc_dec_cosine: np.ndarray
    logit_edges: np.ndarray
    logit_counts: np.ndarray
    decoder_ids: np.ndarray
    decoder_cos: np.ndarray
    encoder_ids: np.ndarray
    encoder_cos: np.ndarray

    def save(self, path: Path) -> None:
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        atomic_write(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: Path) -> "DecoderEffects":
        """Raises `UserError` if the file is not there, or not whole: a zip has sums of its own."""
        with reading(path):
            return cls(**read_npz(path))


@dataclass(frozen=True)
class RowCodes:
    """Codes in row order: firings of row r are `row_indptr[r]` to `row_indptr[r + 1]`."""

    row_indptr: np.ndarray
    features_N: np.ndarray
    acts_N: np.ndarray
    counts_F: np.ndarray


def assemble(
    partial: Path,
    folder: Path,
    codes: RowCodes,
    effects: DecoderEffects,
    vocabulary: Vocabulary,
    documents: pd.DataFrame,
    meta: dict[str, Any],
    progress: Progress | None = None,
    before_replacing: Callable[[], object] = lambda: None,
) -> Path:
    """Writes every file into `partial` and renames it to `folder`.

    `partial` already holds `tokens.npy`, and the files of `codes` if they are on disk there.
    `meta` is `index.json` without what is known here (sizes, time, version). Notes
    (`notes.sqlite3`) of an index that is replaced are carried over.
    """
    say = progress or (lambda what, done, total: None)
    tokens_ST = np.load(partial / layout.TOKENS, mmap_mode="r")
    say("sorting by feature", 0, 3)
    firings = _sorted_by_feature(partial, codes)
    say("statistics", 1, 3)
    table, edges, counts = feature_statistics(*firings, tokens_ST)
    _savez(partial / layout.ACTIVATION_HISTOGRAM, edges=edges, counts=counts)
    _write_effects(partial, effects, table)
    early = [name for name in layout.FILES if name not in LATE]
    sums = _sums_of(partial, early)  # not after the labels, which may take long
    say("labels", 2, 3)
    text = (tokens_ST, table, vocabulary, documents, meta["splits"])
    labels = label_features(*firings, *text, effects.decoder_ids)
    for at, name in enumerate(labels.columns, start=1):
        table.insert(at, name, labels[name])
    table.to_parquet(partial / layout.FEATURES, index=False)
    documents.to_parquet(partial / layout.DOCUMENTS, index=False)
    vocabulary.write(partial / layout.VOCABULARY)
    _write_meta(partial, meta, len(table), tokens_ST.shape)
    write_sums(partial, sums | _sums_of(partial, (*LATE, layout.META)))
    say("done", 3, 3)
    before_replacing()
    return _put_in_place(partial, folder)


def _sorted_by_feature(partial: Path, codes: RowCodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Writes the codes in both orders; (indptr, rows, acts) by feature, memory-mapped."""
    scatter(partial, codes.row_indptr, codes.features_N, codes.acts_N, codes.counts_F)
    write_array(partial / layout.ROW_INDPTR, codes.row_indptr)
    if not (partial / layout.ROW_FEATURES).exists():  # else it is the file that the codes lie in
        write_array(partial / layout.ROW_FEATURES, codes.features_N)
    indptr = np.load(partial / layout.INDPTR)
    mode = "r" if indptr[-1] else None  # an empty file cannot be mapped
    rows, acts = (np.load(partial / name, mmap_mode=mode) for name in (layout.ROWS, layout.ACTS))
    return indptr, rows, acts


def _write_effects(partial: Path, effects: DecoderEffects, table: pd.DataFrame) -> None:
    """Histograms and neighbours as files of their own, the rest as columns of `table`."""
    _savez(partial / layout.LOGIT_HISTOGRAM, edges=effects.logit_edges, counts=effects.logit_counts)
    names = ("decoder_ids", "decoder_cos", "encoder_ids", "encoder_cos")
    _savez(partial / layout.NEIGHBOURS, **{name: getattr(effects, name) for name in names})
    for name in ("promoted", "suppressed"):
        table[f"{name}_ids"] = list(getattr(effects, f"{name}_ids"))
        table[f"{name}_logits"] = list(getattr(effects, f"{name}_logits"))
    table["decoder_norm"] = effects.decoder_norm
    table["enc_dec_cosine"] = effects.enc_dec_cosine


def _write_meta(partial: Path, meta: dict[str, Any], width: int, shape: tuple[int, ...]) -> None:
    sequences, context = shape
    sizes = {"d_sae": width, "context": context, "sequences": sequences}
    about = {
        "schema": layout.SCHEMA,
        **meta,
        **sizes,
        "tokens": sequences * (context - 1),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "loupe_version": __version__,
    }
    write_json(partial / layout.META, about)


def _sums_of(partial: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: sha256_file(partial / name) for name in names}


def _put_in_place(partial: Path, folder: Path) -> Path:
    """Renames `partial` to `folder`; what lay there goes, but for the user's notes."""
    for path in partial.iterdir():
        if path.name not in (layout.META, SUMS, *layout.FILES):
            path.unlink()
    _sync(partial)
    if not folder.exists():
        os.replace(partial, folder)
        return folder
    notes, old = folder / layout.NOTES, _old(folder)
    shutil.rmtree(old, ignore_errors=True)
    if not notes.exists():  # else the first note, written meanwhile, would go with the old folder
        make_notes(notes)
    with moving_notes(notes, partial / layout.NOTES):
        sync_folder(partial)  # the notes' new name
        os.replace(folder, old)
        os.replace(partial, folder)
    shutil.rmtree(old)
    return folder


def _sync(partial: Path) -> None:
    """Returns when all of the folder is on the disk: its new name must not come there first.

    But for notes that are in use, which SQLite brings there: where a process opens and closes such
    a file, it loses the locks that it holds on it (POSIX), and somebody's note with them.
    """
    own = (path for path in partial.iterdir() if not path.name.startswith(layout.NOTES))
    for path in own:
        sync_file(path)
    sync_folder(partial)


def recover(folder: Path) -> None:
    """Brings back the index that a kill between two renames left aside."""
    if not folder.exists() and _old(folder).exists():
        os.replace(_old(folder), folder)
    shutil.rmtree(_old(folder), ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def _savez(path: Path, **arrays: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
