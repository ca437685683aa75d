"""Scores of predicted probabilities over the compared classes.

Records of other classes never enter a score; a compared record that is predicted as another class
counts as wrong. Class codes are ``0 .. n_classes - 1``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.schema import EstimatorScore

__all__ = ["predict_classes", "score_predictions"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


def predict_classes(proba: Float, multipliers: Float | None = None) -> Int:
    """Most probable class code of each record after multiplication; the lower code where two tie.

    ``multipliers`` have shape (n_classes,) or (n_records, n_classes).
    """
    weighted = proba if multipliers is None else proba * multipliers
    codes: Int = np.argmax(weighted, axis=1).astype(np.int64)
    return codes


def score_predictions(
    y: Int,  # (n_records,)
    proba: Float,  # (n_records, n_classes), rows sum to 1
    *,
    classes: Sequence[str],
    compared: Bool,  # (n_classes,) classes that count
    multipliers: Float | None = None,
) -> EstimatorScore:
    """Balanced accuracy and other scores over the compared classes that occur in ``y``; all in [0, 1].

    ``balanced_accuracy`` is the mean recall (Brodersen et al. 2010); ``macro_f1`` the mean F1, 0
    for a class never predicted; ``auprc`` the mean average precision of the classes other than the
    largest (1 for a single class); ``brier`` half the mean squared distance between probabilities
    and truth, which for two classes is Brier's own score (Brier 1950); ``worst_class`` the first
    class with the lowest recall. ``multipliers`` change decisions (accuracy, F1, recall), not the
    probabilities behind AUPRC and the Brier score. ParameterError if the shapes do not fit
    together; EmptyClassError if no record belongs to a compared class.
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
    return EstimatorScore(
        balanced_accuracy=float(recall.mean()),
        macro_f1=float(f1.mean()),
        auprc=_auprc(y, proba, present, n_true),
        worst_recall=float(recall[worst]),
        worst_class=classes[int(present[worst])],
        brier=_brier(y, proba),
        recall={classes[int(k)]: float(r) for k, r in zip(present, recall, strict=True)},
    )


def _auprc(y: Int, proba: Float, present: Int, n_true: Int) -> float:
    """Mean average precision of the classes other than the largest."""
    largest = present[np.argmax(n_true[present])]
    rarer = [k for k in present if k != largest]
    if not rarer:
        return 1.0
    return float(np.mean([average_precision_score(y == k, proba[:, k]) for k in rarer]))


def _brier(y: Int, proba: Float) -> float:
    """Half of the mean over records of sum_k (p_k - [y = k])^2."""
    of_truth = proba[np.arange(len(y)), y]
    return float(np.mean((proba**2).sum(axis=1) - 2 * of_truth + 1) / 2)


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
