"""Calibration: known answers, and the correction that undoes a change of class shares."""

import numpy as np
import pytest

from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics.bootstrap import MAX_UNITS, Draws, units_of
from prefect_augment.evaluation.metrics.calibration import (
    calibration_error,
    calibration_of,
    correct_prior,
    prior_factors,
)

CLASSES = ["common", "rare"]
FROM_EVEN = prior_factors(CLASSES, {"common": 0.95, "rare": 0.05}, {"common": 0.5, "rare": 0.5})


def draws_for(n, *, n_seeds=1, groups=None, n_draws=300):
    return Draws.of(n, groups, n_seeds=n_seeds, n_draws=n_draws, seed=0)


def calibrated(n, seed, n_classes=3):
    """Probabilities, and classes drawn from them: perfectly calibrated by construction."""
    rng = np.random.default_rng(seed)
    proba = rng.dirichlet(np.full(n_classes, 0.7), size=n)
    y = (rng.random((n, 1)) > proba.cumsum(axis=1)).sum(axis=1)
    return y.clip(0, n_classes - 1), proba


def sharpened(proba, power=3.0):
    """As sure as an overfitted classifier."""
    return proba**power / (proba**power).sum(axis=1, keepdims=True)


def calibration(y, proba, factors):
    return calibration_of(
        y, proba[None], classes=CLASSES, rare_classes=[1], factors=factors, draws=draws_for(len(y)),
        seed=0,
    )  # fmt: skip


def error(y, proba, **kwargs):
    return calibration_error(y, proba[None], draws_for(len(y), **kwargs), seed=0)


@pytest.mark.parametrize("n", [150, 1500])
def test_a_calibrated_classifier_has_zero_within_its_interval(n):
    """The plain estimate is above 0 for every one of them: chance makes gaps as well."""
    lows = [error(*calibrated(n, s)).low for s in range(60)]
    assert np.mean(np.array(lows) == 0) >= 0.95


def test_an_overconfident_classifier_is_told_with_the_size_of_its_error():
    y, proba = calibrated(4000, 0)
    sure = sharpened(proba)
    found = error(y, sure)
    # What is expected of the most probable class, less what it was drawn with.
    best = sure.argmax(axis=1)
    truth = np.mean(sure.max(axis=1) - proba[np.arange(len(y)), best])
    assert found.low > 0.5 * truth
    assert found.low <= truth <= found.high


@pytest.mark.parametrize("power", [1.5, 3.0])
def test_the_interval_covers_the_error_at_its_rate(power):
    covered, estimates, truths = 0, [], []
    for s in range(60):
        y, proba = calibrated(800, s)
        sure = sharpened(proba, power)
        truth = np.mean(sure.max(axis=1) - proba[np.arange(len(y)), sure.argmax(axis=1)])
        found = error(y, sure, n_draws=200)
        covered += found.low <= truth <= found.high
        estimates.append(found.estimate)
        truths.append(truth)
    assert covered / 60 >= 0.93
    assert np.mean(estimates) == pytest.approx(np.mean(truths), rel=0.15)


def test_the_correction_recovers_the_bayes_rule_under_label_shift():
    """Two normals; the posterior with shares of a half becomes that of 95 and 5 %, exactly."""
    x = np.linspace(-4, 6, 200)
    density = np.stack([np.exp(-0.5 * x**2), np.exp(-0.5 * (x - 2) ** 2)], axis=1)

    def posterior(shares):
        joint = density * shares
        return joint / joint.sum(axis=1, keepdims=True)

    found = correct_prior(posterior([0.5, 0.5]), FROM_EVEN)
    assert np.allclose(found, posterior([0.95, 0.05]))


def test_the_correction_makes_probabilities_of_a_balanced_classifier_right():
    rng = np.random.default_rng(0)
    y = (rng.random(3000) < 0.05).astype(int)
    x = rng.normal(size=3000) + 2 * y
    rare = 1 / (1 + np.exp(-(2 * x - 2)))  # the posterior with shares of a half
    found = calibration(y, np.stack([1 - rare, rare], axis=1), FROM_EVEN)
    assert found.as_predicted.class_ece.low > 0.1
    assert found.as_predicted.ece.low < 0.02, "the most probable class does not show it here"
    assert found.as_predicted.expected["rare"] > 2, "many more are expected than there are"
    assert found.corrected.class_ece.low == found.corrected.ece.low == 0
    assert found.corrected.expected["rare"] == pytest.approx(1, abs=0.15)
    assert found.change.high < 0
    assert found.change.estimate == pytest.approx(
        found.corrected.brier.estimate - found.as_predicted.brier.estimate
    )


def test_where_the_shares_are_the_true_ones_there_is_nothing_to_correct():
    y, proba = calibrated(300, 1, n_classes=2)
    shares = {"common": 0.8, "rare": 0.2}
    found = calibration(y, proba, prior_factors(CLASSES, shares, shares))
    assert found.corrected is None
    assert found.change is None


def test_a_class_that_was_not_trained_with_keeps_its_probability():
    assert prior_factors(["a", "b"], {"a": 0.9, "b": 0.1}, {"a": 1.0}).tolist() == [0.9, 1.0]
    assert prior_factors(["a", "b"], {"a": 1.0}, {"a": 0.5, "b": 0.5}).tolist() == [2.0, 0.0]
    assert correct_prior(np.zeros((1, 2)), np.ones(2)).tolist() == [[0.0, 0.0]]


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(ParameterError, match="a factor for each of 2 classes"):
        correct_prior(np.ones((3, 2)), np.ones(3))
    with pytest.raises(ParameterError, match="not negative"):
        correct_prior(np.ones((3, 2)), np.array([1.0, -1.0]))


def test_blocks_of_records_have_the_spread_of_single_records():
    """Many records are drawn in blocks; a mean's standard error is what theory says."""
    n = 5 * MAX_UNITS
    values = np.random.default_rng(0).normal(size=n)
    draws = Draws.of(n, None, n_seeds=1, n_draws=800, seed=0)
    assert draws.weights.shape[1] == MAX_UNITS
    assert draws.means(values[None]).std() == pytest.approx(1 / np.sqrt(n), rel=0.12)


def test_groups_stay_together_and_seeds_spread():
    assert units_of(4, ["b", "a", "b", "a"], seed=0).tolist() == [1, 0, 1, 0]
    values = np.stack([np.zeros(50), np.ones(50)])
    spread = Draws.of(50, None, n_seeds=2, n_draws=500, seed=0).means(values)
    assert 0.3 < spread.std() < 0.7, "two seeds that differ say little of their mean"
