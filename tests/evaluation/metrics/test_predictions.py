"""Scores against scikit-learn and against numbers worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    recall_score,
)

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.evaluation.metrics.predictions import predict_classes, score_predictions

ALL = np.ones(3, dtype=bool)


def test_scores_of_six_records_are_those_worked_out_by_hand():
    """Recalls 2/3, 1/2, 1; F1 4/5, 1/2, 2/3; class 0 is the largest and has no part in AUPRC."""
    y = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 2, 2])
    score = score_predictions(y, np.eye(3)[predicted], classes=["a", "b", "c"], compared=ALL)
    assert score.recall == pytest.approx({"a": 2 / 3, "b": 1 / 2, "c": 1.0})
    assert score.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert score.macro_f1 == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert (score.worst_class, score.worst_recall) == ("b", 0.5)
    assert score.brier == pytest.approx(2 / 6)  # two of six records are wrong with certainty
    # Class b: one of two found at precision 1/2, the other with all the rest at 2/6. Class c: found at precision 1/2.
    assert score.auprc == pytest.approx(((0.5 * 0.5 + 0.5 * 2 / 6) + 0.5) / 2)


def test_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.choice(4, size=500, p=[0.6, 0.2, 0.15, 0.05])
    proba = rng.dirichlet(np.ones(4), size=500) + 0.5 * np.eye(4)[y]
    proba /= proba.sum(axis=1, keepdims=True)
    score = score_predictions(y, proba, classes=list("abcd"), compared=np.ones(4, dtype=bool))
    predicted = proba.argmax(axis=1)
    assert score.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, predicted))
    assert score.macro_f1 == pytest.approx(f1_score(y, predicted, average="macro"))
    assert list(score.recall.values()) == pytest.approx(recall_score(y, predicted, average=None))
    assert score.brier == pytest.approx(brier_score_loss(y, proba, scale_by_half=True))
    one_against_rest = [average_precision_score(y == k, proba[:, k]) for k in (1, 2, 3)]
    assert score.auprc == pytest.approx(np.mean(one_against_rest))


def test_two_classes_have_the_auprc_of_the_rare_one():
    rng = np.random.default_rng(1)
    y = (rng.random(300) < 0.1).astype(np.int64)
    p = np.clip(0.2 + 0.3 * y + 0.2 * rng.normal(size=300), 0, 1)
    score = score_predictions(
        y, np.column_stack([1 - p, p]), classes=["no", "yes"], compared=ALL[:2]
    )
    assert score.auprc == pytest.approx(average_precision_score(y, p))
    assert score.brier == pytest.approx(np.mean((p - y) ** 2))


def test_classes_that_are_not_compared_do_not_enter():
    rng = np.random.default_rng(2)
    y = np.array([0] * 50 + [1] * 20 + [2] * 5)
    proba = rng.dirichlet(np.ones(3), size=len(y))
    compared = np.array([True, True, False])
    score = score_predictions(y, proba, classes=["a", "b", "c"], compared=compared)
    without = score_predictions(y[:70], proba[:70], classes=["a", "b", "c"], compared=compared)
    assert score == without
    assert set(score.recall) == {"a", "b"}


def test_a_compared_class_without_records_is_left_out_of_the_mean():
    y = np.array([0, 0, 1])
    score = score_predictions(y, np.eye(3)[[0, 1, 1]], classes=["a", "b", "c"], compared=ALL)
    assert score.balanced_accuracy == pytest.approx((0.5 + 1.0) / 2)


def test_multipliers_move_decisions_and_not_probabilities():
    y = np.array([0, 0, 1, 1])
    proba = np.array([[0.9, 0.1], [0.7, 0.3], [0.7, 0.3], [0.6, 0.4]])
    plain = score_predictions(y, proba, classes=["a", "b"], compared=ALL[:2])
    moved = score_predictions(
        y, proba, classes=["a", "b"], compared=ALL[:2], multipliers=np.array([1.0, 2.0])
    )
    assert plain.recall == {"a": 1.0, "b": 0.0}
    assert moved.recall == {"a": 1.0, "b": 0.5}
    assert (moved.auprc, moved.brier) == (plain.auprc, plain.brier)


def test_multipliers_may_differ_per_record():
    proba = np.full((2, 2), 0.5)
    assert list(predict_classes(proba, np.array([[1.0, 2.0], [2.0, 1.0]]))) == [1, 0]


def test_single_class_has_an_auprc_of_one():
    score = score_predictions(
        np.zeros(3, int), np.eye(3)[[0, 0, 1]], classes=list("abc"), compared=ALL
    )
    assert score.auprc == 1.0
    assert score.balanced_accuracy == pytest.approx(2 / 3)


def test_nothing_to_score_is_an_error():
    with pytest.raises(EmptyClassError, match="nothing to score"):
        score_predictions(np.array([2]), np.eye(3)[[2]], classes=list("abc"), compared=~ALL)


@pytest.mark.parametrize(
    ("y", "proba"),
    [([0, 1], np.ones((2, 2))), ([0, 1], np.ones((3, 3))), ([0, 3], np.ones((2, 3)))],
)
def test_arrays_that_do_not_fit_together_are_refused(y, proba):
    with pytest.raises(ParameterError, match=r"class codes must|expected proba"):
        score_predictions(np.array(y), proba, classes=list("abc"), compared=ALL)
