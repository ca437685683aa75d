"""Scores of predicted probabilities over the compared classes.

Records of other classes never enter a score; a compared record that is predicted as another class
counts as wrong. Class codes are ``0 .. n_classes - 1``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.evaluation.metrics.measures import (
    Measure,
    average_precision,
    balanced_accuracy,
    brier,
    log_loss,
    roc_auc,
)
from prefect_augment.schema import EstimatorScore


def predict_classes(proba: Float, multipliers: Float | None = None) -> Int:
    """Most probable class code of each record after multiplication; the lower code where two tie.

    ``multipliers`` have shape (n_classes,) or (n_records, n_classes).
    """
    weighted = proba if multipliers is None else proba * multipliers
    return np.argmax(weighted, axis=1).astype(np.int64)


def score_predictions(
    y: Int,  # (n_records,)
    proba: Float,  # (n_records, n_classes), rows sum to 1
    *,
    classes: Sequence[str],
    compared: Bool,  # (n_classes,) classes that count
    multipliers: Float | None = None,
    measure: Measure | None = None,
) -> EstimatorScore:
    """Balanced accuracy and other scores over the compared classes that occur in ``y``.

    They are the measures of :mod:`.measures`; ``auprc`` is 1 for a single class, ``worst_class`` the first class with
    the lowest recall, and ``metric`` the value of ``measure`` (balanced accuracy without one). ``multipliers`` change
    decisions (accuracy, F1, recall), not the probabilities behind AUPRC, ROC AUC, log loss and the Brier score.
    ParameterError if the shapes do not fit together; EmptyClassError if no record belongs to a compared class.
    """
    _check_shapes(y, proba, classes, compared)
    counted = compared[y]
    if not counted.any():
        raise EmptyClassError(
            "none of the compared classes has a record here, so there is nothing to score; "
            "compare classes that occur, or add hold-out records."
        )
    y, proba = y[counted], proba[counted]
    if multipliers is not None and multipliers.ndim == 2:
        multipliers = multipliers[counted]
    predicted = predict_classes(proba, multipliers)

    n_classes = len(classes)
    n_true = np.bincount(y, minlength=n_classes)
    n_predicted = np.bincount(predicted, minlength=n_classes)
    n_right = np.bincount(y[y == predicted], minlength=n_classes)
    present = np.flatnonzero(n_true)
    recall = n_right[present] / n_true[present]
    f1 = 2 * n_right[present] / (n_true[present] + n_predicted[present])
    worst = int(np.argmin(recall))

    def value(of: Measure) -> float | None:
        result = of.value(y, proba, predicted)
        return result if np.isfinite(result) else None

    return EstimatorScore(
        balanced_accuracy=float(recall.mean()),
        macro_f1=float(f1.mean()),
        auprc=1.0 if len(present) == 1 else average_precision(compared).value(y, proba, predicted),
        worst_recall=float(recall[worst]),
        worst_class=classes[int(present[worst])],
        brier=brier(compared).value(y, proba, predicted),
        recall={classes[int(k)]: float(r) for k, r in zip(present, recall, strict=True)},
        metric=value(measure or balanced_accuracy(compared)),
        roc_auc=value(roc_auc(compared)),
        log_loss=value(log_loss(compared)),
    )


def mean_score(scores: Sequence[EstimatorScore]) -> EstimatorScore:
    """Mean of an estimator's scores over seeds, on the same records; the worst class is that of the mean recalls."""
    recall = {k: float(np.mean([s.recall[k] for s in scores])) for k in scores[0].recall}
    worst = min(recall, key=lambda k: recall[k])

    def mean(name: str) -> Any:
        values = [getattr(s, name) for s in scores]
        return None if None in values else float(np.mean(values))

    return EstimatorScore(
        **{name: mean(name) for name in EstimatorScore.model_fields if name not in _OF_RECALL},
        worst_recall=recall[worst],
        worst_class=worst,
        recall=recall,
    )


_OF_RECALL = ("recall", "worst_recall", "worst_class")


def _check_shapes(y: Int, proba: Float, classes: Sequence[str], compared: Bool) -> None:
    """Refuse arrays that cannot belong together, before numpy broadcasts them into nonsense."""
    expected = (len(y), len(classes))
    if proba.shape != expected or compared.shape != expected[1:]:
        raise ParameterError(
            f"expected proba of shape {expected} and compared of shape {expected[1:]} for "
            f"{len(y)} records and {len(classes)} classes; got {proba.shape} and {compared.shape}."
        )
    if len(y) and (y.min() < 0 or y.max() >= len(classes)):
        raise ParameterError(
            f"class codes must lie in 0..{len(classes) - 1}; got {int(y.min())}..{int(y.max())}."
        )
