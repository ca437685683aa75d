"""Does a record look like its class: two classifiers from disjoint halves of the training records.

One half trains the filter that picks records for *utility*, the other the judge of labels, so that
records are not picked for the quirks of the classifier that then judges them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.classifiers.base import Classifier, TrainClassifier
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.neighbours import MIN_VALIDATION

__all__ = ["Halves", "label_limits", "mistaken", "real_probabilities", "utility_scores"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

MIN_TO_CLASSIFY = 5  # of a class, in the half that the classifier learns from


@dataclass(frozen=True)
class Halves:
    """Two classifiers from disjoint halves of the training records: one filters, the other judges."""

    filter: Classifier | None  # none where no record is picked
    judge: Classifier
    unseen_by_filter: (
        Labelled  # the filter's half: real records to compare with, where validation is small
    )
    n_judge: Int  # records per class that the judge learnt from

    @classmethod
    def of(
        cls,
        training: Labelled,
        keys: Sequence[str] | NDArray[np.str_],
        groups: Any,
        stratum_class: Int,
        train: TrainClassifier,
        seed: int,
        *,
        with_filter: bool = True,
    ) -> Halves:
        """Both classifiers, trained on training records that are split by key."""
        n_classes = int(stratum_class.max()) + 1
        y = stratum_class[training.stratum]
        fold = stratified_folds(y, groups, 2, seed, keys)

        def train_on(rows: Bool) -> Classifier:
            # A half can be empty where one record is all there is.
            rows = rows if rows.any() else np.ones(len(y), dtype=bool)
            return train(training.X[rows], y[rows])

        a, b = fold == 0, fold == 1
        n_judge = np.bincount(y[b], minlength=n_classes)
        with ThreadPoolExecutor(2) as pool:  # networks take one core each
            judge = pool.submit(train_on, b)
            filter_of = pool.submit(train_on, a).result() if with_filter else None
        return cls(filter_of, judge.result(), Labelled(training.X[a], training.stratum[a]), n_judge)


def utility_scores(classifier: Classifier, X: NDArray[Any], wanted_class: Int) -> Float:
    """Probability that the utility filter gives to the class each candidate was asked for.

    Parameters
    ----------
    classifier : Classifier
        Trained on real training records, class-balanced.
    X : ndarray, shape (n_candidates, ...)
    wanted_class : ndarray of int64, shape (n_candidates,)

    Returns
    -------
    ndarray of float64, shape (n_candidates,)
        In [0, 1]; 0 for a class the classifier has not seen.
    """
    return classifier.predict_proba(X)[np.arange(len(X)), wanted_class]


def real_probabilities(
    halves: Halves, validation: Labelled, stratum_class: Int
) -> tuple[Float | None, ...]:
    """What the judge says of real records that neither classifier has seen, per class.

    Parameters
    ----------
    halves : Halves
    validation : Labelled
        Where a class has fewer than 20 of them, its records of the filter's half, which the judge
        has not seen either, join in.
    stratum_class : ndarray of int64, shape (n_strata,)

    Returns
    -------
    tuple of ndarray of float64, shape (n_real, n_classes), or None
        One entry per class; None where it has too few records to tell.
    """
    unseen = halves.unseen_by_filter
    y_validation, y_unseen = stratum_class[validation.stratum], stratum_class[unseen.stratum]
    p_validation = halves.judge.predict_proba(validation.X)
    p_unseen = halves.judge.predict_proba(unseen.X)
    found: list[Float | None] = []
    for k, n_judge in enumerate(halves.n_judge):
        real = p_validation[y_validation == k]
        if len(real) < MIN_VALIDATION:
            real = np.concatenate([real, p_unseen[y_unseen == k]])
        found.append(real if min(n_judge, len(real)) >= MIN_TO_CLASSIFY else None)
    return tuple(found)


def label_limits(real: Sequence[Float | None], quantile: float) -> Float:
    """Lowest probability of its class that a record may have, per class.

    Parameters
    ----------
    real : sequence of ndarray of float64 or None, length n_classes
        From :func:`real_probabilities`.
    quantile : float in [0, 1)
        Share of real records that would fall below.

    Returns
    -------
    ndarray of float64, shape (n_classes,)
        NaN where a class has too few records to tell.
    """
    limits = [np.nan if p is None else np.quantile(p[:, k], quantile) for k, p in enumerate(real)]
    return np.array(limits, dtype=np.float64)


def mistaken(proba: Float, classes: Int | int) -> Bool:
    """Which records the judge takes for another class than the one they are of, shape (n,)."""
    found: Bool = proba.argmax(axis=1) != classes
    return found
