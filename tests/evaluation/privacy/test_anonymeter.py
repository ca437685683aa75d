"""Small tables whose answer is known by hand."""

import numpy as np
import pytest

from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.privacy.record_pairs import (
    Columns,
    inferred_shares,
    singled_out,
    without_each,
)

IS_CATEGORY = np.array([False, False, True])


def columns(rows: list[list[float]], space: FeatureSpace) -> Columns:
    return Columns.of(space.place(np.array(rows, dtype=np.float64)), np.arange(3))


@pytest.fixture
def space() -> FeatureSpace:
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.random(200), rng.random(200), rng.integers(0, 3, 200)])
    return FeatureSpace.of(X, IS_CATEGORY)


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
