"""Tree ensembles by name: one contract, with nulls, categories, absent classes and records of weight 0."""

import numpy as np
import pytest

from prefect_augment.evaluation.classifiers.tree_ensembles import fit_named
from prefect_augment.params.estimators import Estimator


def records() -> tuple[np.ndarray, np.ndarray]:
    """Two numbers, the second a huge one, and a category that decides, with nulls."""
    rng = np.random.default_rng(0)
    site = rng.integers(0, 4, 300).astype(float)
    y = np.where(site == 3, 2, 0)
    X = np.column_stack([rng.normal(size=300), rng.normal(size=300) * 1e200, site])
    X[:20, 0] = np.nan
    X[20:30, 2] = np.nan
    return X, y


@pytest.mark.parametrize("kind", ["random_forest", "lightgbm", "xgboost", "catboost"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_it_reads_nulls_and_categories_and_repeats(kind: Estimator, n_classes: int) -> None:
    if kind != "random_forest":
        pytest.importorskip(kind)
    X, y = records()
    y = y if n_classes == 2 else np.where((X[:, 0] > 0) & (y == 0), 1, y)
    weights = np.where(np.arange(300) < 10, 0.0, 1.0)

    def predicted(seed: int) -> np.ndarray:
        fitted = fit_named(
            kind, X, y, weights=weights,
            n_levels=np.array([0, 0, 9]), n_classes=4, seed=seed, step_share=0.3,
        )  # fmt: skip
        unseen = np.array([[np.inf, -np.inf, 8.0], [np.nan, np.nan, np.nan]])
        return fitted.predict_proba(np.concatenate([X, unseen]))

    proba = predicted(1)
    assert proba.shape == (302, 4)
    assert np.allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert (proba[:, 3] == 0).all()
    assert ((proba[30:300, 2] > 0.5) == (y[30:] == 2)).mean() > 0.95
    assert np.array_equal(proba, predicted(1))
