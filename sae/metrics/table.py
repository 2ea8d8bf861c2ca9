"""One row per coder under the column names of SAELens's evaluation (SAEBench's core has most).

For tables that hold coders of several tools. What the columns mean there and here is in
docs/metrics.md, "Against other tools": the ablation of `ce_loss_score` leaves position 0 alone.
"""

import csv
import io
from collections.abc import Mapping
from typing import Any

COLUMNS = {
    "metrics.model_behavior_preservation.kl_div_score": "kl_recovered_zero",
    "metrics.model_behavior_preservation.kl_div_with_sae": "kl",
    "metrics.model_performance_preservation.ce_loss_score": "ce_recovered_zero",
    "metrics.model_performance_preservation.ce_loss_with_ablation": "ce_ablated_zero",
    "metrics.model_performance_preservation.ce_loss_with_sae": "ce_spliced",
    "metrics.model_performance_preservation.ce_loss_without_sae": "ce_clean",
    "metrics.reconstruction_quality.explained_variance": "ev",
    "metrics.reconstruction_quality.explained_variance_legacy": "ev_legacy",
    "metrics.reconstruction_quality.mse": "mse",
    "metrics.reconstruction_quality.cossim": "cosine",
    "metrics.shrinkage.l2_ratio": "shrinkage",
    "metrics.shrinkage.relative_reconstruction_bias": "gamma",
    "metrics.sparsity.l0": "l0",
    "metrics.sparsity.l1": "l1",
}
TOKENS = {
    "metrics.token_stats.total_tokens_eval_reconstruction": "loss_tokens",
    "metrics.token_stats.total_tokens_eval_sparsity_variance": "tokens",
}


def core_table(evaluations: Mapping[str, Mapping[str, Any]], sae_set: str) -> str:
    """CSV of some coders (name -> evaluation); a value that does not exist is an empty cell."""
    rows = []
    for name, evaluation in evaluations.items():
        said = evaluation["provenance"]
        row: dict[str, Any] = {"unique_id": f"{sae_set}-{name}", "sae_set": sae_set, "sae_id": name}
        row |= {"sae_cfg.architecture": said["coder"]["architecture"]}
        row |= {"sae_cfg.d_sae": said["coder"]["d_sae"]}
        row |= {column: evaluation["metrics"][own]["value"] for column, own in COLUMNS.items()}
        rows.append(row | {column: said[own] for column, own in TOKENS.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
