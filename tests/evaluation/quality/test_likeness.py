"""Density, coverage, the two-sample test and the Fréchet distance on sets whose likeness is known."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.quality.likeness import (
    c2st_auc,
    frechet_distance,
    frechet_metrics,
    likeness,
)

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


def drawn(n, n_features=4, *, seed=0, scale=1.0, shift=0.0):
    return shift + scale * np.random.default_rng(seed).normal(size=(n, n_features))


def test_distance_of_drawn_gaussians_is_near_the_one_of_their_parameters():
    """In one dimension it is the squared difference of means and of standard deviations."""
    a, b = drawn(200_000, 1), drawn(200_000, 1, seed=1, scale=3.0, shift=2.0)
    assert frechet_distance(a, b) == pytest.approx(2.0**2 + 2.0**2, rel=0.02)


def test_distance_is_that_of_the_root_of_the_covariances_product():
    mixed = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 1]])
    a, b = drawn(50), drawn(80, seed=1, scale=1.5, shift=0.3) @ mixed
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    gap = a.mean(0) - b.mean(0)
    expected = gap @ gap + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_fewer_records_than_features_give_what_the_features_they_span_give():
    a, b = drawn(12, 5), drawn(15, 5, seed=1, shift=1.0)
    wide = np.zeros((5, 300))
    wide[:, ::60] = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    assert frechet_distance(a @ wide, b @ wide) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    many = drawn(20, 300)
    nothing = pytest.approx(0.0, abs=1e-6 * np.trace(np.cov(many.T)))
    assert frechet_distance(many, many[::-1]) == nothing


def test_a_side_without_spread_has_no_distance():
    assert np.isnan(frechet_distance(drawn(1), drawn(9)))


def part(X, stratum=None):
    y = np.zeros(len(X), dtype=np.int64) if stratum is None else stratum
    return Labelled(X, y), np.ones(len(X), dtype=bool)


def metrics(kept, *, n_training=90, n_validation=60, seed=1):
    validation = part(drawn(n_validation, 40, seed=seed))
    training = part(drawn(n_training, 40, seed=seed + 1000))
    sides = {"kept": part(kept), "validation": validation, "training": training}
    return frechet_metrics(lambda X: X, **sides, seed=0)


def test_records_of_the_same_distribution_are_above_the_largest_once_in_twenty_times():
    above = []
    for seed in range(1, 41):
        of_class = metrics(drawn(90, 40, seed=5000 + seed), seed=seed)[0][0]
        assert of_class["real_frechet_distance"] < of_class["real_frechet_largest"]
        above.append(of_class["frechet_distance"] > of_class["real_frechet_largest"])
    assert sum(above) <= 6, "expected: 2 of 40"


def test_records_of_another_spread_or_place_are_above_the_largest():
    for fault in ({"scale": 0.5}, {"shift": 0.5}):
        of_class = metrics(drawn(300, 40, seed=3, **fault))[0][0]
        assert of_class["frechet_distance"] > of_class["real_frechet_largest"]


def test_copies_of_training_records_are_no_better_than_other_real_records():
    """They are compared with records that no model has seen."""
    of_class = metrics(drawn(90, 40, seed=1001))[0][0]
    assert of_class["frechet_distance"] > 0.8 * of_class["real_frechet_distance"]


def test_all_distances_are_of_as_many_records():
    """A few kept records are far from validation's by their number alone, and so are as few real ones."""
    few, many = (metrics(drawn(n, 40, seed=3))[0][0] for n in (25, 300))
    assert few["frechet_distance"] > 1.2 * many["frechet_distance"]
    assert few["frechet_distance"] == pytest.approx(few["real_frechet_distance"], rel=0.15)


@pytest.mark.parametrize(
    ("n_kept", "n_training", "n_validation"), [(19, 90, 60), (50, 19, 60), (50, 90, 19)]
)
def test_too_few_records_have_no_distance(n_kept, n_training, n_validation):
    found = metrics(drawn(n_kept, 40), n_training=n_training, n_validation=n_validation)
    assert found == ({0: {}}, {})


def test_small_classes_have_a_distance_together_and_one_record_of_a_group_counts():
    y = np.repeat([0, 1], 15)
    sides = {
        name: part(drawn(30, 5, seed=seed), y)
        for seed, name in enumerate(("kept", "validation", "training"))
    }
    by_class, together = frechet_metrics(lambda X: X, **sides, seed=0)
    assert by_class == {0: {}, 1: {}}
    assert set(together) == {"frechet_distance", "real_frechet_distance", "real_frechet_largest"}
    for name, (records, _) in sides.items():
        fewer = sides | {name: (records, np.arange(30) % 15 < 9)}
        assert frechet_metrics(lambda X: X, **fewer, seed=0)[1] == {}
    nothing = sides | {"kept": (sides["kept"][0], np.zeros(30, dtype=bool))}
    assert frechet_metrics(lambda X: X, **nothing, seed=0) == ({}, {})
