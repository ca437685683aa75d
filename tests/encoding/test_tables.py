"""The encoder gives back what it was given, and nothing that was never there."""

import datetime as dt
import decimal
import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from prefect_augment.encoding.strata import table_strata
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.schema import ColumnInfo

UTC = dt.UTC
ZURICH = "Europe/Zurich"

# Arrow type -> (kind, values); every one of them has to come back exactly.
LEARNT: dict[pa.DataType, tuple[str, st.SearchStrategy[Any]]] = {
    pa.int8(): ("numeric", st.integers(-128, 127)),
    pa.uint16(): ("numeric", st.integers(0, 2**16 - 1)),
    pa.int64(): ("numeric", st.integers(-(2**63), 2**63 - 1)),
    pa.uint64(): ("numeric", st.integers(0, 2**64 - 1)),
    pa.float32(): ("numeric", st.floats(width=32, allow_infinity=False, allow_nan=False)),
    pa.float64(): ("numeric", st.floats(allow_infinity=False, allow_nan=False)),
    pa.decimal128(9, 2): ("numeric", st.decimals(-(10**6), 10**6, places=2)),
    pa.decimal128(38, 10): ("numeric", st.decimals(-(10**12), 10**12, places=10)),
    pa.date32(): ("numeric", st.dates()),
    pa.time64("us"): ("numeric", st.times()),
    pa.timestamp("s"): ("numeric", st.datetimes().map(lambda t: t.replace(microsecond=0))),
    pa.timestamp("us", tz=ZURICH): ("numeric", st.datetimes(timezones=st.just(UTC))),
    pa.timestamp("ns"): ("numeric", st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2200, 1, 1))),
    pa.duration("ms"): (
        "numeric",
        st.integers(-(10**9), 10**9).map(lambda n: dt.timedelta(milliseconds=n)),
    ),
    pa.bool_(): ("category", st.booleans()),
    pa.string(): (
        "category",
        st.sampled_from(["", "a", "A ", "b/..", "<b>", "né", "🦊", "'\"\\|"]),
    ),
    pa.large_string(): ("category", st.sampled_from(["x", "y"])),
    pa.dictionary(pa.int8(), pa.string()): ("category", st.sampled_from(["lo", "mid", "hi"])),
    pa.dictionary(pa.int32(), pa.int64()): ("category", st.sampled_from([3, 1, 2])),
}
SPAN = 2**53  # grid steps that float64 can count


def column_fact(name: str, kind: str) -> ColumnInfo:
    return ColumnInfo(name=name, arrow_type="", kind=kind, n_null=0, n_unique=0)  # type: ignore[arg-type]


def fitted(table: pa.Table, kinds: dict[str, str], *, by: tuple[str, ...] = ()) -> TableEncoder:
    return TableEncoder.fit(
        table, columns=[column_fact(n, k) for n, k in kinds.items()], label="label", by=by
    )


def one_column(values: list[Any], kind: pa.DataType, **field: Any) -> pa.Table:
    schema = pa.schema([pa.field("x", kind, **field), ("label", pa.string())])
    return pa.table([pa.array(values, kind), ["k"] * len(values)], schema=schema)


def back(table: pa.Table, encoder: TableEncoder) -> pa.Table:
    return encoder.decode(
        encoder.encode(table), strata=table_strata(table, label="label", by=encoder.by)
    )


@st.composite
def tables(draw: st.DrawFn) -> tuple[pa.Table, dict[str, str]]:
    """Tables of random columns, types, nulls and metadata, with a label somewhere among them."""
    n = draw(st.integers(1, 12))
    kinds = {}
    fields, arrays = [], []
    for i, arrow_type in enumerate(draw(st.lists(st.sampled_from(list(LEARNT)), max_size=5))):
        kind, values = LEARNT[arrow_type]
        nullable = draw(st.booleans())
        made = draw(st.lists(values | st.none() if nullable else values, min_size=n, max_size=n))
        kinds[f"c{i}"] = kind
        fields.append(pa.field(f"c{i}", arrow_type, nullable=nullable))
        arrays.append(pa.array(made, arrow_type))
    label = draw(st.sampled_from([pa.int64(), pa.bool_(), pa.dictionary(pa.int8(), pa.int64())]))
    codes = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    place = draw(st.integers(0, len(fields)))
    fields.insert(place, pa.field("label", label, metadata={"said": "so"}))
    arrays.insert(place, pa.array([bool(c) if label == pa.bool_() else c for c in codes], label))
    return pa.table(arrays, schema=pa.schema(fields, metadata={"pandas": "{}", "more": "x"})), kinds


def is_countable(column: pa.ChunkedArray) -> bool:
    """Whether float64 can count the steps of the column's grid: what exact return is promised for."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    numbers = [v for v in column.to_pylist() if v is not None]
    if numbers and isinstance(numbers[0], decimal.Decimal):
        numbers = [int(v.scaleb(column.type.scale)) for v in numbers]
    if not numbers or not isinstance(numbers[0], int):
        return True
    gaps = [v - min(numbers) for v in numbers]
    return max(gaps) // max(1, math.gcd(*gaps)) <= SPAN


@pytest.mark.slow
@given(tables())
def test_real_records_come_back_exactly(made: tuple[pa.Table, dict[str, str]]) -> None:
    table, kinds = made
    encoder = fitted(table, kinds)
    returned = back(table, encoder)
    assert returned.schema.equals(table.schema, check_metadata=True)
    for name in table.column_names:
        if is_countable(table[name]):
            assert returned[name].to_pylist() == table[name].to_pylist(), name
    returned.validate(full=True)
    assert encoder.in_domain(encoder.encode(table)).all()


@pytest.mark.slow
@given(tables())
def test_saved_encoder_gives_the_same_bytes(made: tuple[pa.Table, dict[str, str]]) -> None:
    table, kinds = made
    encoder = fitted(table, kinds)
    loaded = TableEncoder.from_json(encoder.to_json())
    assert loaded.to_json() == encoder.to_json()
    assert loaded.digest == encoder.digest
    assert loaded.names == encoder.names
    assert np.array_equal(loaded.encode(table), encoder.encode(table), equal_nan=True)
    assert back(table, loaded).equals(back(table, encoder), check_metadata=True)


def test_two_zeros_in_any_order_give_one_encoder() -> None:
    either, other = ([0.0, 0.0, -0.0], [-0.0, 0.0, 0.0])
    digests = {
        fitted(one_column(values, pa.float32()), {"x": "numeric"}).digest
        for values in (either, other)
    }
    assert len(digests) == 1


@pytest.mark.slow
@given(tables(), st.randoms(use_true_random=False))
def test_encoder_does_not_depend_on_the_order_of_rows(
    made: tuple[pa.Table, dict[str, str]], random: Any
) -> None:
    table, kinds = made
    plain_types = [f.name for f in table.schema if not pa.types.is_dictionary(f.type)]
    if "label" not in plain_types:
        return  # a dictionary's order is part of the source, and pa.array makes it from the rows
    table = table.select(plain_types)
    order = list(range(table.num_rows))
    random.shuffle(order)
    kinds = {name: kind for name, kind in kinds.items() if name in plain_types}
    assert fitted(table.take(order), kinds).digest == fitted(table, kinds).digest


@pytest.mark.slow
@given(tables(), st.lists(st.floats(-1e19, 1e19) | st.just(math.nan), min_size=6, max_size=6))
def test_any_matrix_gives_records_of_the_domain(
    made: tuple[pa.Table, dict[str, str]], values: list[float]
) -> None:
    table, kinds = made
    encoder = fitted(table, kinds)
    d = len(encoder.names)
    X = np.resize(np.array(values), (6, d)) if d else np.empty((6, 0))
    for j, name in enumerate(encoder.names):
        if not table.schema.field(name).nullable:
            X[np.isnan(X[:, j]), j] = 0.0
    records = encoder.decode(X, strata=[encoder.strata[0]] * 6)
    records.validate(full=True)
    assert records.schema.equals(table.schema, check_metadata=True)
    for name in encoder.names:
        seen = [v for v in table[name].to_pylist() if v is not None]
        for value in records[name].to_pylist():
            if value is not None and kinds[name] == "category":
                assert value in seen
            elif value is not None:
                assert min(seen) <= value <= max(seen)


@pytest.mark.parametrize(
    ("values", "kind", "asked", "expected"),
    [
        ([0, 5, 10], pa.int64(), [-3.0, 4.4, 7.6, 99.0], [0, 5, 10, 10]),
        ([18, 41, 99], pa.int32(), [17.6, 41.7], [18, 42]),
        ([0.25, 1.5], pa.float64(), [0.3, 1.1], [0.25, 1.5]),
        ([1.5, 2.25, 3.0], pa.float64(), [2.4], [2.25]),
        ([0.1, 0.2, 0.4], pa.float64(), [0.31], [0.3]),
        ([dt.date(2024, 1, 1), dt.date(2024, 1, 8), dt.date(2024, 1, 22)], pa.date32(),
         [19723 + 13.0], [dt.date(2024, 1, 15)]),
    ],
)  # fmt: skip
def test_values_snap_to_the_grid_that_was_seen(
    values: list[Any], kind: pa.DataType, asked: list[float], expected: list[Any]
) -> None:
    encoder = fitted(one_column(values, kind), {"x": "numeric"})
    made = encoder.decode(np.array(asked)[:, None], strata=["k"] * len(asked))
    assert made["x"].to_pylist() == expected


def test_continuous_values_keep_what_a_model_drew() -> None:
    encoder = fitted(one_column([math.pi, math.e, -math.sqrt(2)], pa.float64()), {"x": "numeric"})
    assert encoder.decode(np.array([[1.23456789]]), strata=["k"])["x"].to_pylist() == [1.23456789]


def test_large_integers_are_counted_from_the_smallest() -> None:
    table = one_column([2**60, 2**60 + 1, 2**60 + 7], pa.int64())
    encoder = fitted(table, {"x": "numeric"})
    assert encoder.encode(table)[:, 0].tolist() == [0.0, 1.0, 7.0]
    assert back(table, encoder).equals(table)


def test_levels_stand_in_their_natural_order_and_unseen_ones_are_nan() -> None:
    encoder = fitted(one_column([10, 9, None, 100], pa.int64()), {"x": "category"})
    codes = encoder.encode(one_column([9, 10, 100, 11, None], pa.int64()))[:, 0]
    assert codes[:3].tolist() == [0.0, 1.0, 2.0]
    assert np.isnan(codes[3:]).all()
    assert encoder.n_levels.tolist() == [3]
    assert encoder.is_category.tolist() == [True]


def test_infinite_values_are_missing_and_come_back_as_the_column_writes_missing() -> None:
    with_null = one_column([1.0, None, math.inf], pa.float64())
    encoder = fitted(with_null, {"x": "numeric"})
    assert np.isnan(encoder.encode(with_null)[1:, 0]).all()
    assert back(with_null, encoder)["x"].to_pylist() == [1.0, None, None]
    with_nan = one_column([1.0, math.nan, -math.inf], pa.float64(), nullable=False)
    made = back(with_nan, fitted(with_nan, {"x": "numeric"}))["x"]
    assert made.null_count == 0
    assert np.isnan(made.to_numpy()[1:]).all()


def test_in_domain_tells_what_was_never_seen() -> None:
    table = pa.table({"x": [1, 5], "g": ["a", "b"], "m": [None, 2.5], "label": ["k", "k"]})
    encoder = fitted(table, {"x": "numeric", "g": "category", "m": "numeric"})
    X = np.array(
        [[1, 0, 2.5], [6, 0, 2.5], [3, 2, 2.5], [3, 1, np.nan], [np.nan, 1, 2.5], [3, 0.5, 2.5]]
    )
    assert encoder.in_domain(X).tolist() == [True, False, False, True, False, False]


def test_label_and_by_columns_come_from_the_stratum() -> None:
    table = pa.table(
        {
            "site": ["n", None, "s|x", "n"],
            "x": [1, 2, 3, 4],
            "label": pa.array([False, True, True, True]),
        }
    )
    encoder = fitted(table, {"site": "category", "x": "numeric"}, by=("site",))
    assert encoder.names == ("x",)
    assert set(encoder.strata) == set(table_strata(table, label="label", by=["site"]))
    assert back(table, encoder).equals(table)


def test_columns_that_are_not_learnt_follow_their_rule() -> None:
    schema = pa.schema(
        [
            pa.field("id", pa.int64()),
            pa.field("row", pa.uint32(), nullable=False),
            pa.field("code", pa.string()),
            pa.field("name", pa.string(), nullable=False),
            pa.field("unit", pa.dictionary(pa.int8(), pa.string()), nullable=False),
            pa.field("none", pa.float32()),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("label", pa.string()),
        ]
    )
    rows = [[5, 1, "x1", "n1", "mm", None, ["a"], "k"], [-2, 2, "x2", "n2", "mm", None, [], "l"]]
    table = pa.table([list(c) for c in zip(*rows, strict=True)], schema=schema)
    kinds = {
        "id": "identifier", "row": "identifier", "code": "identifier", "name": "identifier",
        "unit": "constant", "none": "empty", "tags": "opaque",
    }  # fmt: skip
    encoder = fitted(table, kinds)
    ids = [f"{i:032x}" for i in range(7 * 16**16, 7 * 16**16 + 4)]
    made = encoder.decode(np.empty((4, 0)), strata=["k", "l", "k", "l"], aug_ids=ids)
    assert made.schema.equals(schema, check_metadata=True)
    assert made["id"].to_pylist() == [-3, -4, -5, -6]  # below 0 and below the smallest
    assert made["row"].to_pylist() == [2**32 - 1 - i for i in range(4)]
    assert made["code"].to_pylist() == [None] * 4
    assert made["name"].to_pylist() == [f"synthetic-{i[:16]}" for i in ids]
    assert made["unit"].to_pylist() == ["mm"] * 4
    assert made["none"].null_count == made["tags"].null_count == 4
    more = encoder.decode(np.empty((1, 0)), strata=["l"], ordinals=np.array([1]), aug_ids=ids[:1])
    assert more["id"].to_pylist() == [-6], "an identifier does not depend on how many are made"


def test_fresh_identifiers_that_do_not_fit_are_refused() -> None:
    encoder = fitted(one_column(list(range(100)), pa.int8()), {"x": "identifier"})
    with pytest.raises(ParameterError, match="'x' is int8"):
        encoder.decode(np.empty((200, 0)), strata=["k"] * 200)


def test_opaque_column_that_may_not_be_null_is_refused_by_name() -> None:
    table = one_column([["a"], ["b"]], pa.list_(pa.string()), nullable=False)
    with pytest.raises(ParameterError, match="'x'"):
        fitted(table, {"x": "opaque"})


def test_nested_column_cannot_be_learnt() -> None:
    with pytest.raises(SchemaError, match="'x' has type list"):
        fitted(one_column([["a"]], pa.list_(pa.string())), {"x": "category"})


def test_missing_value_where_none_may_be_is_refused() -> None:
    encoder = fitted(one_column([1, 2], pa.int64(), nullable=False), {"x": "numeric"})
    with pytest.raises(ParameterError, match="'x' may not be null"):
        encoder.decode(np.array([[np.nan]]), strata=["k"])


def test_unknown_stratum_missing_column_and_other_type_are_named() -> None:
    table = one_column([1, 2], pa.int64())
    encoder = fitted(table, {"x": "numeric"})
    with pytest.raises(ParameterError, match=r"unknown strata \['z'\]"):
        encoder.decode(np.array([[1.0]]), strata=["z"])
    with pytest.raises(SchemaError, match=r"'x'.*missing"):
        encoder.encode(table.select(["label"]))
    with pytest.raises(SchemaError, match="column 'x' is string"):
        encoder.encode(one_column(["one"], pa.string()))


def test_pandas_dtypes_and_unused_categories_survive() -> None:
    frame = pd.DataFrame(
        {
            "n": pd.array([1, None, 3], dtype="Int64"),
            "flag": pd.array([True, None, False], dtype="boolean"),
            "site": pd.Categorical(["b", "a", "b"], categories=["c", "b", "a"], ordered=True),
            "when": pd.to_datetime(["2024-03-31 01:30", "2024-03-31 03:30", None]).tz_localize(
                ZURICH
            ),
            "label": ["k", "k", "l"],
        }
    )
    table = pa.Table.from_pandas(frame)
    kinds = {"n": "numeric", "flag": "category", "site": "category", "when": "numeric"}
    encoder = TableEncoder.from_json(fitted(table, kinds).to_json())
    pd.testing.assert_frame_equal(back(table, encoder).to_pandas(), frame)


def test_a_column_without_a_value_among_the_training_records_comes_back_null() -> None:
    table = pa.table(
        {
            "x": pa.array([None, None], pa.float64()),
            "g": pa.array([None, None], pa.string()),
            "label": ["k", "l"],
        }
    )
    encoder = fitted(table, {"x": "numeric", "g": "category"})
    later = pa.table({"x": [1.0], "g": ["new"], "label": ["k"]})
    assert encoder.encode(later)[0, 0] == 1.0
    assert back(later, encoder).to_pylist() == [{"x": None, "g": None, "label": "k"}]


def test_a_table_without_rows_is_encoded_and_decoded() -> None:
    table = one_column([1, 2], pa.int64())
    encoder = fitted(table, {"x": "numeric"})
    assert encoder.encode(table.slice(0, 0)).shape == (0, 1)
    assert encoder.decode(np.empty((0, 1)), strata=[]).schema.equals(table.schema)


def test_a_range_beyond_float64_is_never_left_upwards() -> None:
    """The largest of more than 2**53 steps has no float64 of its own; the next one up is not in the domain."""
    values = [-631_152_000_000_000, -631_151_999_999_999, 9_940_579_200_000_003]
    table = pa.table(
        {"when": pa.array(values, pa.timestamp("us")), "label": pa.array(["a"] * 3, pa.string())}
    )
    encoder = TableEncoder.fit(table, columns=[column_fact("when", "numeric")], label="label")
    back = encoder.decode(encoder.encode(table), strata=["a"] * 3)
    assert max(back["when"].cast(pa.int64()).to_pylist()) <= values[-1]
