"""Closed forms: coders that are made from the truth, whole or with a known fault."""

import numpy as np
import pytest
import scipy.sparse as sp

from sae.base.errors import UserError
from sae.metrics.recovery import (
    absorption,
    chance_mcc,
    firing_scores,
    hedging,
    match,
    recovery_of,
    uniqueness,
)
from sae.synthetic import Recipe, Sample, SyntheticStream, SyntheticTruth


@pytest.fixture(scope="module")
def truth() -> SyntheticTruth:
    """As many dimensions as features and orthogonal directions, so that sums are exact."""
    truth = SyntheticTruth(
        Recipe(d=24, features=24, l0=5.0, families=3, children=2, correlated=(2, 2))
    )
    truth.dictionary_nD = truth.target_nD = np.linalg.qr(truth.dictionary_nD)[0]
    return truth


@pytest.fixture(scope="module")
def sample(truth: SyntheticTruth) -> Sample:
    return SyntheticStream(truth, batch=3000).sample(0)


def test_the_truth_recovers_itself(truth: SyntheticTruth, sample: Sample) -> None:
    order = np.random.default_rng(0).permutation(24)
    rows = truth.dictionary_nD[order] * 3.0
    score = recovery_of(sample.acts[:, order], rows, rows, truth, sample)
    ones = ("mcc", "mcc_encoder", "mmcs", "mmcs_learned", "precision", "recall", "f1", "uniqueness")
    assert [score[name] for name in ones] == pytest.approx([1.0] * len(ones))
    zeros = ("dead_share", "absorption", "parent_missed", "hedging", "hedging_unrelated")
    assert [score[name] for name in zeros] == pytest.approx([0.0] * len(zeros), abs=1e-12)
    assert score["l0"] == pytest.approx(sample.acts.nnz / 3000)


def test_mcc_matches_one_to_one_and_counts_what_is_missing() -> None:
    true = np.eye(3)
    angle = np.array([[0.8, 0.6, 0.0], [1.0, 0.0, 0.0]])  # both lean most on the first
    found = match(angle, true)
    assert list(found.latent_n) == [1, 0, -1]
    assert found.mcc == pytest.approx((1.0 + 0.6 + 0.0) / 3)
    assert match(-true, true).mcc == pytest.approx(1.0)
    assert match(np.zeros((3, 3)), true).mcc == 0.0


def test_mcc_does_not_see_rotation_permutation_or_scale() -> None:
    rng = np.random.default_rng(1)
    learned, true = rng.standard_normal((30, 8)), rng.standard_normal((20, 8))
    turned = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    scaled = learned[rng.permutation(30)] * rng.uniform(0.1, 9, (30, 1))
    assert match(scaled @ turned, true @ turned).mcc == pytest.approx(match(learned, true).mcc)


def test_chance_finds_directions_where_they_are_many_and_dimensions_few() -> None:
    rng = np.random.default_rng(2)
    flat, deep = (chance_mcc(rng.standard_normal((50, dims)), 200) for dims in (2, 200))
    assert flat > 0.99
    assert deep < 0.25
    true = rng.standard_normal((50, 10))
    assert chance_mcc(true, 50, 1) == chance_mcc(true, 50, 1)
    assert chance_mcc(true, 50, 1) == pytest.approx(chance_mcc(true, 50, 2), abs=0.05)
    assert chance_mcc(true, 25) < 0.5 < chance_mcc(true, 400)


def test_chance_is_said_beside_the_score() -> None:
    truth = SyntheticTruth(Recipe(d=8, features=32, l0=2.0))
    sample = SyntheticStream(truth, batch=100).sample(0)
    score = recovery_of(sample.acts, truth.dictionary_nD, None, truth, sample)
    assert score["mcc"] == pytest.approx(1)
    assert score["mcc_chance"] == chance_mcc(truth.target_nD, 32, truth.recipe.seed)
    assert 0.5 < score["mcc_chance"] < 0.9


def test_firing_scores_are_counts() -> None:
    """Feature 0: 2 hits of 3 firings, 4 true; 1: silent latent; 2: never true; 3: no latent."""
    true = np.zeros((8, 4))
    true[:4, 0] = true[5, 1] = true[6, 3] = 1.0
    acts = np.zeros((8, 3))
    acts[[0, 1, 7], 0] = 2.0
    acts[2, 2] = 1.0
    found = match(np.eye(4)[:3], np.eye(4))
    score = firing_scores(sp.csr_matrix(acts), sp.csr_matrix(true), found)
    assert score["features_seen"] == 3
    assert score["precision"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert score["recall"] == pytest.approx((2 / 4 + 0 + 0) / 3)
    assert score["f1"] == pytest.approx((2 * 2 / (3 + 4)) / 3)


def test_uniqueness_counts_distinct_nearest_features() -> None:
    cosines = np.array([[0.9, -0.8, 0.1, 0.0], [0.2, 0.1, 0.7, 0.3]])
    assert uniqueness(cosines) == 2 / 4
    assert uniqueness(cosines[:, :0]) is None


def test_a_child_that_absorbs_its_parent(truth: SyntheticTruth, sample: Sample) -> None:
    """The first child's latent writes parent + child, and the parent's latent leaves it alone."""
    parent, child = 0, 3
    assert truth.parent_n[child] == parent
    acts, rows = sample.acts.toarray(), truth.dictionary_nD.copy()
    rows[child] += rows[parent]
    absorbed = acts[:, child] > 0
    heavy = acts[absorbed, child] >= 0.5 * acts[absorbed, parent]  # what it brings is its own size
    acts[absorbed, parent] = 0
    matching = match(truth.dictionary_nD, truth.dictionary_nD)
    score = absorption(sp.csr_matrix(acts), rows, truth, sample, matching)
    others = []
    for feature in np.flatnonzero(truth.parent_n == parent):
        both = sample.acts[:, [feature]].toarray()[:, 0] > 0
        others.append((both & absorbed)[both].mean())
    # the sibling's rows are silent too where both children fire, but nothing there is absorbed
    assert score["absorption"] == pytest.approx(heavy.mean() / 6)
    assert score["parent_missed"] == pytest.approx(sum(others) / 6)
    assert score["parent_missed_alone"] == 0.0


def test_silence_without_the_childs_help_is_no_absorption(
    truth: SyntheticTruth, sample: Sample
) -> None:
    acts = sample.acts.toarray()
    acts[:, :3] = 0
    matching = match(truth.dictionary_nD, truth.dictionary_nD)
    score = absorption(sp.csr_matrix(acts), truth.dictionary_nD, truth, sample, matching)
    assert score["absorption"] == 0.0
    assert score["parent_missed"] == score["parent_missed_alone"] == 1.0


def test_hedging_is_the_share_of_the_partner(truth: SyntheticTruth) -> None:
    rows = truth.dictionary_nD.copy()
    for i, j in truth.related:
        rows[i] = rows[i] + 0.3 * truth.dictionary_nD[j]
        rows[j] = rows[j] + 0.3 * truth.dictionary_nD[i]
    matching = match(truth.dictionary_nD, truth.dictionary_nD)
    score = hedging(rows * 7.0, truth, matching)
    assert score["hedging"] == pytest.approx(0.3)
    assert score["hedging_unrelated"] == pytest.approx(0.0, abs=1e-12)


def test_without_structure_there_is_nothing_to_average() -> None:
    truth = SyntheticTruth(Recipe(d=8, features=12, l0=2.0))
    sample = SyntheticStream(truth, batch=100).sample(0)
    empty = sp.csr_matrix((100, 12))
    score = recovery_of(empty, truth.dictionary_nD, None, truth, sample)
    missing = ("absorption", "hedging", "mcc_encoder", "uniqueness")
    assert [score[name] for name in missing] == [None] * 4
    assert score["dead_share"] == 1.0
    assert score["f1"] == 0.0


def test_codes_of_another_shape_are_refused(truth: SyntheticTruth, sample: Sample) -> None:
    with pytest.raises(UserError, match="3000 rows"):
        recovery_of(sp.csr_matrix((3000, 5)), truth.dictionary_nD, None, truth, sample)
