"""The estimators: what they survive, and that they are repeatable."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.evaluation.classifiers import base as estimators
from prefect_augment.evaluation.classifiers.base import balanced_weights, fit_estimator
from prefect_augment.evaluation.classifiers.soft_label_ensemble import fit_teacher


@pytest.fixture(params=["boosting", "logistic"])
def kind(request):
    return request.param


def mixed_table(n=400, n_classes=3, seed=0):
    """Two numerics with nulls and one category, all of them telling of the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    X = np.column_stack([y + 0.3 * rng.normal(size=n), rng.normal(size=n), (y + 1) % 5])
    X[rng.random((n, 3)) < 0.1] = np.nan
    return X, y, np.array([0, 0, 5])


def fit(kind, X, y, n_levels, **options):
    given = {"weights": None, "n_classes": int(y.max()) + 1, "seed": 0, **options}
    return fit_estimator(kind, X, y, n_levels=n_levels, **given)


def test_learns_what_the_columns_tell(kind):
    X, y, n_levels = mixed_table()
    X_new, y_new, _ = mixed_table(seed=1)
    proba = fit(kind, X, y, n_levels).predict_proba(X_new)
    assert proba.sum(axis=1) == pytest.approx(1)
    assert (proba.argmax(axis=1) == y_new).mean() > 0.95


def test_absent_classes_get_probability_zero(kind):
    X, y, n_levels = mixed_table(n_classes=2)
    proba = fit(kind, X, y * 2, n_levels, n_classes=5).predict_proba(X)
    assert proba.shape == (len(X), 5)
    assert (proba[:, [1, 3, 4]] == 0).all()
    assert (proba.argmax(axis=1) == y * 2).mean() > 0.9


def test_troublesome_columns_do_not_stop_it(kind):
    """An all-null, a constant and an infinite column, and a level that training had not."""
    X, y, n_levels = mixed_table()
    n = len(X)
    infinite = np.where(np.arange(n) % 7 == 0, np.inf, X[:, 0])
    X = np.column_stack([X, np.full(n, np.nan), np.ones(n), infinite, np.full(n, np.nan)])
    estimator = fit(kind, X, y, np.r_[n_levels, 0, 0, 0, 0])
    new = X.copy()
    new[:5, 2] = 4
    new[:5, 3] = 1.0  # null throughout in training
    new[:5, 5] = -np.inf
    assert np.isfinite(estimator.predict_proba(new)).all()
    assert estimator.predict_proba(new[:0]).shape == (0, 3)


def test_numbers_whose_squares_no_float_holds_leave_the_others_their_say(kind):
    X, y, n_levels = mixed_table()
    ends = np.where(np.arange(len(X)) % 2, 1.7e308, -1.7e308)
    estimator = fit(kind, np.c_[X, ends], y, np.r_[n_levels, 0])
    proba = estimator.predict_proba(np.c_[X, ends])
    assert np.isfinite(proba).all()
    assert (proba.argmax(axis=1) == y).mean() > 0.9


def test_category_with_thousands_of_levels_is_learnt_without_blowing_up(kind):
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.integers(0, 3000, 2000), rng.normal(size=2000)]).astype(float)
    y = (X[:, 1] > 0).astype(np.int64)
    estimator = fit(kind, X, y, np.array([3000, 0]))
    assert (estimator.predict_proba(X).argmax(axis=1) == y).mean() > 0.9


@pytest.mark.parametrize("case", ["one class", "no values", "one record"])
def test_nothing_to_tell_apart_gives_the_shares(kind, case):
    X, y, n_levels = mixed_table(n_classes=2)
    if case == "one class":
        y = np.ones_like(y)
    elif case == "one record":
        X, y = X[:1], y[:1]
    else:
        X = np.full_like(X, np.nan)
    proba = fit(kind, X, y, n_levels, n_classes=2).predict_proba(X)
    assert proba == pytest.approx(np.tile(np.bincount(y, minlength=2) / len(y), (len(X), 1)))


def test_only_the_proportions_of_weights_matter(kind):
    X, y, n_levels = mixed_table()
    w = balanced_weights(y)
    a = fit(kind, X, y, n_levels, weights=w).predict_proba(X)
    b = fit(kind, X, y, n_levels, weights=1024 * w).predict_proba(X)
    assert a == pytest.approx(b, abs=1e-6)


def test_records_of_weight_zero_are_not_learnt_from(kind):
    X, y, n_levels = mixed_table()
    weights = (np.arange(len(y)) % 2).astype(float)
    used = weights > 0
    a = fit(kind, X, y, n_levels, weights=weights).predict_proba(X)
    b = fit(kind, X[used], y[used], n_levels).predict_proba(X)
    assert np.array_equal(a, b)


def test_balanced_weights_give_every_class_the_same_sum():
    y = np.array([0, 0, 0, 2])
    w = balanced_weights(y)
    assert w[:3].sum() == pytest.approx(w[3:].sum())
    assert w.mean() == pytest.approx(1)


def test_logistic_regression_is_that_of_scikit_learn():
    X, y, n_levels = mixed_table()
    X = X[:, :2]
    X = np.where(np.isnan(X), np.nanmedian(X, axis=0), X)
    ours = fit("logistic", X, y, n_levels[:2]).predict_proba(X)
    scaled = StandardScaler().fit_transform(X)
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(scaled, y)
    assert ours == pytest.approx(theirs.predict_proba(scaled), abs=2e-3)


def test_boosting_does_not_diverge_with_a_class_of_two_records():
    """Multiclass boosting without regularisation does, and plain training then looks bad."""
    rng = np.random.default_rng(0)
    y = np.array([0] * 2500 + [1] * 140 + [2] * 70 + [3] * 2)
    X = rng.normal(size=(len(y), 6)) + 2.0 * np.eye(4, 6)[y]
    X[y == 1] += 3
    X[y == 2] -= 3
    estimator = fit("boosting", X, y, np.zeros(6, int))
    recall = [(estimator.predict_proba(X[y == k]).argmax(axis=1) == k).mean() for k in (0, 1, 2)]
    assert min(recall) > 0.95


@pytest.mark.slow
def test_fits_in_threads_give_the_bytes_of_fits_in_a_row(kind):
    X, y, n_levels = mixed_table(n=1500)

    def one(seed):
        return fit(kind, X, y, n_levels, seed=seed).predict_proba(X).tobytes()

    alone = [one(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == alone


def test_a_fit_leaves_no_trace_in_the_process():
    """Neither warning filters nor thread limits, also when blocks of threads overlap."""
    filters = list(warnings.filters)
    before = [pool["num_threads"] for pool in threadpool_info()]
    X, y, n_levels = mixed_table(n=1500)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda s: fit("logistic", X, y, n_levels, seed=s), range(8)))
    assert [pool["num_threads"] for pool in threadpool_info()] == before
    assert list(warnings.filters) == filters


def test_unusable_values_are_refused():
    X, y, n_levels = mixed_table()
    with pytest.raises(ParameterError, match="unknown"):
        fit("forest", X, y, n_levels)
    with pytest.raises(ParameterError, match="negative"):
        fit("logistic", X, y, n_levels, weights=-np.ones(len(y)))
    with pytest.raises(EmptyClassError, match="positive weight"):
        fit("logistic", X, y, n_levels, weights=np.zeros(len(y)))


@pytest.mark.parametrize("n_classes", [2, 5])
def test_many_coefficients_are_learnt_in_blocks_with_the_same_outcome(monkeypatch, n_classes):
    X, y, n_levels = mixed_table(n_classes=n_classes)
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(y))
    whole = fit("logistic", X, y, n_levels, weights=weights).predict_proba(X)
    monkeypatch.setattr(estimators, "FEW_COEFFICIENTS", 0)
    monkeypatch.setattr(estimators, "BLOCK_PROBABILITIES", 100)
    blocks = fit("logistic", X, y, n_levels, weights=weights).predict_proba(X)
    assert np.allclose(whole, blocks, atol=1e-3)


@pytest.mark.slow
def test_seeds_beyond_32_bits_are_taken() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 2)), rng.integers(0, 2, 60)
    columns: Any = {"n_levels": np.zeros(2, dtype=np.int64)}
    for seed in (20_261_121_000, 2**40):  # a date, times the thousand that a run makes of it
        fit_estimator("boosting", X, y, weights=None, n_classes=2, seed=seed, **columns)
        fit_teacher(X, y, n_classes=2, seed=seed, **columns)
