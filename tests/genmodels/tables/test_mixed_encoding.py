"""Choices and scores of a table: what comes back is what went in, and the rest lies where it may."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from prefect_augment.genmodels.base import TableData, TableSpec
from prefect_augment.genmodels.counter_rng import record_keys
from prefect_augment.genmodels.tables.mixed_encoding import MAX_LEVELS, MixedSpace

N = 1200


def spec_of(
    is_category: tuple[bool, ...], n_levels: tuple[int, ...], n_classes: int = 2
) -> TableSpec:
    names = tuple(f"c{j}" for j in range(len(is_category)))
    classes = tuple("abc"[:n_classes])
    return TableSpec(names, is_category, n_levels, classes, (0,) * n_classes)


def table() -> tuple[TableData, TableSpec]:
    """A number; one with zeros and nulls; a category with nulls; a whole number; constants."""
    rng = np.random.default_rng(0)
    y = (rng.random(N) < 0.2).astype(np.int64)
    inflated = np.where(rng.random(N) < 0.5, 0.0, rng.exponential(size=N))
    X = np.column_stack(
        [
            rng.normal(size=N),
            np.where(rng.random(N) < 0.1, np.nan, inflated),
            np.where(rng.random(N) < 0.1, np.nan, rng.integers(1, 4, N)),
            rng.integers(0, 500, N),
            np.full(N, 7.0),
            np.full(N, np.nan),
        ]
    )
    return TableData(X, y), spec_of((False, False, True, False, False, False), (0, 0, 5, 0, 0, 0))


def back(space: MixedSpace, data: TableData, place: float = 0.5) -> NDArray[np.float64]:
    low, high, _ = space.ranks(data.X)
    scores = space.normal_scores(low + place * (high - low))
    keys = record_keys(np.arange(len(data.y)))
    return space.decode(space.codes(data.X), scores, y=data.y, keys=keys, counter=0)


def test_records_come_back_from_their_codes_and_the_middle_of_their_ranks() -> None:
    data, spec = table()
    space = MixedSpace.fit(data, spec)
    np.testing.assert_allclose(back(space, data), data.X, atol=1e-6)


@pytest.mark.parametrize("place", [0.02, 0.98])
def test_values_that_records_share_come_back_from_anywhere_in_their_interval(place: float) -> None:
    data, spec = table()
    X = back(MixedSpace.fit(data, spec), data, place)
    whole, counts = np.unique(data.X[:, 3], return_counts=True)
    shared = np.isin(data.X[:, 3], whole[counts >= 2])
    assert (X[shared, 3] == data.X[shared, 3]).all()
    alone = np.abs(X[:, 0] - data.X[:, 0])
    assert (alone > 0).mean() > 0.99, "a value of a single record is not returned"


def test_scores_are_standard_normal_and_atoms_and_nulls_have_none() -> None:
    data, spec = table()
    space = MixedSpace.fit(data, spec)
    low, high, has_score = space.ranks(data.X)
    scores = space.normal_scores((low + high) / 2)
    assert space.n_scores == 3
    for i in range(3):
        assert scores[has_score[:, i], i].mean() == pytest.approx(0, abs=0.01)
        assert scores[has_score[:, i], i].std() == pytest.approx(1, abs=0.03)
    expected = ~np.isnan(data.X[:, 1]) & (data.X[:, 1] != 0)
    assert (has_score[:, 1] == expected).all()
    assert has_score[:, [0, 2]].all()


def test_columns_with_one_value_are_neither_chosen_nor_scored() -> None:
    data, spec = table()
    space = MixedSpace.fit(data, spec)
    # Zero, null, other; three levels and null. The level that never occurs has no code.
    assert space.n_codes == (3, 4)


def test_a_value_that_only_a_rare_class_shares_is_an_atom() -> None:
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1], [2000, 100]).astype(np.int64)
    x = rng.normal(size=2100)
    x[2000:2006] = 3.25  # 6 % of the rare class, 0.3 % of all
    space = MixedSpace.fit(TableData(x[:, None], y), spec_of((False,), (0,)))
    assert space.n_codes == (2,)
    assert (space.codes(np.array([[3.25], [0.1]])) == [[0], [1]]).all()


def test_rare_levels_are_folded_and_drawn_by_the_shares_of_the_class() -> None:
    n_levels, n = 4 * MAX_LEVELS, 20_000
    rng = np.random.default_rng(2)
    y = (np.arange(n) % 2).astype(np.int64)
    # Class 0 has the lower half of the levels, class 1 the upper.
    x = np.where(rng.random(n) < 0.5, 0, rng.integers(0, n_levels // 2, n) + y * n_levels // 2)
    data = TableData(x.astype(float)[:, None], y)
    space = MixedSpace.fit(data, spec_of((True,), (n_levels,)))
    assert space.n_codes == (MAX_LEVELS,)
    X = back(space, data)[:, 0]
    codes = space.codes(data.X)[:, 0]
    known = codes < MAX_LEVELS - 1
    assert (X[known] == data.X[known, 0]).all()
    rest = ~known
    assert (X[rest] != data.X[rest, 0]).mean() > 0.9
    right = (X[rest] >= n_levels // 2) == (y[rest] == 1)
    assert right.mean() > 0.95
    assert set(X) <= set(x.astype(float))


def test_values_that_were_not_seen_have_a_place_too() -> None:
    data, spec = table()
    space = MixedSpace.fit(data, spec)
    strange = np.array([[-99.0, 0.7, 0.0, 12.5, 8.0, 1.0], [np.nan, -5.0, 99.0, np.nan, 7.0, 0.0]])
    low, high, has_score = space.ranks(strange)
    assert (low <= high).all()
    assert (low[0, 0], high[0, 0]) == (0.0, 0.0)
    assert not has_score[1, 0]
    codes = space.codes(strange)
    assert ((codes >= 0) & (codes < np.array(space.n_codes))).all()


def test_extreme_numbers_neither_overflow_nor_leave_the_range() -> None:
    x = np.concatenate([np.linspace(-1, 1, 60) * 1.7e308, [1e-300]])
    data = TableData(x[:, None], np.zeros(61, dtype=np.int64))
    space = MixedSpace.fit(data, spec_of((False,), (0,), 1))
    scores = np.array([[-40.0], [-1.0], [0.0], [1.0], [40.0]])
    X = space.decode(
        np.empty((5, 0), np.int64), scores, y=np.zeros(5, np.int64),
        keys=record_keys(np.arange(5)), counter=0,
    )  # fmt: skip
    assert np.isfinite(X).all()
    assert (np.diff(X[:, 0]) > 0).all()
    # The ends are values of one record each, which are not given away.
    assert x.min() < X[0, 0]
    assert X[-1, 0] < x.max()


def test_state_is_json_and_arrays_and_gives_the_same_space() -> None:
    data, spec = table()
    space = MixedSpace.fit(data, spec)
    config, arrays = space.state()
    again = MixedSpace.from_state(json.loads(json.dumps(config)), arrays, spec)
    assert again.n_codes == space.n_codes
    assert back(again, data, 0.3).tobytes() == back(space, data, 0.3).tobytes()
    assert (again.codes(data.X) == space.codes(data.X)).all()
