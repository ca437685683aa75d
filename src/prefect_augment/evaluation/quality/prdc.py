"""Likeness of two sets of records (precision, recall, density, coverage) and the two-sample test."""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from prefect_augment.array_types import Array, Float, Int
from prefect_augment.evaluation.classifiers.base import (
    EstimatorKind,
    balanced_weights,
    fit_estimator,
)
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.neighbours import Space

MAX_COMPARED = 2000  # records a side; all distances between them take 32 MiB
# The two-sample test needs a bound on its seconds rather than its last decimal.
C2ST_FOLDS = 5
C2ST_RECORDS = 1000
C2ST_ITERATIONS = 50


class Likeness(NamedTuple):
    """Likeness of two sets; NaN with fewer than two real records or no synthetic one."""

    precision: float  # share of synthetic records within the ball of some real one
    recall: float  # share of real records within the ball of some synthetic one
    density: float  # mean number of real balls around a synthetic record, over k; 1 if alike
    coverage: float  # share of real records whose ball holds a synthetic one


def likeness(real: Array, synthetic: Array, k: int = 5, *, space: Space | None = None) -> Likeness:
    """Precision, recall, density and coverage of synthetic records against real ones.

    The first 2,000 of each count. A record's closed ball reaches to its k-th nearest neighbour.
    Distances are those of ``space``, or Euclidean (then without nulls).

    References
    ----------
    Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", section 3.
    Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models".
    """
    real, synthetic = real[:MAX_COMPARED], synthetic[:MAX_COMPARED]
    if len(real) < 2 or not len(synthetic):
        return Likeness(*[float("nan")] * 4)
    if space is None:
        among, between = cdist(real, real), cdist(real, synthetic)
        others = cdist(synthetic, synthetic)
    else:
        a, b = space.place(real), space.place(synthetic)
        among, between = space.distances(a, a), space.distances(a, b)
        others = space.distances(b, b)
    k_real = min(k, len(real) - 1)
    inside = between <= _radius(among, k_real)[:, None]
    recall = float("nan")
    if len(synthetic) > 1:
        reached = between <= _radius(others, min(k, len(synthetic) - 1))
        recall = float(reached.any(axis=1).mean())
    return Likeness(
        precision=float(inside.any(axis=0).mean()),
        recall=recall,
        density=float(inside.sum() / (k_real * len(synthetic))),
        coverage=float(inside.any(axis=1).mean()),
    )


def _radius(among: Float, k: int) -> Float:
    """Distance of each record to its k-th nearest other one; the matrix is overwritten."""
    np.fill_diagonal(among, np.inf)
    return np.partition(among, k - 1, axis=1)[:, k - 1]


def expected_coverage(n_real: int, n_synthetic: int, k: int = 5) -> float:
    """Coverage that records of the same distribution reach on average.

    1 minus the chance that the nearest k of all other records are real ones, any order being equally likely. Naeem et
    al. 2020, section 3.2, have the limit of many records, 1 - 2**-k. More than 2,000 records a side count as 2,000.
    """
    n, m = min(n_real, MAX_COMPARED), min(n_synthetic, MAX_COMPARED)
    if n < 2 or not m:
        return float("nan")
    i = np.arange(min(k, n - 1))
    return float(1.0 - np.prod((n - 1 - i) / (n - 1 + m - i)))


def c2st_auc(
    real: Float,
    synthetic: Float,
    *,
    n_levels: Int,
    seed: int = 0,
    estimator: EstimatorKind = "boosting",
    most: int = C2ST_RECORDS,
    n_iterations: int = C2ST_ITERATIONS,
) -> float:
    """AUC of a classifier that tells synthetic from real records, mean of 5-fold cross-validation.

    0.5 where the sets cannot be told apart; NaN with fewer than five records on a side. The first
    ``most`` records of each side count. ``logistic`` suits the many features that a network makes.
    Lopez-Paz & Oquab 2017, "Revisiting Classifier Two-Sample Tests".
    """
    real, synthetic = real[:most], synthetic[:most]
    if min(len(real), len(synthetic)) < C2ST_FOLDS:
        return float("nan")
    X = np.vstack([real, synthetic])
    y = np.repeat([0, 1], [len(real), len(synthetic)])
    folds = stratified_folds(y, None, C2ST_FOLDS, seed, [str(i) for i in range(len(y))])
    aucs = []
    for fold in range(C2ST_FOLDS):
        train, test = folds != fold, folds == fold
        fitted = fit_estimator(
            estimator,
            X[train],
            y[train],
            weights=balanced_weights(y[train]),
            n_levels=n_levels,
            n_classes=2,
            seed=seed,
            n_iterations=n_iterations,
        )
        aucs.append(roc_auc_score(y[test], fitted.predict_proba(X[test])[:, 1]))
    return float(np.mean(aucs))
