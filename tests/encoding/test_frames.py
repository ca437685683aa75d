"""Records held in numpy, pandas, polars or Arrow go to Arrow and come back as they were."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from prefect_augment.encoding.frames import Layout, kind_of, take_rows
from prefect_augment.errors import SchemaError


def there_and_back(X: Any) -> Any:
    layout = Layout.of(X)
    return layout.from_arrow(layout.to_arrow(X))


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.5, np.nan, -0.0], dtype=np.float16),
        np.array([1.5, np.nan, np.inf], dtype=np.float32),
        np.array([1, 2, 3], dtype=np.int8),
        np.array([0, 2**64 - 1, 3], dtype=np.uint64),
        np.array([True, False, True]),
        np.array(["a", "bcd", ""]),
        np.array(["2024-01-01", "1900-01-01", "2300-05-05"], dtype="datetime64[D]"),
        np.array(["2024-01-01T05", "NaT", "2000-01-01"], dtype="datetime64[ns]"),
        np.array(["a", None, "b"], dtype=object),
        np.array([1, 2, 3], dtype=object),
        np.array([dt.date(2024, 1, 1), None, dt.date(2020, 2, 2)], dtype=object),
    ],
    ids=lambda values: str(values.dtype),
)
def test_an_array_keeps_its_dtype_and_values(values: np.ndarray) -> None:
    X = np.column_stack([values, values[::-1]])
    back = there_and_back(X)
    assert back.dtype == X.dtype
    assert pd.DataFrame(back).equals(pd.DataFrame(X))


SERIES = [
    pd.Series([1, None, 3], dtype="Int64"),
    pd.Series([2**62 + 1, None, 3], dtype="Int64"),
    pd.Series([1.5, None, 3], dtype="Float32"),
    pd.Series([True, None, False], dtype="boolean"),
    pd.Series(["a", None, "b"], dtype="string"),
    pd.Series(["a", None, "b"], dtype="str"),
    pd.Series(["a", np.nan, "b"], dtype=object),
    pd.Series(["a", None, "b"], dtype=pd.CategoricalDtype(["b", "never", "a"], ordered=True)),
    pd.Series([7, None, 5], dtype="category"),
    pd.Series([0.0, 0.0, 2.0], dtype=pd.SparseDtype(float, 0.0)),
    pd.Series(pd.to_datetime(["2024-01-01", None, "2024-02-02"])),
    pd.Series(pd.to_datetime(["2024-01-01", None, "2024-02-02"])).dt.tz_localize("Asia/Tokyo"),
    pd.Series(pd.to_timedelta([1, None, 3], "min")),
    pd.Series([1, None, 3], dtype=pd.ArrowDtype(pa.int32())),
    pd.Series([decimal.Decimal("1.50"), None, decimal.Decimal("2.25")], dtype=object),
    pd.Series([1, 2, 3], dtype=np.uint8),
]


@pytest.mark.parametrize("series", SERIES, ids=lambda series: str(series.dtype))
def test_a_series_keeps_its_dtype_and_values(series: pd.Series[Any]) -> None:
    X = pd.DataFrame({"it": series, 7: series})
    pd.testing.assert_frame_equal(there_and_back(X), X)


def test_a_polars_frame_keeps_its_schema() -> None:
    X = pl.DataFrame(
        {
            "a": [1, None, 3],
            "b": ["x", None, "y"],
            "c": [dt.timedelta(minutes=1), None, dt.timedelta(days=3)],
            "d": [dt.time(1, 2), None, dt.time(3)],
        },
        schema_overrides={"a": pl.UInt16, "b": pl.Categorical},
    )
    back = there_and_back(X)
    assert back.schema == X.schema
    assert back.equals(X)


def test_rows_are_joined_in_the_same_kind() -> None:
    table = pa.table({"a": pa.array([1, 2], pa.int8()), "b": ["x", "y"]})
    copies = np.array([1])
    joined = Layout.of(table).join(table, copies, table.slice(0, 1))
    assert joined.to_pylist() == [{"a": 1, "b": "x"}, *[{"a": 2, "b": "y"}] * 2, {"a": 1, "b": "x"}]
    rows = [[1, 2], [3, 4]]
    layout = Layout.of(rows)
    assert layout.join(rows, copies, layout.to_arrow([[5, 6]])) == [[1, 2], [3, 4], [3, 4], [5, 6]]
    assert kind_of(rows) == "list"


def test_labels_are_taken_as_they_are_held() -> None:
    rows = np.array([2, 0])
    assert take_rows(["a", "b", "c"], rows) == ["c", "a"]
    assert take_rows(np.array([1, 2, 3]), rows).tolist() == [3, 1]
    assert take_rows(pa.chunked_array([["a", "b"], ["c"]]), rows).to_pylist() == ["c", "a"]
    assert take_rows(pl.Series("k", [1, 2, 3]), rows).to_list() == [3, 1]
    taken = take_rows(pd.Series([1, 2, 3], index=[7, 8, 9], name="k"), rows)
    pd.testing.assert_series_equal(taken, pd.Series([3, 1], name="k"))


def test_values_of_several_types_are_refused_by_column() -> None:
    with pytest.raises(SchemaError, match=r"column 'b' holds values of several types"):
        there_and_back(pd.DataFrame({"a": [1, 2], "b": pd.Series([1, "x"], dtype=object)}))


def test_categories_that_are_ranges_come_back_as_they_were() -> None:
    numbers = pd.Series([0.5, 1.5, None, 2.5])
    days = pd.Series(pd.period_range("2026-01", periods=4, freq="M"))
    frame = pd.DataFrame({"band": pd.cut(numbers, 3), "month": days.astype("category")})
    table = Layout.of(frame).to_arrow(frame)
    assert table["band"].to_pylist()[0] == str(frame["band"].iloc[0])
    assert table["band"].null_count == 1
    pd.testing.assert_frame_equal(there_and_back(frame), frame)


def test_lists_keep_the_type_of_each_column() -> None:
    rows = [[1.5, "a", 1], [2.5, "b", 2]]
    table = Layout.of(rows).to_arrow(rows)
    assert [str(t) for t in table.schema.types] == ["double", "string", "int64"]
    assert there_and_back(rows) == rows


def test_texts_longer_than_those_there_are_are_not_cut() -> None:
    X = np.array([["a", "b"], ["c", "d"]])
    layout = Layout.of(X)
    new = pa.table({"x0": ["synthetic-1", "synthetic-2"], "x1": ["b", "d"]})
    joined = layout.join(X, np.array([0]), new)
    assert joined[:, 0].tolist() == ["a", "c", "a", "synthetic-1", "synthetic-2"]
    assert joined.dtype.kind == "U"
