"""The scorecard of a coder: one row per feature, and what each number rests on (no torch).

`scorecard.parquet` lies in the feature index; `sae scorecard` makes it (`scorecard_builder`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sae.base.errors import UserError
from sae.base.files import atomic_write
from sae.base.foreign import reading
from sae.features import layout
from sae.features.tables import read_table

if TYPE_CHECKING:
    from sae.features.index import FeatureIndex

SCHEMA = 1
_KEY = b"loupe"


@dataclass(frozen=True)
class Column:
    """What a column means, in which unit, and the column that says how many it rests on."""

    meaning: str
    unit: str
    rests_on: str | None = None


FROM_INDEX = {
    "id": Column("Number of the feature.", "number"),
    "density": Column("Share of the indexed tokens that fire it.", "share", "tokens"),
    "tokens": Column("Indexed tokens.", "tokens"),
    "label_score": Column(
        "F1 of the label's rule on sampled held-out contexts, hard negatives among them.",
        "share",
        "label_contexts",
    ),
    "label_precision": Column(
        "Of those contexts in which the rule holds, the share in which it fires at half its "
        "maximum or more.",
        "share",
        "label_contexts",
    ),
    "label_recall": Column(
        "Of those contexts in which it fires at half its maximum or more, the share in which the "
        "rule holds.",
        "share",
        "label_positives",
    ),
    "label_contexts": Column("Held-out contexts that the score rests on.", "contexts"),
    "label_positives": Column("Those of them in which it fires.", "contexts"),
    "specificity": Column(
        "Of the held-out tokens that fire it, the share on which its label's rule holds.",
        "share",
        "heldout_firings",
    ),
    "specificity_mass": Column(
        "The same by activation: the share of its held-out activation that falls where the rule "
        "holds.",
        "share",
        "heldout_firings",
    ),
    "heldout_firings": Column("Held-out tokens that fire it.", "tokens"),
    "sensitivity": Column(
        "Of the held-out tokens on which its label's rule holds, the share that fire it.",
        "share",
        "rule_tokens",
    ),
    "rule_tokens": Column("Held-out tokens on which the rule holds.", "tokens"),
}
MEASURED = {
    "seed_replicated": Column(
        "Whether most of the run's coders of other seeds, and else the same settings, have it: "
        "matchings of decoder and of encoder rows name the same latent, both cosines above 0.7.",
        "yes or no",
        "seed_coders",
    ),
    "seed_decoder_cosine": Column(
        "Cosine of its decoder row with the one matched to it, averaged over those coders.",
        "cosine",
        "seed_coders",
    ),
    "seed_encoder_cosine": Column(
        "The same of encoder rows, in a matching of their own.", "cosine", "seed_coders"
    ),
    "seed_coders": Column("Coders of other seeds that it was looked for in.", "coders"),
    "ablation_kl": Column(
        "KL(p ‖ p̂) of the model's next-token prediction where the feature fires, it alone taken "
        "out of the activation at that token; mean over held-out firings.",
        "nats",
        "ablation_tokens",
    ),
    "ablation_kl_error": Column("Standard error of that mean.", "nats", "ablation_tokens"),
    "ablation_delta_ce": Column(
        "Loss that the same ablation adds on the token that comes next: above 0 the feature "
        "helps; mean over the same firings.",
        "nats",
        "ablation_tokens",
    ),
    "ablation_delta_ce_error": Column("Standard error of that mean.", "nats", "ablation_tokens"),
    "ablation_tokens": Column("Held-out firings at which it was taken out.", "tokens"),
}
COLUMNS: Mapping[str, Column] = FROM_INDEX | MEASURED


def counted(index: "FeatureIndex") -> pd.DataFrame:
    """The columns of `FROM_INDEX`.

    Raises `UserError` for an index that was built when it did not count all of them.
    """
    table = index.table.assign(tokens=index.tokens_indexed)
    if missing := [name for name in FROM_INDEX if name not in table]:
        raise UserError(
            f"{index.folder} does not say `{missing[0]}`: it was built by an earlier version of "
            "Loupe; build it again with `sae index`."
        )
    return pd.DataFrame({name: table[name] for name in FROM_INDEX})


def write_scorecard(index: "FeatureIndex", measured: pd.DataFrame, about: dict[str, Any]) -> Path:
    """Writes the columns of the index beside those of `MEASURED`; `about` says how they were made.

    Raises `UserError` as `counted` does.
    """
    table = pa.Table.from_pandas(
        pd.concat([counted(index), measured[list(MEASURED)]], axis=1),
        preserve_index=False,
    )
    said = {"schema": SCHEMA, "coder_hash": index.meta["coder_hash"], **about}
    table = table.replace_schema_metadata({_KEY: json.dumps(said, sort_keys=True).encode()})
    path = index.folder / layout.SCORECARD
    return atomic_write(path, lambda file: pq.write_table(table, file))


def read_scorecard(index: "FeatureIndex") -> pd.DataFrame | None:
    """The scorecard in the order of ids, truth values as 1, 0 and NaN; None if there is none.

    Raises `UserError` for one of another schema, coder or width, or a file that is none.
    """
    path = index.folder / layout.SCORECARD
    if not path.is_file():
        return None
    table = read_table(path, index.width, list(COLUMNS))
    with reading(path, "make it again with `sae scorecard`"):
        said = json.loads((pq.read_schema(path).metadata or {}).get(_KEY, b"{}"))
        found = (said.get("schema"), said.get("coder_hash"))
        if found != (SCHEMA, index.meta["coder_hash"]):
            raise ValueError("it has another schema, or is of another coder")
        if not np.array_equal(table["id"], np.arange(index.width)):
            raise ValueError(f"it has no row for each of the {index.width} features")
        return table.astype(np.float64).astype({"id": np.int64})


def scored_view(index: "FeatureIndex") -> pd.DataFrame:
    """`index.view()` with the columns of `MEASURED`, where there is a scorecard."""
    view, scorecard = index.view(), read_scorecard(index)
    return view if scorecard is None else view.join(scorecard[list(MEASURED)])
