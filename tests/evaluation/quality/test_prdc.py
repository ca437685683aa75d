"""Density, coverage and the two-sample test on sets whose likeness is known."""

import numpy as np
import pytest

from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.quality.likeness import c2st_auc, likeness

NUMERIC = {"n_levels": np.zeros(3, dtype=np.int64)}


def density_coverage(*args, **kwargs):
    result = likeness(*args, **kwargs)
    return result.density, result.coverage


def normal(n, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, 3)) + shift


def test_density_and_coverage_of_five_points_on_a_line():
    """k = 1: the balls are 0±1, 1±1, 3±2, 10±7; 0.5 lies in two of them, 20 in none."""
    real = np.array([[0.0], [1.0], [3.0], [10.0]])
    density, coverage = density_coverage(real, np.array([[0.5], [20.0]]), k=1)
    assert density == 2 / (1 * 2)
    assert coverage == 2 / 4


def test_same_distribution_has_density_and_coverage_near_one():
    density, coverage = density_coverage(normal(1000, 0), normal(1000, 1))
    assert density == pytest.approx(1, abs=0.05)
    assert coverage > 0.93


def test_far_away_records_have_neither():
    assert density_coverage(normal(200, 0), normal(200, 1, shift=50)) == (0.0, 0.0)


def test_a_collapsed_generator_covers_little():
    """What it emits is as dense as real records, but all of it lies in the same few balls."""
    real = normal(500, 0)
    density, coverage = density_coverage(real, np.repeat(real[[0]], 500, axis=0))
    assert density >= 1
    assert coverage < 0.1


def test_nulls_and_categories_are_measured_in_the_feature_space():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=400), rng.integers(0, 3, 400)]).astype(float)
    X[::7, 0] = np.nan
    space = FeatureSpace.of(X, np.array([False, True]))
    density, coverage = density_coverage(X[:200], X[200:], space=space)
    assert 0.8 < density < 1.3
    assert coverage > 0.9


def test_too_few_records_have_no_measure():
    assert np.isnan(density_coverage(normal(1, 0), normal(5, 1))).all()
    assert np.isnan(density_coverage(normal(5, 0), normal(0, 1))).all()
    assert np.isnan(c2st_auc(normal(4, 0), normal(50, 1), **NUMERIC))
    assert np.isfinite(density_coverage(normal(2, 0), normal(2, 1))).all()


@pytest.mark.slow
def test_c2st_cannot_tell_equal_distributions_and_tells_others():
    assert c2st_auc(normal(600, 0), normal(600, 1), **NUMERIC) == pytest.approx(0.5, abs=0.05)
    assert c2st_auc(normal(300, 0), normal(300, 1, shift=4), **NUMERIC) > 0.99


def test_c2st_is_fair_to_unequal_numbers():
    assert c2st_auc(normal(60, 0), normal(900, 1), **NUMERIC) == pytest.approx(0.5, abs=0.1)
