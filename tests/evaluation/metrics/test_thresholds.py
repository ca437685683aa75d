"""Threshold tuning: finds what is there, and nothing where nothing is."""

import numpy as np
import pytest

from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.metrics import measures, thresholds
from prefect_augment.evaluation.metrics.chosen_measure import measure_of
from prefect_augment.evaluation.metrics.predictions import score_predictions
from prefect_augment.evaluation.metrics.thresholds import cross_fitted_multipliers, tune_multipliers
from prefect_augment.params import Metric


def gaussians(counts, seed, *, sharpness=1.0):
    """Classes on a line, one apart, with their true posterior probabilities to a power."""
    rng = np.random.default_rng(seed)
    counts = np.asarray(counts)
    y = np.repeat(np.arange(len(counts)), counts)
    x = 1.5 * y + rng.normal(size=len(y))
    logits = -0.5 * (x[:, None] - 1.5 * np.arange(len(counts))) ** 2 + np.log(counts / counts.sum())
    proba = np.exp(sharpness * (logits - logits.max(axis=1, keepdims=True)))
    return y, proba / proba.sum(axis=1, keepdims=True)


TWO, THREE = np.ones(2, dtype=bool), np.ones(3, dtype=bool)


def balanced_accuracy(y, proba, multipliers=None):
    compared = np.ones(proba.shape[1], dtype=bool)
    return score_predictions(
        y, proba, classes=list("abc")[: len(compared)], compared=compared, multipliers=multipliers
    ).balanced_accuracy


def separable():
    """All rare records have a probability of 0.3, all others at most 0.2."""
    y = np.array([0] * 950 + [1] * 50)
    p = np.r_[np.linspace(0.0, 0.2, 950), np.full(50, 0.3)]
    return y, np.column_stack([1 - p, p])


def test_scan_is_exact_without_shrinkage(monkeypatch):
    monkeypatch.setattr(thresholds, "SHRINKAGE", 0.0)
    y, proba = separable()
    m = tune_multipliers(y, proba, compared=TWO)
    assert balanced_accuracy(y, proba, m) == 1.0
    assert 0.7 / 0.3 < m[1] / m[0] < 0.8 / 0.2


def test_shrinkage_costs_a_fraction_of_a_standard_error():
    """One standard error is about 1 point here."""
    y, proba = separable()
    m = tune_multipliers(y, proba, compared=TWO)
    assert balanced_accuracy(y, proba, m) > 0.995


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("counts", [(9500, 500), (7000, 2000, 1000)])
def test_tuned_multipliers_are_near_the_best_possible_on_fresh_records(counts, sharpness):
    """With true posteriors, weighting by the inverse shares is optimal; here they are distorted."""
    ones = np.ones(len(counts), dtype=bool)
    y, proba = gaussians(counts, 0, sharpness=sharpness)
    y_new, proba_new = gaussians(counts, 1, sharpness=sharpness)
    m = tune_multipliers(y, proba, compared=ones)
    best = balanced_accuracy(y_new, proba_new, (sum(counts) / np.array(counts)) ** sharpness)
    assert balanced_accuracy(y_new, proba_new, m) > best - 0.02
    assert balanced_accuracy(y_new, proba_new) < best - 0.05


def test_few_records_do_not_over_fit_more_than_they_gain():
    """Eight rare records: over 40 draws the tuned threshold is far better than none on fresh ones."""
    y_new, proba_new = gaussians((9500, 500), 999)
    tuned = [
        balanced_accuracy(y_new, proba_new, tune_multipliers(*gaussians((152, 8), s), compared=TWO))
        for s in range(40)
    ]
    assert np.mean(tuned) > balanced_accuracy(y_new, proba_new) + 0.1


@pytest.mark.parametrize(
    "measure",
    [None, measures.macro_f1(THREE), measures.recall_at_precision(THREE, 2, "c", 0.7)],
    ids=["balanced accuracy", "F1", "recall at precision"],
)
def test_order_of_records_does_not_matter(measure):
    y, proba = gaussians((300, 60, 20), 3)
    shuffled = np.random.default_rng(0).permutation(len(y))
    a = tune_multipliers(y, proba, compared=THREE, measure=measure)
    b = tune_multipliers(y[shuffled], proba[shuffled], compared=THREE, measure=measure)
    assert a == pytest.approx(b, rel=1e-9)


def test_classes_that_are_not_compared_keep_their_probability():
    y, proba = gaussians((300, 60, 20), 4)
    m = tune_multipliers(y, proba, compared=np.array([True, True, False]))
    assert m[2] == 1.0
    assert list(tune_multipliers(y, proba, compared=np.array([True, False, False]))) == [1, 1, 1]


def test_many_classes_share_one_power_of_the_prior_correction():
    counts = np.r_[500, np.full(39, 20)]
    y, proba = gaussians(counts, 5)
    m = tune_multipliers(y, proba, compared=np.ones(40, dtype=bool))
    assert m[0] == 1.0
    assert np.ptp(m[1:]) == pytest.approx(0)


def test_cross_fitting_gains_nothing_from_noise():
    """Tuned and scored on the same noise there is a gain; cross-fitted there is none."""
    honest, flattered = [], []
    for s in range(40):
        rng = np.random.default_rng(s)
        y = np.array([0] * 180 + [1] * 20)
        proba = rng.dirichlet([1, 1], size=200)
        folds = stratified_folds(y, None, 5, s, [str(i) for i in range(200)])
        m = cross_fitted_multipliers(y, proba, folds, TWO)
        honest.append(balanced_accuracy(y, proba, m))
        flattered.append(balanced_accuracy(y, proba, tune_multipliers(y, proba, compared=TWO)))
    standard_error = np.std(honest) / np.sqrt(40)
    assert abs(np.mean(honest) - 0.5) < 3 * standard_error
    assert np.mean(flattered) > 0.53


def test_a_record_has_no_part_in_its_own_multipliers():
    y, proba = gaussians((180, 20), 6)
    folds = stratified_folds(y, None, 4, 0, [str(i) for i in range(200)])
    before = cross_fitted_multipliers(y, proba, folds, TWO)
    changed = np.where(folds == 2, 1 - y, y)
    after = cross_fitted_multipliers(changed, proba, folds, TWO)
    assert np.array_equal(before[folds == 2], after[folds == 2])
    assert not np.array_equal(before[folds != 2], after[folds != 2])


def test_cross_fitting_needs_two_folds():
    y, proba = gaussians((18, 2), 7)
    with pytest.raises(ParameterError, match="at least 2 folds"):
        cross_fitted_multipliers(y, proba, np.zeros(20, int), np.ones(2, bool))


MISSES_COST_FIVE = np.array([[0.0, 1.0], [5.0, 0.0]])
OF_DECISIONS = {
    "macro_f1": measures.macro_f1(TWO),
    "f2": measures.f_beta(TWO, 1, "rare", 2.0),
    "cost": measures.cost(TWO, MISSES_COST_FIVE),
    "mcc": measure_of(
        Metric(name="matthews_corrcoef"), classes="01", compared=TWO, counts=np.array([950, 50])
    ),
}


def reached(measure, y, proba, multipliers):
    return measure.oriented(measure.value(y, proba, np.argmax(proba * multipliers, axis=1)))


@pytest.mark.parametrize("sharpness", [0.5, 2.0])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "mcc" else ()) for n in OF_DECISIONS]
)
def test_a_measure_is_tuned_near_its_best_on_fresh_records(name, sharpness):
    """Distorted probabilities are no matter: 100 records of the class show the threshold."""
    measure = OF_DECISIONS[name]
    records = gaussians((1900, 100), 0, sharpness=sharpness)
    m = tune_multipliers(*records, compared=TWO, measure=measure)
    y, proba = gaussians((9500, 500), 1, sharpness=sharpness)
    tried = [reached(measure, y, proba, np.array([1.0, r])) for r in np.geomspace(0.1, 400, 60)]
    assert reached(measure, y, proba, m) > max(tried) - 0.03
    assert reached(measure, y, proba, m) > reached(measure, y, proba, np.ones(2))


def test_scanning_a_measure_is_exact_without_shrinkage(monkeypatch):
    """No cut between any two records gives a higher F1 than the one found; several classes too."""
    monkeypatch.setattr(thresholds, "SHRINKAGE", 0.0)
    y, proba = gaussians((170, 30), 2)
    f1 = measures.f_beta(TWO, 1, "rare", 1.0)
    m = tune_multipliers(y, proba, compared=TWO, measure=f1)
    ratios = np.sort(proba[:, 0] / proba[:, 1])
    cuts = [0.5 * ratios[0], *(ratios[1:] + ratios[:-1]) / 2, 2 * ratios[-1]]
    best = max(reached(f1, y, proba, np.array([1.0, r])) for r in cuts)
    assert reached(f1, y, proba, m) == pytest.approx(best)
    y, proba = gaussians((200, 60, 40), 3)
    macro = measures.macro_f1(THREE)
    m = tune_multipliers(y, proba, compared=THREE, measure=macro)
    rng = np.random.default_rng(0)
    others = [reached(macro, y, proba, np.exp(rng.normal(size=3))) for _ in range(200)]
    assert reached(macro, y, proba, m) > np.quantile(others, 0.99)


def test_costs_of_calibrated_probabilities_lead_to_the_decision_of_bayes():
    """A miss costs five false alarms, so the rare class is decided for from a probability of 1/6 on."""
    y, proba = gaussians((190, 10), 4)
    m = tune_multipliers(y, proba, compared=TWO, measure=OF_DECISIONS["cost"])
    assert m[1] / m[0] == pytest.approx(5.0, rel=0.25)
    right_pays = measures.cost(TWO, np.array([[0.0, 0.0], [0.0, -1.0]]))
    m = tune_multipliers(y, proba, compared=TWO, measure=right_pays)
    assert np.mean(np.argmax(proba * m, axis=1)[y == 1]) > 0.9, "an alarm costs nothing"


def test_a_stated_precision_is_reached_on_fresh_records_more_often_than_not():
    measure = measures.recall_at_precision(TWO, 1, "rare", 0.6)
    y_new, proba_new = gaussians((9500, 500), 99)
    precision, recall = [], []
    for s in range(30):
        m = tune_multipliers(*gaussians((950, 50), s), compared=TWO, measure=measure)
        said = np.argmax(proba_new * m, axis=1) == 1
        precision.append(np.mean(y_new[said]) if said.any() else 1.0)
        recall.append(np.mean(said[y_new == 1]))
    assert np.mean(np.array(precision) >= 0.6) > 0.6
    assert np.mean(recall) > 0.06, "the best threshold finds 15 %"
    to_recall = measures.precision_at_recall(TWO, 1, "rare", 0.8)
    m = tune_multipliers(*gaussians((950, 50), 0), compared=TWO, measure=to_recall)
    said = np.argmax(proba_new * m, axis=1) == 1
    assert 0.75 < np.mean(said[y_new == 1]) < 0.97


def test_a_precision_out_of_reach_gives_the_threshold_that_comes_nearest():
    rng = np.random.default_rng(0)
    y, proba = np.repeat([0, 1], [90, 10]), rng.dirichlet([1.0, 1.0], size=100)
    measure = measures.recall_at_precision(TWO, 1, "rare", 1.0)
    m = tune_multipliers(y, proba, compared=TWO, measure=measure)
    assert np.isfinite(m).all()
    assert m[0] == 1.0


def test_measures_of_probabilities_keep_the_thresholds_of_balanced_accuracy():
    y, proba = gaussians((180, 20), 6)
    plain = tune_multipliers(y, proba, compared=TWO)
    folds = np.arange(200) % 4
    for measure in (measures.roc_auc(TWO), measures.brier(TWO), measures.balanced_accuracy(TWO)):
        assert np.array_equal(tune_multipliers(y, proba, compared=TWO, measure=measure), plain)
        assert np.array_equal(
            cross_fitted_multipliers(y, proba, folds, TWO, measure),
            cross_fitted_multipliers(y, proba, folds, TWO),
        )
    f2 = OF_DECISIONS["f2"]
    of_fold = cross_fitted_multipliers(y, proba, folds, TWO, f2)[folds == 1][0]
    others = folds != 1
    tuned = tune_multipliers(y[others], proba[others], compared=TWO, measure=f2)
    assert np.array_equal(of_fold, tuned)
