"""Whether records look like their class: classifiers from two halves of the training records.

One half trains the filter that picks records for *utility*, the other the label classifier, so that
records are not picked for the quirks of the classifier that checks their labels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefect_augment.array_types import Array, Bool, Float, Int, String
from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.classifiers.base import Classifier, TrainClassifier
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.neighbours import MIN_VALIDATION

MIN_TO_CLASSIFY = 5  # of a class, in the half that the classifier learns from


@dataclass(frozen=True)
class Halves:
    """Two classifiers from disjoint halves of the training records."""

    filter: Classifier | None  # picks records for utility; none where no record is picked
    label_classifier: Classifier
    held_out: Labelled  # the filter's half: real records to compare with where validation is small
    n_train: Int  # (n_classes,) training records of the label classifier

    @classmethod
    def of(
        cls,
        training: Labelled,
        keys: Sequence[str] | String,
        groups: Any,
        stratum_class: Int,
        train: TrainClassifier,
        seed: int,
        *,
        with_filter: bool = True,
    ) -> "Halves":
        """Train both classifiers on training records that are split by key."""
        n_classes = int(stratum_class.max()) + 1
        y = stratum_class[training.stratum]
        fold = stratified_folds(y, groups, 2, seed, keys)

        def train_on(rows: Bool) -> Classifier:
            # A half can be empty where one record is all there is.
            rows = rows if rows.any() else np.ones(len(y), dtype=bool)
            return train(training.X[rows], y[rows])

        a, b = fold == 0, fold == 1
        n_train = np.bincount(y[b], minlength=n_classes)
        with ThreadPoolExecutor(2) as pool:  # networks take one core each
            label_classifier = pool.submit(train_on, b)
            record_filter = pool.submit(train_on, a).result() if with_filter else None
        return cls(
            record_filter,
            label_classifier.result(),
            Labelled(training.X[a], training.stratum[a]),
            n_train,
        )


def utility_scores(classifier: Classifier, X: Array, wanted_class: Int) -> Float:
    """Probability that the utility filter gives to each candidate's class, shape (n_candidates,)."""
    return classifier.predict_proba(X)[np.arange(len(X)), wanted_class]


def real_probabilities(
    halves: Halves, validation: Labelled, stratum_class: Int
) -> tuple[Float | None, ...]:
    """Probabilities of real records that the label classifier has not seen, per class.

    Each entry has shape (n_real, n_classes). Where validation has fewer than 20 records of a class,
    those of the filter's half join in; None where a class still has too few.
    """
    held_out = halves.held_out
    y_validation, y_held_out = stratum_class[validation.stratum], stratum_class[held_out.stratum]
    p_validation = halves.label_classifier.predict_proba(validation.X)
    p_held_out = halves.label_classifier.predict_proba(held_out.X)
    result: list[Float | None] = []
    for k, n_train in enumerate(halves.n_train):
        real = p_validation[y_validation == k]
        if len(real) < MIN_VALIDATION:
            real = np.concatenate([real, p_held_out[y_held_out == k]])
        result.append(real if min(n_train, len(real)) >= MIN_TO_CLASSIFY else None)
    return tuple(result)


def label_limits(real: Sequence[Float | None], quantile: float) -> Float:
    """Lowest probability of its class that a record may have, shape (n_classes,).

    ``quantile`` is the share of the ``real`` records (:func:`real_probabilities`) that falls below.
    NaN for a class with too few records.
    """
    limits = [np.nan if p is None else np.quantile(p[:, k], quantile) for k, p in enumerate(real)]
    return np.array(limits, dtype=np.float64)
