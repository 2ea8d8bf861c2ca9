"""How much of a known dictionary a coder found, in its directions and in its firing.

Definitions, for n true directions d_i and F latents with decoder rows w_j:

- MMCS: mean over true i of max_j cos(w_j, d_i) (Sharkey, Braun & Millidge 2022); `mmcs_learned`
  the other way round, mean over latents j that fire of max_i.
- MCC: latents and features are matched one to one so that Σ |cos| is largest (Hungarian method),
  and the mean is taken over all n features; one without a latent counts 0. For F ≥ n this is the
  mean correlation coefficient of Song et al. 2025 (arXiv:2505.20254). The same of encoder rows.
  Of many random directions in few dimensions some lie near any feature: `mcc_chance` is the MCC of
  as many random rows as there are latents, and only what a coder has beyond it was learned.
- Precision, recall, F1 of firing: latent matched by its decoder row, against its feature; means
  over features that fired in the sample (0 where a latent never fires).
- Uniqueness: distinct features that are nearest to some latent that fired, over such latents.
- Absorption (Chanin et al. 2024, "A is for Absorption"): of the rows in which a parent and its
  child fire, the share in which the parent's latent is silent while the child's latent fires and
  brings at least half of the parent's activation in the parent's direction, beyond what the
  child's own direction brings there.
- Hedging (Chanin, Dulka & Garriga-Alonso 2025, "Feature Hedging"): how much a latent's decoder row
  mixes in a related feature: |β / α| of the least-squares fit w ≈ α d_i + β d_j, where i is the
  latent's own feature and j its parent, child or correlated one: the median over pairs (an α near
  0 would rule a mean); and the same for unrelated j.

Where features are known at two sites (`sae.synthetic_sites`), encoder rows are held against the
directions that a transcoder reads, decoder rows, in all of these, against those that it writes
(beside a skip connection, against what that leaves of them).

Everything is computed in float64; None where nothing is to be averaged.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment

from sae.base.errors import UserError
from sae.coders import Coder, Codes, TwoSites
from sae.synthetic import Sample, SyntheticTruth
from sae.synthetic_sites import TwoSiteTruth

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Score = dict[str, float | int | None]
ABSORBED = 0.5  # of the parent's activation
CHANCE = 3  # of the seeds of random dictionaries, so that none is the truth's own


@dataclass(frozen=True)
class Matching:
    """One latent per feature: `latent_n` (-1: none left) and the signed cosine of the two."""

    latent_n: Ints
    cosine_n: Floats

    @property
    def mcc(self) -> float:
        return float(np.abs(self.cosine_n).mean())


def match(learned_FD: npt.ArrayLike, true_nD: npt.ArrayLike) -> Matching:
    """The one-to-one matching of latents to features with the largest Σ |cos|.

    Rows of any length; a row of zeros has cosine 0 with everything.
    """
    cosine_nF = _unit(true_nD) @ _unit(learned_FD).T
    feature, latent = linear_sum_assignment(-np.abs(cosine_nF))
    latent_n = np.full(len(cosine_nF), -1)
    latent_n[feature] = latent
    cosine_n = np.where(latent_n >= 0, cosine_nF[np.arange(len(latent_n)), latent_n], 0.0)
    return Matching(latent_n, cosine_n)


def chance_mcc(true_nD: npt.ArrayLike, width: int, seed: int = 0) -> float:
    """The MCC of a dictionary of `width` random directions: the level of chance."""
    rng = np.random.default_rng([seed, CHANCE])
    return match(rng.standard_normal((width, np.shape(true_nD)[1])), true_nD).mcc


def recovery(coder: Coder, truth: SyntheticTruth, sample: Sample) -> Score:
    """All measures of a coder that takes raw rows, on a sample it was not trained on."""
    import torch

    with torch.inference_mode():
        codes = coder.encode(torch.from_numpy(sample.x_BD))
    if isinstance(coder, TwoSites) and coder.skip and isinstance(truth, TwoSiteTruth):
        truth = truth.beside(coder.W_skip_OD.detach().cpu().numpy())
    return recovery_of(
        as_csr(codes),
        coder.W_dec_FD.detach().cpu().numpy(),
        coder.W_enc_FD.detach().cpu().numpy(),
        truth,
        sample,
    )


def recovery_of(
    acts_BF: sp.csr_matrix,
    W_dec_FD: npt.NDArray[np.floating],
    W_enc_FD: npt.NDArray[np.floating] | None,
    truth: SyntheticTruth,
    sample: Sample,
) -> Score:
    """The same from codes and weights, whoever made them: x̂ - b_dec = acts @ W_dec."""
    if acts_BF.shape != (len(sample.x_BD), len(W_dec_FD)):
        raise UserError(
            f"The codes have shape {acts_BF.shape}; {len(sample.x_BD)} rows and a dictionary of "
            f"{len(W_dec_FD)} latents make {(len(sample.x_BD), len(W_dec_FD))}."
        )
    codes_BF = sp.csc_matrix(acts_BF, dtype=np.float64, copy=True)
    codes_BF.eliminate_zeros()
    matching = match(W_dec_FD, truth.target_nD)
    fired_F = np.diff(codes_BF.indptr) > 0
    cosine_nF = _unit(truth.target_nD) @ _unit(W_dec_FD).T
    return {
        "mcc": matching.mcc,
        "mcc_chance": chance_mcc(truth.target_nD, len(W_dec_FD), truth.recipe.seed),
        "mcc_encoder": None if W_enc_FD is None else match(W_enc_FD, truth.dictionary_nD).mcc,
        "mmcs": float(cosine_nF.max(axis=1).mean()),
        "mmcs_learned": _mean(cosine_nF[:, fired_F].max(axis=0).tolist()),
        **firing_scores(codes_BF, sample.acts, matching),
        "uniqueness": uniqueness(cosine_nF[:, fired_F]),
        "dead_share": float(1 - fired_F.mean()),
        "l0": float(codes_BF.nnz / len(sample.x_BD)),
        "rows": len(sample.x_BD),
        **absorption(codes_BF, W_dec_FD, truth, sample, matching),
        **hedging(W_dec_FD, truth, matching),
    }


def firing_scores(acts_BF: sp.spmatrix, true_Bn: sp.spmatrix, matching: Matching) -> Score:
    """Means over the features that fired in the sample."""
    fires = _pattern(acts_BF)
    true = _pattern(true_Bn)
    positives_n = np.asarray(true.sum(axis=0)).ravel()
    matched_n = matching.latent_n >= 0
    chosen = fires[:, matching.latent_n[matched_n]]
    fired_n, hits_n = np.zeros(len(matched_n)), np.zeros(len(matched_n))
    fired_n[matched_n] = np.asarray(chosen.sum(axis=0)).ravel()
    hits_n[matched_n] = np.asarray(chosen.multiply(true[:, matched_n]).sum(axis=0)).ravel()
    seen_n = positives_n > 0
    if not seen_n.any():
        return {"precision": None, "recall": None, "f1": None, "features_seen": 0}
    hits, fired, positives = hits_n[seen_n], fired_n[seen_n], positives_n[seen_n]
    return {
        "precision": float((hits / np.maximum(fired, 1)).mean()),
        "recall": float((hits / positives).mean()),
        "f1": float((2 * hits / (fired + positives)).mean()),
        "features_seen": int(seen_n.sum()),
    }


def uniqueness(cosine_nF: Floats) -> float | None:
    """Distinct features that are nearest to some latent, over latents. Columns are latents."""
    if cosine_nF.shape[1] == 0:
        return None
    return len(np.unique(np.abs(cosine_nF).argmax(axis=0))) / cosine_nF.shape[1]


def absorption(
    acts_BF: sp.csc_matrix,
    W_dec_FD: npt.NDArray[np.floating],
    truth: SyntheticTruth,
    sample: Sample,
    matching: Matching,
) -> Score:
    """Mean over (parent, child) of the absorbed share of the rows in which both fire.

    `parent_missed` is the share of these rows in which the parent's latent is silent, absorbed
    or not, and `parent_missed_alone` the same of rows in which the parent fires and no child.
    """
    acts, true = sp.csc_matrix(acts_BF), sp.csc_matrix(sample.acts)
    absorbed, missed, alone = [], [], []
    for parent in np.unique(truth.parent_n[truth.parent_n >= 0]).tolist():
        latent = matching.latent_n[parent]
        parent_true = _column(true, parent)
        silent = _column(acts, int(latent)) <= 0
        any_child = np.zeros(len(silent), dtype=bool)
        for child in np.flatnonzero(truth.parent_n == parent).tolist():
            child_true = _column(true, child)
            any_child |= child_true > 0
            both = child_true > 0  # a child fires only where its parent does
            if not both.any():
                continue
            child_acts = _column(acts, int(matching.latent_n[child]))
            leaning = _coefficients(W_dec_FD, truth, matching, child, parent)[1]
            brought = child_acts * leaning >= ABSORBED * parent_true
            absorbed.append((silent & (child_acts > 0) & brought)[both].mean())
            missed.append(silent[both].mean())
        only = (parent_true > 0) & ~any_child
        if only.any():
            alone.append(silent[only].mean())
    return {
        "absorption": _mean(absorbed),
        "parent_missed": _mean(missed),
        "parent_missed_alone": _mean(alone),
    }


def hedging(W_dec_FD: npt.NDArray[np.floating], truth: SyntheticTruth, matching: Matching) -> Score:
    """Median |β / α| over related pairs, both ways, and over as many unrelated ones."""
    pairs = truth.related
    if not len(pairs):
        return {"hedging": None, "hedging_unrelated": None}
    both_ways = np.concatenate([pairs, pairs[:, ::-1]])
    rng = np.random.default_rng(truth.recipe.seed)
    n = len(truth.target_nD)
    related = {(int(i), int(j)) for i, j in both_ways}
    drawn = [(int(i), int(rng.integers(n))) for i, _ in both_ways]
    unrelated = [(i, j) for i, j in drawn if i != j and (i, j) not in related]
    return {
        "hedging": _mixing(W_dec_FD, truth, matching, both_ways),
        "hedging_unrelated": _mixing(W_dec_FD, truth, matching, np.array(unrelated).reshape(-1, 2)),
    }


def as_csr(codes: Codes) -> sp.csr_matrix:
    """Codes as a SciPy matrix (B, F)."""
    acts, indices, offsets = (t.cpu().numpy() for t in codes.ragged())
    return sp.csr_matrix((acts, indices, offsets), (codes.rows, codes.width))


def _mixing(
    W_dec_FD: npt.NDArray[np.floating], truth: SyntheticTruth, matching: Matching, pairs: Ints
) -> float | None:
    found = []
    for own, other in pairs:
        if matching.latent_n[own] >= 0:
            alpha, beta = _coefficients(W_dec_FD, truth, matching, own, other)
            if alpha != 0:
                found.append(abs(beta / alpha))
    return float(np.median(found)) if found else None


def _coefficients(
    W_dec_FD: npt.NDArray[np.floating],
    truth: SyntheticTruth,
    matching: Matching,
    own: int,
    other: int,
) -> tuple[float, float]:
    """(α, β) of w ≈ α d_own + β d_other, for the latent w that is matched to `own`."""
    if matching.latent_n[own] < 0:
        return 0.0, 0.0
    row = np.asarray(W_dec_FD[matching.latent_n[own]], dtype=np.float64)
    basis = truth.target_nD[[own, other]]
    alpha, beta = np.linalg.lstsq(basis.T, row, rcond=None)[0]
    return float(alpha), float(beta)


def _unit(rows: npt.ArrayLike) -> Floats:
    rows = np.asarray(rows, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def _pattern(matrix: sp.spmatrix) -> sp.csc_matrix:
    pattern = sp.csc_matrix(matrix, copy=True)
    pattern.eliminate_zeros()
    pattern.data = np.ones(len(pattern.data))
    return pattern


def _column(matrix: sp.csc_matrix, column: int) -> Floats:
    """A dense column; nought for column -1, the latent that is not there."""
    rows, _ = matrix.get_shape()
    out = np.zeros(rows)
    if column >= 0:
        part = slice(matrix.indptr[column], matrix.indptr[column + 1])
        out[matrix.indices[part]] = matrix.data[part]
    return out


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
