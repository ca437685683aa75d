"""Pairs of records over any columns, beside the space's own distances."""

import numpy as np
import pytest

from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.privacy.record_pairs import Columns, compare, random_subsets

IS_CATEGORY = np.array([False, False, True])


@pytest.fixture
def space() -> FeatureSpace:
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.random(200), rng.random(200), rng.integers(0, 3, 200)])
    return FeatureSpace.of(X, IS_CATEGORY)


def test_distances_are_those_of_the_space_over_any_columns(space: FeatureSpace) -> None:
    rng = np.random.default_rng(1)
    a, b = (
        np.column_stack([rng.random(n), rng.random(n), rng.integers(0, 3, n)]) for n in (40, 90)
    )
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
