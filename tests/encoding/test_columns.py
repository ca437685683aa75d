"""Kinds are found where they are unambiguous, and source.columns goes before them."""

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prefect_augment.encoding.columns import describe_columns, require_columns
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.params import ColumnOverride

N = 200
rng = np.random.default_rng(0)
LABEL = ["yes", "no"] * (N // 2)


def result(values: Any, name: str = "c", overrides: tuple[ColumnOverride, ...] = ()) -> Any:
    return describe_columns(
        pa.table({name: values, "label": LABEL}), label="label", overrides=overrides
    )[0]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (rng.normal(size=N), "numeric"),
        (rng.integers(0, 50, N), "numeric"),
        (pa.array([dt.date(2020, 1, 1) + dt.timedelta(i) for i in range(N)]), "numeric"),
        (pa.array(range(N), pa.timestamp("us")), "numeric"),
        (pa.array(range(N), pa.duration("ms")), "numeric"),
        (pa.array(range(N), pa.time32("s")), "numeric"),
        (pa.array([Decimal(i) / 8 for i in range(N)], pa.decimal128(30, 10)), "numeric"),
        (pa.array([1.0, None] * (N // 2)), "numeric"),
        (["a", "b"] * (N // 2), "category"),
        ([True, False] * (N // 2), "category"),
        (pa.array(["a", "b"] * (N // 2)).dictionary_encode(), "category"),
        (pa.array([1, 2] * (N // 2)).dictionary_encode(), "category"),
        (["a"] * N, "constant"),
        ([3.0] * N, "constant"),
        (pa.nulls(N), "empty"),
        (pa.nulls(N, pa.string()), "empty"),
        ([float("nan")] * N, "empty"),
        ([[1, 2]] * N, "opaque"),
        ([{"a": 1}] * N, "opaque"),
        ([b"bytes"] * N, "opaque"),
        ([f"customer number {i} called twice" for i in range(N)], "opaque"),
        ([f"note {i // 2 * 2 % 180}, {i % 150}" for i in range(N)], "opaque"),
        ([f"M{i}" for i in range(N)], "identifier"),
        (pa.array([f"M{i}" for i in range(N)]).dictionary_encode(), "identifier"),
        (range(1, N + 1), "identifier"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_kind_of(values: Any, kind: str) -> None:
    assert result(pa.array(values) if isinstance(values, range) else values).kind == kind


@pytest.mark.parametrize("name", ["id", "customer_id", "CustomerID", "UDI", "row-key", "uuid4"])
def test_unique_integers_named_like_an_id_are_identifiers(name: str) -> None:
    found = result(rng.permutation(10 * N)[:N], name)
    assert found.kind == "identifier"
    assert "named like an identifier" in found.note


@pytest.mark.parametrize("name", ["width", "paid", "video", "ideal", "income"])
def test_unique_integers_of_another_name_are_numbers(name: str) -> None:
    assert result(rng.permutation(10 * N)[:N], name).kind == "numeric"


OWNER = [i // 3 for i in range(N)]


@pytest.mark.parametrize(
    ("name", "values", "is_owner"),
    [
        ("patient_id", OWNER, True),
        ("CustomerID", [f"C{i}" for i in OWNER], True),
        ("Patient", OWNER, True),
        ("patient age", OWNER, False),
        ("body mass index", OWNER, False),
        ("price", OWNER, False),
        ("customer_id", [float(i) for i in OWNER], False),
        ("shop_id", [i % 5 for i in OWNER], False),
        ("order_id", list(range(1, N + 1)), False),
    ],
)
def test_columns_that_say_whose_record_it_is_are_named(
    name: str, values: list[Any], is_owner: bool
) -> None:
    assert ("source.group_column" in result(values, name).note) == is_owner


def test_few_records_do_not_make_an_identifier() -> None:
    table = pa.table({"age": [31, 32, 33], "town": ["A", "B", "C"], "label": ["x", "y", "x"]})
    assert [c.kind for c in describe_columns(table, label="label")] == ["numeric", "category"]


def test_nulls_and_unique_values_are_counted_without_nan() -> None:
    found = result(pa.array([1.5, None, float("nan"), 2.5] * (N // 4)))
    assert (found.n_null, found.n_unique) == (N // 2, 2)


def test_infinite_values_are_noted() -> None:
    assert "2 infinite values" in result([np.inf, -np.inf, *rng.normal(size=N - 2)]).note


def test_values_that_cannot_be_compared_have_no_number_of_unique_ones() -> None:
    assert result([[1]] * N).n_unique == -1


def test_an_override_decides_the_kind() -> None:
    found = result(list(range(N)), overrides=(ColumnOverride(name="c", kind="numeric"),))
    assert (found.kind, found.note) == ("numeric", "set in source.columns")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([ColumnOverride(name="cc", kind="numeric")], "did you mean 'c'"),
        ([ColumnOverride(name="label", kind="category")], "label's kind is fixed"),
        (
            [ColumnOverride(name="c", kind="category"), ColumnOverride(name="c", kind="drop")],
            "twice",
        ),
        ([ColumnOverride(name="c", kind="numeric")], "cannot be numeric"),
        ([ColumnOverride(name="l", kind="category")], "cannot be a category"),
    ],
)
def test_an_override_that_cannot_be_granted_is_refused(
    overrides: list[ColumnOverride], says: str
) -> None:
    table = pa.table({"c": ["a", "b"], "l": [[1], [2]], "label": ["x", "y"]})
    with pytest.raises(ParameterError, match=says):
        describe_columns(table, label="label", overrides=overrides)


def test_a_parameter_that_names_no_column_is_refused() -> None:
    with pytest.raises(
        SchemaError, match=r"group_column 'patent' is not a column.*did you mean 'patient'"
    ):
        require_columns(pa.schema([("patient", pa.int64())]), ["", "patent"], what="group_column")
