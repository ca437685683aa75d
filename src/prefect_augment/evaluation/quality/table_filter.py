"""The gate on tables: distances over the columns, class probabilities by gradient boosting."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import FilterOutcome, FilterRequest, Labelled
from prefect_augment.evaluation.classifiers.base import Classifier, balanced_weights, fit_estimator
from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.quality.prdc import c2st_auc
from prefect_augment.evaluation.quality.record_filter import Measures, filter_records

__all__ = ["filter_table", "table_measures", "utility_filter"]


def filter_table(
    training: Labelled,
    validation: Labelled,
    candidates: Labelled,
    *,
    is_category: NDArray[np.bool_],
    n_levels: NDArray[np.int64],
    **asked: Unpack[FilterRequest],
) -> FilterOutcome:
    """Judge candidates of a table, and keep what is wanted of those that pass.

    Parameters
    ----------
    training, validation, candidates : Labelled
        Matrices of shape (n_records, n_columns); NaN for null, level codes in category columns.
    is_category : ndarray of bool, shape (n_columns,)
    n_levels : ndarray of int64, shape (n_columns,)
        Levels of each category column; 0 for numerics.
    **asked
        As for :func:`~prefect_augment.evaluation.quality.record_filter.filter_records`.
    """
    measures = table_measures(
        training,
        is_category=is_category,
        n_levels=n_levels,
        stratum_class=asked["stratum_class"],
        seed=asked.get("seed", 0),
    )
    return filter_records(training, validation, candidates, measures=measures, **asked)


def table_measures(
    training: Labelled,
    *,
    is_category: NDArray[np.bool_],
    n_levels: NDArray[np.int64],
    stratum_class: NDArray[np.int64],
    seed: int,
) -> Measures:
    """How records of a table are measured.

    Parameters
    ----------
    training : Labelled
    is_category, n_levels
        As for :func:`filter_table`.
    stratum_class : ndarray of int64, shape (n_strata,)
        Class code of each stratum.
    seed : int
        Of the classifiers.
    """
    n_classes = int(stratum_class.max()) + 1

    def train(X: NDArray[Any], y: NDArray[np.int64]) -> Classifier:
        return utility_filter(
            X, y, is_category=is_category, n_levels=n_levels, n_classes=n_classes, seed=seed
        )

    def two_sample(real: NDArray[Any], synthetic: NDArray[Any]) -> float:
        return c2st_auc(real, synthetic, is_category=is_category, n_levels=n_levels, seed=seed)

    return Measures(FeatureSpace.of(training.X, is_category), train, two_sample)


def utility_filter(
    X: NDArray[np.float64],
    y: NDArray[np.int64],
    *,
    is_category: NDArray[np.bool_],
    n_levels: NDArray[np.int64],
    n_classes: int,
    seed: int,
) -> Classifier:
    """Class-balanced boosting on real records: what :func:`.utility_scores` asks.

    Parameters
    ----------
    X : ndarray of float64, shape (n_records, n_columns)
        The matrix form.
    y : ndarray of int64, shape (n_records,)
        Class codes.
    is_category, n_levels
        As for :func:`filter_table`.
    n_classes : int
    seed : int
    """
    return fit_estimator(
        "boosting",
        X,
        y,
        weights=balanced_weights(y),
        is_category=is_category,
        n_levels=n_levels,
        n_classes=n_classes,
        seed=seed,
    )
