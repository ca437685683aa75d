"""Bins before boosting: the same trees as scikit-learn's own bins, to the last bit."""

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from prefect_augment.evaluation.classifiers.quantile_bins import MAX_BINS, Bins, CodedBoosting


def columns(n: int, seed: int) -> np.ndarray:
    """Continuous, whole, rounded, few-valued and mostly zero."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.normal(size=n),
        rng.integers(0, 400, n),
        rng.exponential(size=n).round(2),
        rng.integers(0, 5, n),
        np.where(rng.random(n) < 0.7, 0.0, rng.normal(size=n)),
    ]
    return np.stack(parts, axis=1).astype(np.float64)


@pytest.mark.parametrize("with_nulls", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_boosting_predicts_the_same_to_the_bit(seed: int, weighted: bool, with_nulls: bool) -> None:
    X, new = columns(900 + 700 * seed, seed), columns(400, 100 + seed)
    rng = np.random.default_rng(seed)
    y = (X[:, 0] > 0.5).astype(int) + (X[:, 1] > 300)
    weights = rng.choice([0.3, 1.0, 7.0, 1 / 3], len(X)) if weighted else np.ones(len(X))
    if with_nulls:
        X[rng.random(X.shape) < 0.05] = np.nan
        new[rng.random(new.shape) < 0.05] = np.nan
    bins = Bins.of(X, weights, np.ones(5, dtype=bool))
    assert {0, 1} <= set(bins.thresholds)
    plain, binned = (
        HistGradientBoostingClassifier(max_iter=10, early_stopping=False, random_state=0)
        for _ in range(2)
    )
    expected = plain.fit(X, y, sample_weight=weights).predict_proba(new)
    found = binned.fit(bins.take(X), y, sample_weight=weights).predict_proba(bins.take(new))
    assert (found == expected).all()


def test_columns_of_few_values_and_categories_stay_as_they_are() -> None:
    X = columns(2000, 0)
    is_numeric = np.array([True, False, True, True, True])
    bins = Bins.of(X, np.ones(len(X)), is_numeric)
    assert not {1, 3} & set(bins.thresholds)
    taken = bins.take(X)
    assert (taken[:, [1, 3]] == X[:, [1, 3]]).all()
    assert taken[:, 0].max() < MAX_BINS
    assert X is not taken


def test_nothing_is_binned_where_scikit_learn_is_quick_itself() -> None:
    X = columns(MAX_BINS, 0)
    bins = Bins.of(X, np.ones(len(X)), np.ones(5, dtype=bool))
    assert bins.thresholds == {}
    assert bins.take(X) is X


@pytest.mark.parametrize("seed", range(3))
def test_codes_of_categories_give_the_trees_of_scikit_learn_s_encoder(seed: int) -> None:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(900, 5))
    native = np.array([False, True, False, True, True])
    X[:, native] = rng.choice([0, 2, 3, 7, 11], size=(900, 3))  # gaps: levels that training lacks
    X[rng.random(X.shape) < 0.05] = np.nan
    y = ((X[:, 1] == 3) + (X[:, 0] > 0) + (X[:, 4] > 2)).astype(int)
    new = rng.choice([0, 1, 3, 7, 12, np.nan], size=(300, 5))
    expected, found = (
        kind(max_iter=10, categorical_features=native, early_stopping=False, random_state=0)
        .fit(X, y, sample_weight=np.arange(900) + 1.0)
        .predict_proba(new)
        for kind in (HistGradientBoostingClassifier, CodedBoosting)
    )
    assert (found == expected).all()
    assert len(np.unique(found, axis=0)) > 20
