"""Each measure agrees with scikit-learn's, with weights, ties, absent classes and a single class."""

import numpy as np
import pytest
from sklearn import metrics

from prefect_augment.evaluation.metrics import measures
from prefect_augment.evaluation.metrics.predictions import (
    mean_score,
    predict_classes,
    score_predictions,
)

COSTS = np.array([[0.0, 1.0, 2.0], [5.0, 0.0, 1.0], [9.0, 3.0, -1.0]])
ALL = np.ones(3, dtype=bool)


def made_up(seed=0, *, n=300, n_classes=3, ties=False):
    rng = np.random.default_rng(seed)
    y = np.sort(rng.choice(n_classes, size=n, p=rng.dirichlet([9.0] * n_classes)))
    proba = rng.dirichlet(np.ones(n_classes), size=n) + 0.4 * np.eye(n_classes)[y]
    proba /= proba.sum(axis=1, keepdims=True)
    if ties:  # few distinct values, and rows that still sum to 1
        proba = np.eye(n_classes)[predict_classes(proba)] * 0.5 + 0.5 / n_classes
    return y, proba, predict_classes(proba), rng.exponential(size=n)


def recall_at(y, score, w, precision):
    p, r, _ = metrics.precision_recall_curve(y, score, sample_weight=w)
    return max(r[p >= precision])


def precision_at(y, score, w, recall):
    p, r, _ = metrics.precision_recall_curve(y, score, sample_weight=w)
    return max(p[r >= recall - 1e-12])


def rarer(y):
    return [k for k in np.unique(y) if k != np.argmax(np.bincount(y))]


PAIRS = {
    "balanced_accuracy": (
        measures.balanced_accuracy(ALL),
        lambda y, p, d, w: metrics.balanced_accuracy_score(y, d, sample_weight=w),
    ),
    "macro_f1": (
        measures.macro_f1(ALL),
        lambda y, p, d, w: metrics.f1_score(y, d, sample_weight=w, average="macro"),
    ),
    "f_beta": (
        measures.f_beta(ALL, 2, "c", 2.0),
        lambda y, p, d, w: metrics.fbeta_score(y == 2, d == 2, beta=2.0, sample_weight=w),
    ),
    "average_precision": (
        measures.average_precision(ALL),
        lambda y, p, d, w: np.mean([
            metrics.average_precision_score(y == k, p[:, k], sample_weight=w) for k in rarer(y)
        ]),
    ),
    "roc_auc": (
        measures.roc_auc(ALL),
        lambda y, p, d, w: metrics.roc_auc_score(y, p, multi_class="ovr", sample_weight=w),
    ),
    "roc_auc of one class": (
        measures.roc_auc(ALL, 1, "b"),
        lambda y, p, d, w: metrics.roc_auc_score(y == 1, p[:, 1], sample_weight=w),
    ),
    "recall_at_precision": (
        measures.recall_at_precision(ALL, 1, "b", 0.6),
        lambda y, p, d, w: recall_at(y == 1, p[:, 1], w, 0.6),
    ),
    "precision_at_recall": (
        measures.precision_at_recall(ALL, 1, "b", 0.5),
        lambda y, p, d, w: precision_at(y == 1, p[:, 1], w, 0.5),
    ),
    "log_loss": (
        measures.log_loss(ALL),
        lambda y, p, d, w: metrics.log_loss(y, p, sample_weight=w, labels=range(3)),
    ),
    "brier": (
        measures.brier(ALL),
        lambda y, p, d, w: metrics.brier_score_loss(
            y, p, sample_weight=w, labels=range(3), scale_by_half=True
        ),
    ),
    "cost": (
        measures.cost(ALL, COSTS),
        lambda y, p, d, w: np.average(COSTS[y, d], weights=w),
    ),
}  # fmt: skip


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_values_are_those_of_scikit_learn(name, ties):
    measure, expected = PAIRS[name]
    y, proba, decided, w = made_up(ties=ties)
    assert measure.value(y, proba, decided) == pytest.approx(expected(y, proba, decided, None))
    assert measure.value(y, proba, decided, w) == pytest.approx(expected(y, proba, decided, w))


@pytest.mark.parametrize("name", PAIRS)
def test_a_draw_is_the_value_with_its_weights(name, monkeypatch):
    """In chunks of a few draws too, and where units of several records are drawn together."""
    monkeypatch.setattr(measures, "CHUNK_BYTES", 30_000)
    measure, _ = PAIRS[name]
    y, proba, decided, _ = made_up(1)
    rng = np.random.default_rng(2)
    W, unit = rng.exponential(size=(9, 40)), rng.integers(0, 40, len(y))
    one_by_one = [measure.value(y, proba, decided, w[unit]) for w in W]
    assert measure.values(y, proba, decided, W[:, unit]) == pytest.approx(one_by_one)
    assert measure.values(y, proba, decided, W, unit=unit) == pytest.approx(one_by_one)


@pytest.mark.parametrize("name", PAIRS)
def test_weights_are_repetitions_and_their_scale_does_not_matter(name):
    """With whole numbers, 0 among them, a draw is the table with records repeated."""
    measure, _ = PAIRS[name]
    y, proba, decided, _ = made_up(3)
    times = np.random.default_rng(4).poisson(1.0, len(y))
    rows = np.repeat(np.arange(len(y)), times)
    found = measure.values(y, proba, decided, np.stack([times, times * 7.0]))
    if (
        name == "average_precision"
    ):  # the largest class is that of all records, whatever a draw holds
        assert len({int(np.argmax(np.bincount(y))), int(np.argmax(np.bincount(y[rows])))}) == 1
    assert found == pytest.approx(np.full(2, measure.value(y[rows], proba[rows], decided[rows])))


def test_absent_classes_are_left_out_and_one_class_is_undefined_where_two_are_needed():
    y, proba, decided, _ = made_up(5)
    rows = y != 2
    y, proba, decided = y[rows], proba[rows], decided[rows]
    ours = measures.balanced_accuracy(ALL).value(y, proba, decided)
    assert ours == pytest.approx(np.mean([np.mean(decided[y == k] == k) for k in (0, 1)]))
    assert measures.macro_f1(ALL).value(y, proba, decided) == pytest.approx(
        metrics.f1_score(y, decided, average="macro", labels=[0, 1])
    )
    assert np.isnan(measures.f_beta(ALL, 2, "c", 1.0).value(y, proba, decided))
    assert np.isnan(measures.recall_at_precision(ALL, 2, "c", 0.9).value(y, proba, decided))
    alone = y == 0
    one = y[alone], proba[alone], decided[alone]
    assert np.isnan(measures.roc_auc(ALL).value(*one))
    assert np.isnan(measures.average_precision(ALL).value(*one))
    assert measures.balanced_accuracy(ALL).value(*one) == pytest.approx(np.mean(one[2] == 0))
    # A class that has no weight in a draw is absent from it.
    W = np.stack([np.ones(len(y)), (y == 0).astype(float)])
    drawn = measures.balanced_accuracy(ALL).values(y, proba, decided, W)
    assert drawn == pytest.approx([ours, np.mean(one[2] == 0)])
    assert np.isnan(measures.roc_auc(ALL).values(y, proba, decided, W)).tolist() == [False, True]


def test_records_of_classes_that_are_not_compared_do_not_count():
    y, proba, decided, w = made_up(6)
    compared = np.array([True, True, False])
    rows = y != 2
    for make in (measures.balanced_accuracy, measures.brier, measures.roc_auc):
        of_all = make(compared).value(y, proba, decided, w)
        assert of_all == pytest.approx(make(compared).value(y[rows], proba[rows], decided[rows], w[rows]))  # fmt: skip
        unit = np.arange(len(y))[::-1]
        drawn = make(compared).values(y, proba, decided, w[None, ::-1], unit=unit)
        assert drawn == pytest.approx([of_all])


def test_built_in_measures_are_those_of_the_report():
    y, proba, decided, _ = made_up(7)
    f1 = measures.macro_f1(ALL)
    score = score_predictions(y, proba, classes=["a", "b", "c"], compared=ALL, measure=f1)
    assert score.metric == pytest.approx(score.macro_f1)
    assert score.auprc == pytest.approx(measures.average_precision(ALL).value(y, proba, decided))
    assert score.balanced_accuracy == measures.balanced_accuracy(ALL).value(y, proba, decided)
    assert score.roc_auc == pytest.approx(PAIRS["roc_auc"][1](y, proba, decided, None))
    assert score.log_loss == pytest.approx(metrics.log_loss(y, proba))
    plain = score_predictions(y, proba, classes=["a", "b", "c"], compared=ALL)
    assert plain.metric == plain.balanced_accuracy


def test_the_mean_over_seeds_has_the_worst_class_of_the_mean_recalls():
    scores = []
    for seed in range(3):
        y, proba, _, _ = made_up(seed)
        scores.append(score_predictions(y, proba, classes=["a", "b", "c"], compared=ALL))
    mean = mean_score(scores)
    assert mean.log_loss == pytest.approx(np.mean([s.log_loss for s in scores]))
    assert mean.metric == pytest.approx(mean.balanced_accuracy)
    assert mean.recall["b"] == pytest.approx(np.mean([s.recall["b"] for s in scores]))
    assert mean.worst_recall == min(mean.recall.values()) == mean.recall[mean.worst_class]
    old = scores[0].model_copy(update={"roc_auc": None})
    assert mean_score([old, scores[1]]).roc_auc is None, "of an earlier version"
