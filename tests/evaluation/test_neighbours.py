"""Distances worked out by hand, the tree against all pairs, and the rule on near copies."""

import tracemalloc

import numpy as np
import pytest

from prefect_augment.evaluation import neighbours
from prefect_augment.evaluation.neighbours import (
    FeatureSpace,
    near_copies,
    near_limit,
    real_distances,
)

nan = np.nan


def test_distance_is_the_mean_over_columns():
    """Column 0 spans 0..10 (quantile range 9), column 1 is a category."""
    X = np.column_stack([np.linspace(0, 10, 101), np.arange(101) % 3]).astype(float)
    space = FeatureSpace.of(X, np.array([False, True]))
    records = space.place(np.array([[1.0, 0], [5.5, 0], [1.0, 2], [nan, 0], [nan, nan]]))
    found = space.distances(records, records)[0]
    null = 1 + 4 / 9  # as the median, 5, and one more
    assert found == pytest.approx(np.array([0, 4.5 / 9, 1, null, null + 1]) / 2)
    assert space.distances(records, records)[4, 3] == pytest.approx(1 / 2)


def test_constant_and_empty_and_infinite_columns_have_finite_distances():
    X = np.column_stack([np.full(9, 3.0), np.full(9, nan), np.r_[np.inf, np.arange(8)]])
    space = FeatureSpace.of(X, np.zeros(3, dtype=bool))
    points = space.place(np.vstack([X, [4.0, 1.0, -np.inf]]))
    assert np.isfinite(space.distances(points, points)).all()
    assert space.distances(points[:1], points[8:9])[0, 0] == 0  # infinity counts as 7


@pytest.mark.parametrize("n_numeric", [0, 2])
@pytest.mark.parametrize("n_category", [0, 2])
def test_any_mixture_of_columns_has_distances(n_numeric, n_category):
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(20, n_numeric)), rng.integers(0, 3, (20, n_category))])
    space = FeatureSpace.of(X, np.arange(n_numeric + n_category) >= n_numeric)
    points = space.place(X)
    assert (space.nearest(points, points) == 0).all()
    assert np.isfinite(space.nearest_others(points)).all()


def test_tree_and_all_pairs_agree(monkeypatch):
    rng = np.random.default_rng(0)
    X = np.round(rng.normal(size=(1500, 3)), 1)
    X[::40, 1] = nan
    space = FeatureSpace.of(X, np.zeros(3, dtype=bool))
    a, b = space.place(X[:700]), space.place(X[700:])
    monkeypatch.setattr(neighbours, "TREE_MIN_PAIRS", 0)
    tree = space.nearest(a, b), space.nearest_others(b)
    monkeypatch.setattr(neighbours, "TREE_MIN_PAIRS", 10**12)
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 8 * 800 * 100)
    pairs = space.nearest(a, b), space.nearest_others(b)
    assert tree[0] == pytest.approx(pairs[0], abs=1e-12)
    assert tree[1] == pytest.approx(pairs[1], abs=1e-12)


def test_records_that_are_all_one_row_are_at_no_distance(monkeypatch):
    monkeypatch.setattr(neighbours, "TREE_MIN_PAIRS", 0)
    X = np.zeros((30, 3))
    space = FeatureSpace.of(X, np.zeros(3, dtype=bool))
    a = space.place(X)
    assert (space.nearest(a, a) == 0).all()
    assert (space.nearest_others(a) == 0).all()


def test_memory_stays_bounded():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 20, (12_000, 4)).astype(float)
    space = FeatureSpace.of(X, np.ones(4, dtype=bool))
    points = space.place(X)
    tracemalloc.start()
    space.nearest(points[:3000], points)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20


def test_a_twin_is_a_neighbour_and_oneself_is_not():
    X = np.array([[0.0], [0.0], [1.0], [3.0]])
    space = FeatureSpace.of(X, np.zeros(1, dtype=bool))
    others = space.nearest_others(space.place(X))
    assert list(others > 0) == [False, False, True, True]
    assert space.nearest_others(space.place(X[:1]))[0] == np.inf


def test_few_validation_records_give_way_to_the_training_records_own_distances():
    X = np.arange(30.0)[:, None]
    space = FeatureSpace.of(X, np.zeros(1, dtype=bool))
    training = space.place(X)
    far = space.place(np.full((19, 1), 100.0))
    assert real_distances(space, training, far) == pytest.approx(space.nearest_others(training))
    enough = space.place(np.full((20, 1), 100.0))
    assert real_distances(space, training, enough).min() > 1


def copies(distance, real, quantile=0.05, standing=None):
    n = len(distance)
    standing = np.ones(n, dtype=bool) if standing is None else standing
    return near_copies(
        np.asarray(distance, float), np.asarray(real), quantile, np.arange(n), standing
    )


NO_COPIES, THIRTY_COPIES = np.arange(1, 101) / 100, np.r_[np.zeros(30), np.full(70, 0.5)]


@pytest.mark.parametrize(
    ("distance", "real", "near"),
    [
        ([0.0, 0.05, 0.06, 0.5], NO_COPIES, [True, True, False, False]),
        # 30 of 100 real records are exact copies: 3 may stand beside 7 others, the first ones.
        ([0.0] * 5 + [0.6] * 7, THIRTY_COPIES, [False] * 3 + [True] * 2 + [False] * 7),
        ([0.0] * 50, THIRTY_COPIES, [True] * 50),
        # Tiny noise does not hide a copy in a table with many twins.
        ([1e-6, 0.5, 0.6], THIRTY_COPIES, [True, False, False]),
        ([0.0, 0.0], np.zeros(50), [False, False]),
    ],
)
def test_nearer_than_the_quantile_of_real_distances_is_a_near_copy(distance, real, near):
    assert copies(distance, real).tolist() == near


def test_a_quantile_of_zero_lets_all_that_differ_pass():
    assert not copies([0.01, 0.5], NO_COPIES, quantile=0.0).any()


def test_dropped_candidates_do_not_make_room_for_copies():
    real = np.r_[np.zeros(50), np.full(50, 0.5)]
    standing = np.array([True, True, True, False, False])
    assert list(copies([0.0, 0.0, 0.6, 0.6, 0.6], real, standing=standing)[:2]) == [False, True]


def test_the_limit_is_that_of_the_positive_distances_where_real_records_are_copies() -> None:
    distances = np.arange(101) / 100
    assert near_limit(distances, 0.05) == pytest.approx(0.05)
    assert near_limit(np.concatenate([np.zeros(30), distances[1:]]), 0.05) == pytest.approx(0.0595)
    assert near_limit(np.zeros(30), 0.05) == 0.0
