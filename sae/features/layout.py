"""Names and dtypes of a feature index on disk: the one place that spells them."""

from pathlib import Path

import numpy as np

SCHEMA = 1
META = "index.json"
INDPTR, ROWS, ACTS = "indptr.npy", "rows.npy", "acts.npy"
ROW_INDPTR, ROW_FEATURES = "row_indptr.npy", "row_features.npy"
TOKENS, DOCUMENTS, VOCABULARY = "tokens.npy", "documents.parquet", "vocabulary.parquet"
FEATURES, NEIGHBOURS = "features.parquet", "neighbours.npz"
ACTIVATION_HISTOGRAM, LOGIT_HISTOGRAM = "activation_histogram.npz", "logit_histogram.npz"
NOTES = "notes.sqlite3"
SCORECARD = "scorecard.parquet"
"""Made after the index, by a stage of its own: it needs the language model."""
FILES = (
    *(INDPTR, ROWS, ACTS, ROW_INDPTR, ROW_FEATURES, TOKENS, DOCUMENTS, VOCABULARY, FEATURES),
    *(NEIGHBOURS, ACTIVATION_HISTOGRAM, LOGIT_HISTOGRAM),
)

COLUMNS = (
    *("label", "label_kind", "label_score", "density", "count", "mean", "max", "std"),
    *("top_token_ids", "top_token_counts", "promoted_ids", "promoted_logits"),
    *("suppressed_ids", "suppressed_logits", "decoder_norm", "enc_dec_cosine"),
)
"""What every table of features has."""
OF_LABEL = (
    *("label_score", "label_precision", "label_recall", "label_auc"),
    *("specificity", "specificity_mass", "sensitivity"),
)
"""What is said of an automatic label, and means nothing of a label that a user wrote."""
FACTS = ("coder", "coder_hash", "site", "architecture", "model", "model_hash")
"""What `index.json` says in words."""

TOP_TOKENS = 10
"""How many top, promoted and suppressed tokens and neighbours are kept per feature."""
BINS = 30
"""Bins of the activation and logit histograms."""


def rows_dtype(rows: int) -> np.dtype:
    """u32 while every row number fits, else u64."""
    return np.dtype(np.uint32 if rows <= 2**32 else np.uint64)


def features_dtype(width: int) -> np.dtype:
    """u16 while every feature number fits, else u32."""
    return np.dtype(np.uint16 if width <= 2**16 else np.uint32)


def partial_folder(folder: Path) -> Path:
    """Where an index is built before it is renamed to `folder`."""
    return folder.with_name(folder.name + ".partial")
