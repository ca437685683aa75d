"""Scores of predicted probabilities over the classes that are judged.

Records of a class that is not judged never enter a score; a judged record that is taken for such a
class counts as wrong. Everything works on class codes ``0 .. n_classes - 1``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.schema.base import EstimatorScore

__all__ = ["predict_classes", "score_predictions"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


def predict_classes(proba: Float, multipliers: Float | None = None) -> Int:
    """Most probable class of each record after the class probabilities are multiplied.

    Parameters
    ----------
    proba : ndarray of float64, shape (n_records, n_classes)
        Class probabilities.
    multipliers : ndarray of float64, shape (n_classes,) or (n_records, n_classes), optional
        What each class's probability is multiplied by (a tuned threshold is a multiplier); ones if
        not given.

    Returns
    -------
    ndarray of int64, shape (n_records,)
        Class codes; the lower code where two classes tie.
    """
    weighted = proba if multipliers is None else proba * multipliers
    codes: Int = np.argmax(weighted, axis=1).astype(np.int64)
    return codes


def score_predictions(
    y: Int,
    proba: Float,
    *,
    classes: Sequence[str],
    compared: Bool,
    multipliers: Float | None = None,
) -> EstimatorScore:
    """Balanced accuracy and its companions over the judged classes that occur in ``y``.

    Parameters
    ----------
    y : ndarray of int64, shape (n_records,)
        True class codes.
    proba : ndarray of float64, shape (n_records, n_classes)
        Predicted class probabilities, rows summing to 1.
    classes : sequence of str, length n_classes
        Class names in code order.
    compared : ndarray of bool, shape (n_classes,)
        Classes that count; records of the others are left out.
    multipliers : ndarray of float64, shape (n_classes,) or (n_records, n_classes), optional
        Multipliers behind the predicted class. They change decisions (accuracy, F1, recall), not
        the probabilities that AUPRC and the Brier score look at.

    Returns
    -------
    EstimatorScore
        All values in [0, 1]. ``balanced_accuracy`` is the mean recall; ``macro_f1`` the mean F1, 0
        for a class never predicted; ``auprc`` the mean average precision of the classes other than
        the largest (two classes: of the rare one; a single class: 1 by definition); ``brier`` half
        the mean squared distance between probabilities and truth, which for two classes is Brier's
        own score; ``worst_class`` the first of the classes with the lowest recall.

    Raises
    ------
    ParameterError
        If the shapes do not fit together.
    EmptyClassError
        If no record belongs to a judged class.

    References
    ----------
    Brodersen et al. 2010, "The balanced accuracy and its posterior distribution"; Brier 1950,
    "Verification of forecasts expressed in terms of probability".
    """
    _check_shapes(y, proba, classes, compared)
    counted = compared[y]
    if not counted.any():
        raise EmptyClassError(
            "none of the judged classes has a record here, so there is nothing to score; "
            "judge classes that occur, or give more hold-out records."
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
            f"expected proba of shape {expected} and judged of shape {expected[1:]} for "
            f"{len(y)} records and {len(classes)} classes; found {proba.shape} and {compared.shape}."
        )
    if len(y) and (y.min() < 0 or y.max() >= len(classes)):
        raise ParameterError(
            f"class codes must lie in 0..{len(classes) - 1}; found {int(y.min())}..{int(y.max())}."
        )
