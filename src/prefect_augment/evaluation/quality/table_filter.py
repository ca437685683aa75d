"""The record filter of tables: distances over the columns, labels by gradient boosting."""

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
    **options: Unpack[FilterRequest],
) -> FilterOutcome:
    """Filter candidates of a table, see :func:`~.record_filter.filter_records`.

    Records are matrices of shape (n_records, n_columns): NaN for null, level codes in category
    columns. ``n_levels`` is 0 for numeric columns.
    """
    measures = table_measures(
        training,
        is_category=is_category,
        n_levels=n_levels,
        stratum_class=options["stratum_class"],
        seed=options.get("seed", 0),
    )
    return filter_records(training, validation, candidates, measures=measures, **options)


def table_measures(
    training: Labelled,
    *,
    is_category: NDArray[np.bool_],
    n_levels: NDArray[np.int64],
    stratum_class: NDArray[np.int64],
    seed: int,
) -> Measures:
    """How records of a table are measured."""
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
    """Class-balanced boosting on real records, for :func:`~.label_fidelity.utility_scores`."""
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
