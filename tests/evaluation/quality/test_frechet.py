"""The Fréchet distance against known answers, and beside the distance of real records."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.quality.frechet import frechet_distance, frechet_metrics


def drawn(n, n_features=4, *, seed=0, scale=1.0, shift=0.0):
    return shift + scale * np.random.default_rng(seed).normal(size=(n, n_features))


def test_distance_of_drawn_gaussians_is_near_the_one_of_their_parameters():
    """In one dimension it is the squared difference of means and of standard deviations."""
    a, b = drawn(200_000, 1), drawn(200_000, 1, seed=1, scale=3.0, shift=2.0)
    assert frechet_distance(a, b) == pytest.approx(2.0**2 + 2.0**2, rel=0.02)


def test_distance_is_that_of_the_root_of_the_covariances_product():
    a, b = (
        drawn(50),
        drawn(80, seed=1, scale=1.5, shift=0.3)
        @ np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 1]]),
    )
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
    assert frechet_distance(many, many[::-1]) == pytest.approx(
        0.0, abs=1e-6 * np.trace(np.cov(many.T))
    )


def test_a_side_without_spread_has_no_distance():
    assert np.isnan(frechet_distance(drawn(1), drawn(9)))


def metrics(kept, *, n_training=90, n_validation=60, stratum=None):
    parts = [
        Labelled(drawn(n, 40, seed=seed), np.zeros(n, dtype=np.int64))
        for n, seed in ((n_training, 1), (n_validation, 2))
    ]
    of_kept = np.zeros(len(kept), dtype=np.int64) if stratum is None else stratum
    return frechet_metrics(lambda X: X, *parts, Labelled(kept, of_kept))


def test_records_of_the_same_distribution_are_as_far_as_real_ones_and_others_farther():
    by_class, together = metrics(drawn(300, 40, seed=3))
    floor = by_class[0]["real_frechet_distance"]
    assert by_class[0]["frechet_distance"] == pytest.approx(floor, rel=0.15)
    assert together == by_class[0]
    narrow, _ = metrics(drawn(300, 40, seed=3, scale=0.5))
    moved, _ = metrics(drawn(300, 40, seed=3, shift=0.5))
    assert narrow[0]["frechet_distance"] > 1.15 * floor
    assert moved[0]["frechet_distance"] > 1.3 * floor


def test_both_distances_are_of_as_many_records():
    """A few kept records are far from validation's by their number alone, and so are as few training records."""
    few, _ = metrics(drawn(25, 40, seed=3))
    many, _ = metrics(drawn(300, 40, seed=3))
    assert few[0]["frechet_distance"] > 1.2 * many[0]["frechet_distance"]
    assert few[0]["frechet_distance"] == pytest.approx(few[0]["real_frechet_distance"], rel=0.15)


@pytest.mark.parametrize(
    ("n_kept", "n_training", "n_validation"), [(19, 90, 60), (50, 19, 60), (50, 90, 19)]
)
def test_too_few_records_have_no_distance(n_kept, n_training, n_validation):
    by_class, together = metrics(
        drawn(n_kept, 40), n_training=n_training, n_validation=n_validation
    )
    assert by_class == {0: {}}
    assert together == {}


def test_small_classes_have_a_distance_together():
    y = np.repeat([0, 1], 15)
    parts = [Labelled(drawn(30, 5, seed=seed), y) for seed in (1, 2, 3)]
    by_class, together = frechet_metrics(lambda X: X, *parts)
    assert by_class == {0: {}, 1: {}}
    assert set(together) == {"frechet_distance", "real_frechet_distance"}
    nothing = Labelled(parts[2].X[:0], y[:0])
    assert frechet_metrics(lambda X: X, *parts[:2], nothing) == ({}, {})
