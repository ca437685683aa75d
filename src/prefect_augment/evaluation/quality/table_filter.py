"""How the filter measures records of tables: distances over the columns, labels by gradient boosting."""

from prefect_augment.array_types import Array, Bool, Float, Int
from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.classifiers.base import Classifier, balanced_weights, fit_estimator
from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.quality.near_copies import Measures
from prefect_augment.evaluation.quality.prdc import c2st_auc


def table_measures(
    training: Labelled, *, is_category: Bool, n_levels: Int, stratum_class: Int, seed: int
) -> Measures:
    """How records of a table are measured, matrices of shape (n_records, n_columns).

    NaN is null; category columns have level codes. ``n_levels`` is 0 for numeric columns.
    """

    def train(X: Array, y: Int) -> Classifier:
        n_classes = int(stratum_class.max()) + 1
        return utility_filter(X, y, n_levels=n_levels, n_classes=n_classes, seed=seed)

    def two_sample(real: Array, synthetic: Array) -> float:
        return c2st_auc(real, synthetic, n_levels=n_levels, seed=seed)

    return Measures(FeatureSpace.of(training.X, is_category), train, two_sample)


def utility_filter(X: Float, y: Int, *, n_levels: Int, n_classes: int, seed: int) -> Classifier:
    """Class-balanced boosting on real records, for :func:`~.label_fidelity.utility_scores`."""
    return fit_estimator(
        "boosting",
        X,
        y,
        weights=balanced_weights(y),
        n_levels=n_levels,
        n_classes=n_classes,
        seed=seed,
    )
