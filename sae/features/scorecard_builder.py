"""Makes the scorecard of a coder: what its index counted, other seeds, and ablations (torch)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from sae.base.errors import UserError
from sae.features.ablation_sample import Firings, draw_firings
from sae.features.assemble import Progress
from sae.features.index import FeatureIndex
from sae.features.scorecard import MEASURED, counted, write_scorecard
from sae.metrics.provenance import special_tokens
from sae.metrics.stability import replication
from sae.metrics.token_ablation import TokenAblation

if TYPE_CHECKING:
    from sae.coders import Coder
    from sae.lm import LanguageModel

TOKENS = 32_768
MOST_SEEDS = 0.5
"""A feature counts as replicated if more than this share of the other seeds have it."""
READ_ROWS = 2048
"""Tokens of whole rows that are run unchanged at a time."""


def build_scorecard(
    index: FeatureIndex,
    coder: "Coder",
    lm: "LanguageModel",
    others: Sequence["Coder"] = (),
    *,
    tokens: int = TOKENS,
    seed: int = 0,
    names: Sequence[str] = (),
    progress: Progress | None = None,
    before_writing: Callable[[], object] = lambda: None,
) -> Path:
    """Writes `scorecard.parquet` into the index's folder; see `sae.features.scorecard`.

    Args:
        index: of this coder.
        lm: the model that the index was made with, in float32.
        others: coders that differ from this one in their seed alone; `names` are noted.
        tokens: firings at which a feature is taken out, over all features; about half as many
            held-out tokens are run through the model for that.
        seed: of the choice among a feature's firings.
        progress: called as progress(what, done, total).
        before_writing: called when all is measured, before the file is written.

    Raises:
        UserError: index, coder and model do not belong together, or the index is an older one.
        CheckFailure: the model cannot be continued from one token; see `TokenAblation`.
    """
    _check_fit(index, coder, lm)
    counted(index)  # before the work, not after it
    say = progress or (lambda what, done, total: None)
    say("other seeds", 0, 1)
    found = _seeds(coder, others)
    say("other seeds", 1, 1)
    firings = draw_firings(index, tokens, special_tokens(lm, index.meta["bos_id"]), seed)
    kl_N, lost_N = ablate(index, coder, lm, firings, say)
    documents_N = index.documents_of(firings.rows_N)
    found |= _means(firings.features_N, documents_N, kl_N, lost_N, index.width)
    about = {
        "tokens": tokens,
        "seed": seed,
        "model_hash": lm.hash,
        "site": _written_at(index),
        "seed_coders": list(names),
    }
    before_writing()
    return write_scorecard(index, pd.DataFrame({name: found[name] for name in MEASURED}), about)


def ablate(
    index: FeatureIndex, coder: "Coder", lm: "LanguageModel", firings: Firings, say: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """KL and ΔCE (N,) in nats of each firing: that latent taken out, at that token alone."""
    ablation = TokenAblation(lm, _written_at(index))
    act_N = _activations(index, firings)
    W_dec_FD = coder.W_dec_FD.detach().float()
    sequence_N, position_N = np.divmod(firings.rows_N, index.context)
    kl_N, lost_N = np.empty(len(act_N)), np.empty(len(act_N))
    sequences = np.unique(sequence_N)
    at_once = max(1, READ_ROWS // index.context)
    for start in range(0, len(sequences), at_once):
        part = sequences[start : start + at_once]
        clean = ablation.read(torch.from_numpy(index.tokens_ST[part].astype(np.int64)))
        for row, sequence in enumerate(part):
            own = slice(*np.searchsorted(sequence_N, [sequence, sequence + 1]))
            features = torch.from_numpy(firings.features_N[own]).to(W_dec_FD.device)
            written_ND = W_dec_FD[features] * torch.from_numpy(act_N[own, None]).to(W_dec_FD)
            position = torch.from_numpy(position_N[own])
            kl, lost = ablation.effects(clean, row, position, written_ND)
            kl_N[own], lost_N[own] = kl.numpy(), lost.numpy()
        say("ablations", start + len(part), len(sequences))
    return kl_N, lost_N


def _written_at(index: FeatureIndex) -> str:
    """The site where the decoder writes."""
    return index.meta.get("target_site", index.meta["site"])


def _check_fit(index: FeatureIndex, coder: "Coder", lm: "LanguageModel") -> None:
    """The index's `coder_hash` is of a file; who loads the coder from one compares it."""
    if coder.d_sae != index.width:
        raise UserError(
            f"{index.folder} is an index of {index.width} features, the coder has {coder.d_sae}; "
            "give the coder that it was built from."
        )
    if lm.hash != index.meta["model_hash"]:
        raise UserError(
            f"{index.folder} was made with the model {index.meta['model']} "
            f"({index.meta['model_hash'][:12]}), not with `{lm.name}` ({lm.hash[:12]}); load that "
            "one, or build the index again."
        )


def _seeds(coder: "Coder", others: Sequence["Coder"]) -> dict[str, object]:
    """The columns of other seeds; unknown without any."""
    unknown_F = np.full(coder.d_sae, np.nan)
    found = replication(coder, others) if others else {}
    known = found["shared"] > MOST_SEEDS if others else [None] * coder.d_sae
    return {
        "seed_replicated": pd.array(known, "boolean"),
        "seed_decoder_cosine": found.get("decoder", unknown_F),
        "seed_encoder_cosine": found.get("encoder", unknown_F),
        "seed_coders": np.full(coder.d_sae, len(others)),
    }


def _means(
    features_N: np.ndarray,
    documents_N: np.ndarray,
    kl_N: np.ndarray,
    lost_N: np.ndarray,
    width: int,
) -> dict[str, object]:
    """Mean of each feature, NaN without firings, and its standard error.

    Firings of one document are not independent: the error is that of a mean over documents of
    unequal size, sqrt(m / (m − 1) Σ_documents (Σ (x − mean))²) / n, NaN with fewer than m = 2.
    """
    count_F = np.bincount(features_N, minlength=width)
    pairs, pair_N = np.unique(np.stack([features_N, documents_N]), axis=1, return_inverse=True)
    feature_P = pairs[0]
    clusters_F = np.bincount(feature_P, minlength=width)
    found: dict[str, object] = {}
    for name, values_N in (("ablation_kl", kl_N), ("ablation_delta_ce", lost_N)):
        total_F = np.bincount(features_N, values_N, width)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_F = total_F / count_F
            off_P = np.bincount(pair_N.reshape(-1), values_N - mean_F[features_N])
            off_F = np.bincount(feature_P, off_P**2, width)
            error_F = np.sqrt(off_F * clusters_F / (clusters_F - 1)) / count_F
        found[name] = mean_F
        found[f"{name}_error"] = np.where(clusters_F > 1, error_F, np.nan)
    return found | {"ablation_tokens": count_F}


def _activations(index: FeatureIndex, firings: Firings) -> np.ndarray:
    """(N,) float32: the activation of each firing, as the index holds it."""
    act_N = np.empty(len(firings.rows_N), np.float32)
    order = np.argsort(firings.features_N, kind="stable")
    ends = np.searchsorted(firings.features_N[order], np.arange(index.width + 1))
    for feature in np.flatnonzero(np.diff(ends)):
        own = order[ends[feature] : ends[feature + 1]]
        act_N[own] = index.acts_at(int(feature), firings.rows_N[own])
    return act_N
