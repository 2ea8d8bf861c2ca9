import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from sae.sklearn import SparseAutoencoder


def _checks():
    estimator = SparseAutoencoder(n_components=6, k=2, epochs=2)
    return list(estimator_checks_generator(estimator, legacy=True))


@pytest.mark.parametrize(("estimator", "check"), _checks(), ids=lambda v: getattr(v, "func", v))
def test_scikit_learns_own_checks(estimator, check) -> None:
    check(estimator)


def test_it_finds_directions_that_are_there() -> None:
    rng = np.random.default_rng(0)
    truth = np.linalg.qr(rng.normal(size=(20, 20)))[0][:12]
    codes = (rng.random((4000, 12)) < 0.12) * rng.uniform(1, 3, (4000, 12))
    X = codes @ truth
    model = SparseAutoencoder(24, k=3, epochs=60, learning_rate=3e-3, random_state=0).fit(X)
    cosines = np.abs(truth @ model.components_.T).max(axis=1)
    assert np.mean(cosines > 0.95) > 0.9
    back = model.inverse_transform(model.transform(X))
    assert ((X - back) ** 2).sum() / ((X - X.mean(0)) ** 2).sum() < 0.1


def test_it_works_in_a_pipeline_dense_or_sparse() -> None:
    X = np.random.default_rng(0).normal(size=(200, 5))
    dense = SparseAutoencoder(8, k=2, epochs=2, sparse_output=False, random_state=1)
    sparse = SparseAutoencoder(8, k=2, epochs=2, random_state=1)
    a = make_pipeline(StandardScaler(), dense).fit_transform(X)
    b = make_pipeline(StandardScaler(), sparse).fit_transform(X)
    np.testing.assert_array_equal(a, b.toarray())
    assert list(dense.get_feature_names_out())[:2] == ["sparseautoencoder0", "sparseautoencoder1"]


@pytest.mark.parametrize("name", ["k", "epochs", "batch_size", "n_components"])
def test_sizes_are_at_least_1(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        SparseAutoencoder(**{name: 0}).fit(np.random.default_rng(0).normal(size=(20, 4)))


def test_codes_have_a_column_for_each_component() -> None:
    fitted = SparseAutoencoder(8, k=2, epochs=1).fit(np.random.default_rng(0).normal(size=(20, 4)))
    with pytest.raises(ValueError, match="9 columns"):
        fitted.inverse_transform(np.zeros((3, 9)))


def test_matching_pursuit_takes_no_more_than_k() -> None:
    X = np.random.default_rng(0).normal(size=(40, 8))
    coder = SparseAutoencoder(16, k=3, architecture="matching_pursuit", epochs=1).fit(X)
    assert coder.transform(X).getnnz(axis=1).max() <= 3


def test_a_training_that_diverged_gives_no_estimator() -> None:
    model = SparseAutoencoder(16, k=2, epochs=5, learning_rate=1e30, random_state=0)
    with pytest.raises(ValueError, match="diverged: its weights are not finite"):
        model.fit(np.random.default_rng(0).normal(size=(200, 8)))
    assert not hasattr(model, "components_")


def test_rows_that_float32_cannot_tell_apart_are_refused() -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 8))
    with pytest.raises(ValueError, match="subtract their mean"):
        SparseAutoencoder(16, k=2, epochs=1).fit(rows + 1e8)
    SparseAutoencoder(16, k=2, epochs=1).fit(rows + 1e3)
