"""Pairs of records over any columns, beside the space's own distances, and attacks whose answer is known by hand."""

import numpy as np
import pytest

from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.privacy.record_pairs import (
    Columns,
    compare,
    inferred_shares,
    random_subsets,
    singled_out,
    without_each,
)


def records(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.column_stack([rng.random(n), rng.random(n), rng.integers(0, 3, n)])


@pytest.fixture
def space() -> FeatureSpace:
    return FeatureSpace.of(records(np.random.default_rng(0), 200), np.array([False, False, True]))


def test_distances_are_those_of_the_space_over_any_columns(space: FeatureSpace) -> None:
    rng = np.random.default_rng(1)
    a, b = (records(rng, n) for n in (40, 90))
    a[3, 0] = np.nan
    ca, cb = (Columns.of(space.place(X), np.arange(3)) for X in (a, b))
    subsets = np.array([[1, 1, 1], [0, 1, 0]], dtype=np.float32)
    found = compare(ca, cb, subsets)
    all_pairs = 3 * space.distances(space.place(a), space.place(b))
    assert found.nearest[0] == pytest.approx(all_pairs.min(axis=1), abs=1e-5)
    assert (found.rows[0] == all_pairs.argmin(axis=1)).all()
    one = np.abs(ca.numbers[:, 1, None] - cb.numbers[None, :, 1])
    assert found.nearest[1] == pytest.approx(one.min(axis=1), abs=1e-6)
    own = compare(ca, ca, subsets)
    assert np.isinf(np.diag(own.squares)).all()
    assert own.nearest[0] == pytest.approx(3 * space.nearest_others(space.place(a)), abs=1e-5)


def test_subsets_have_the_halves_first_and_their_complements() -> None:
    subsets = random_subsets(7, np.random.default_rng(0))
    assert subsets[0].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert (subsets[0] + subsets[1] == 1).all()
    assert random_subsets(1, np.random.default_rng(0)).shape == (0, 1)


def columns(rows: list[list[float]], space: FeatureSpace) -> Columns:
    return Columns.of(space.place(np.array(rows, dtype=np.float64)), np.arange(3))


def test_copied_outlier_is_singled_out_and_the_others_are_not(space: FeatureSpace) -> None:
    crowd = [[0.5, 0.5, 0.0]] * 6
    real = columns([[9.0, 0.4, 1.0], *crowd], space)
    found = singled_out(real, columns([[9.0, 0.4, 1.0], *crowd], space), np.random.default_rng(0))
    assert found.tolist() == [True] + [False] * 6
    other = singled_out(real, columns(crowd, space), np.random.default_rng(0))
    assert not other.any()


def test_secret_is_inferred_within_a_twentieth_of_the_range(space: FeatureSpace) -> None:
    real = columns([[0.1, 0.5, 1.0], [0.9, 0.5, 2.0]], space)
    made = columns([[0.12, 0.5, 1.0], [0.2, 0.5, 0.0]], space)
    secrets, known = without_each(3, np.random.default_rng(0))
    assert secrets.tolist() == [0, 1, 2]
    assert known.tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    nearest = np.array([[0, 1], [0, 1], [0, 1]])
    # The second record's number is 0.7 off and its level another.
    assert inferred_shares(real, made, secrets, nearest) == pytest.approx([1.0, 1 / 3])
