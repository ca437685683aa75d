"""A head on frozen features: a logistic regression as scikit-learn has it, weighted."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from prefect_augment.evaluation.classifiers.linear_probe import LinearProbe, fit_probe


def features(n: int = 300, n_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.choice(n_classes, n, p=[0.6, 0.25, 0.1, 0.05])
    return rng.normal(size=(n, 40)) + 0.8 * np.eye(n_classes, 40)[y], y


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_it_is_scikit_learns_on_standardised_features(C: float) -> None:
    X, y = features()
    scaler = StandardScaler().fit(X)
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=1000).fit(scaler.transform(X), y)
    proba = LinearProbe(C).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(proba, theirs.predict_proba(scaler.transform(X)), atol=1e-3)


def test_a_class_without_records_has_probability_zero_and_weights_count() -> None:
    X, y = features()
    plain = fit_probe(X, y, C=0.1, weights=None, n_classes=5).predict_proba(X)
    assert plain.shape == (300, 5)
    assert not plain[:, 4].any()
    weights = np.where(y == 3, 20.0, 1.0)
    weighted = fit_probe(X, y, C=0.1, weights=weights, n_classes=5).predict_proba(X)
    assert weighted[:, 3].mean() > 2 * plain[:, 3].mean()


def test_classes_keep_their_names() -> None:
    X, y = features()
    names = np.array(["free", "crack", "fray", "uneven"])
    model = LinearProbe().fit(X, names[y], sample_weight=np.ones(len(y)))
    assert set(model.predict(X)) <= set(names)
    assert list(model.classes_) == sorted(names)
    assert model.n_features_in_ == 40
