"""Levels of few records and numbers of one record do not come out of a decoder."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prefect_augment.encoding import rare_values
from prefect_augment.encoding.columns import describe_columns
from prefect_augment.encoding.rare_values import RareValues, without_rare_levels
from prefect_augment.encoding.tables import TableEncoder

LABELS = ["a"] * 6 + ["b"] * 6


def guarding(values: Any) -> tuple[TableEncoder, np.ndarray]:
    column = values if isinstance(values, pa.Array) else pa.array(values)
    labels = (LABELS * len(column))[: len(column)]
    table = pa.table({"x": column, "label": labels})
    encoder = TableEncoder.fit(table, columns=describe_columns(table, label="label"), label="label")
    X = encoder.encode(table)
    return encoder.guarding(RareValues.of(X, encoder.is_category)), X


def written(encoder: TableEncoder, x: list[float]) -> list[Any]:
    column = np.array(x)[:, None]
    return encoder.decode(column, strata=["a"] * len(x))["x"].to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("values", "drawn", "expected"),
    [
        # On a grid: halfway to the next value, on the side that it came from.
        ([10, 10, 12, 15, 15, 17, 20, 20], [12.2, 11.8, 17.0, 15.1, 99.0], [14, 11, 18, 15, 20]),
        # 22 and 23 are neighbours: to the other side.
        ([20, 20, 22, 23, 25, 25], [22.0, 23.0, 22.6], [21, 24, 24]),
        # Every place is taken: the nearest that several records share.
        ([20, 20, 21, 22, 23, 23], [21.0, 22.0], [20, 23]),
        # Every place is taken, and none shared: it tells nobody apart.
        ([*range(1, 9)], [3.0], [3]),
        ([0.5, 0.5, 0.53, 0.6, 0.6], [0.53, 0.6], [0.56, 0.6]),
        # Without a grid: halfway to the next value.
        ([1 / 3, 1 / 3, 2 / 3, 1.1e-17, 4 / 3], [2 / 3, 4 / 3, 9.0], [1.0, 1.0, 1.0]),
        ([dt.date(2020, 1, d) for d in (1, 1, 5, 9, 9)], [18266.0], [dt.date(2020, 1, 1)]),
    ],
)
def test_a_number_of_one_record_is_moved(values: Any, drawn: list[float], expected: Any) -> None:
    shown = written(guarding(values)[0], drawn)
    assert shown == (expected if isinstance(expected[0], dt.date) else pytest.approx(expected))


def test_floats_of_single_precision_are_moved_too() -> None:
    x = np.linspace(0, 1, 300).astype(np.float32) ** 3
    encoder, X = guarding(pa.array(x))
    drawn = np.array(written(encoder, X[:, 0].tolist()), dtype=np.float32)
    assert not np.isin(drawn, x).any()


def test_rare_levels_are_learnt_as_frequent_ones_of_the_class() -> None:
    X = np.array([[0.0]] * 6 + [[1.0]] * 5 + [[2.0]] * 4 + [[np.nan]])
    y = np.array([0] * 6 + [1] * 10)
    is_category = np.array([True])
    learnt = without_rare_levels(X, y, is_category, seed=3)[:, 0]
    assert learnt[11:15].tolist() == [1.0] * 4
    np.testing.assert_array_equal(np.delete(learnt, range(11, 15)), np.delete(X, range(11, 15)))
    rare = RareValues.of(X, is_category, min_records=7)
    assert rare.without_level == [0]
    assert np.isnan(without_rare_levels(X, y, is_category, min_records=7, seed=3)).all()
    np.testing.assert_array_equal(without_rare_levels(X, y, is_category, min_records=1, seed=3), X)


def test_a_dictionary_lists_frequent_levels_and_one_level_asked_for_stays() -> None:
    values = pa.array(["x"] * 6 + ["y"] * 5 + ["person"]).dictionary_encode()
    encoder, X = guarding(values)
    shown = encoder.decode(X[:2], strata=["a", "b"])["x"].chunk(0)
    assert sorted(shown.dictionary.to_pylist()) == ["x", "y"]
    encoder, _ = guarding([1, 1, 3, 5, 5])
    assert encoder.decode(np.array([[3.0]]), strata=["a"], given=["x"])["x"].to_pylist() == [3]


def test_stored_and_read_again_they_are_the_same() -> None:
    X = np.array([[0.0, 1.5], [0.0, 2.5], [1.0, 2.5]])
    rare = RareValues.of(X, np.array([True, False]), min_records=2)
    again = RareValues.from_arrays(rare.arrays() | {"weights": np.zeros(2)})
    for ours, theirs in ((rare.levels, again.levels), (rare.numbers, again.numbers)):
        assert ours.keys() == theirs.keys()
        np.testing.assert_array_equal([*ours.values()], [*theirs.values()])


@pytest.mark.parametrize("at_once", [3, 1 << 20])
def test_numbers_that_come_in_batches_are_counted_as_all_at_once(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(rare_values, "AT_ONCE", at_once)
    x = np.random.default_rng(0).integers(0, 40, 200) / 8
    x[::9] = np.nan

    def batches() -> Iterator[np.ndarray]:
        return iter(np.array_split(x, 11))

    values, counts = rare_values.count_values(batches, x[:20])
    expected = np.unique(x[~np.isnan(x)], return_counts=True)
    assert (values == expected[0]).all()
    assert (counts == expected[1]).all()
    # Above the limit those of the learnt records alone, counted over all.
    known, n = rare_values.count_values(batches, x[:20], most=30)
    assert len(known) < 20
    assert known.tolist() == np.unique(x[:20][~np.isnan(x[:20])]).tolist()
    assert n.tolist() == [int((x == value).sum()) for value in known]
    same, _ = rare_values.count_values(batches, x[:20], most=len(values))
    assert (same == values).all()
