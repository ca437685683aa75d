"""Names of records do not depend on how the records came."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from prefect_augment.encoding.record_ids import content_digests, derived_ids, float_variants
from prefect_augment.storage.keys import hex_column

NAN = float("nan")


def content_keys(table: pa.Table, exclude: tuple[str, ...] | list[str] = ()) -> pa.StringArray:
    return hex_column(content_digests(table, exclude=exclude))


def keys(**columns: object) -> list[str]:
    return content_keys(pa.table(columns)).to_pylist()


def test_keys_are_32_hexadecimal_digits() -> None:
    (key,) = keys(a=[1])
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")


def test_keys_of_a_known_table_do_not_change_between_releases() -> None:
    """Published ledgers hold these keys: another value here would move every record."""
    table = pa.table({"n": [1, None], "x": [0.5, -0.0], "t": ["é", ""], "b": [True, False]})
    assert content_keys(table).to_pylist() == [
        "39f456435da5d37ad5328ac2d1b9d3c4",
        "875d5e1fde960e645a6de457db3e1f75",
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1, 2, None]), pa.array([1.0, 2.0, NAN])),
        (pa.array([1, 2], pa.int8()), pa.array([1, 2], pa.uint64())),
        (pa.array([0.5], pa.float32()), pa.array([0.5])),
        (pa.array([0.0]), pa.array([-0.0])),
        (pa.array([None], pa.float64()), pa.array([None], pa.string())),
        (pa.array(["a", "b", "a"]), pa.array(["a", "b", "a"]).dictionary_encode()),
        (pa.array(["a", "b"]), pa.array(["a", "b"], pa.large_string())),
        (pa.array(["a", "b"]), pa.array(["a", "b"], pa.string_view())),
        (pa.array([b"a"]), pa.array([b"a"], pa.binary(1))),
        (pa.array([Decimal("1.50")]), pa.array([Decimal("1.5")])),
        (pa.array([dt.date(2024, 5, 1)]), pa.array([dt.datetime(2024, 5, 1)], pa.timestamp("ns"))),
        (pa.array([7], pa.timestamp("s")), pa.array([7000], pa.timestamp("ms"))),
        (pa.array([-1], pa.timestamp("s")), pa.array([-1_000_000], pa.timestamp("us", tz="UTC"))),
        (pa.array([3], pa.duration("s")), pa.array([3000], pa.duration("ms"))),
        (
            pa.array([[1, NAN]], pa.list_(pa.float64())),
            pa.array([[1, None]], pa.list_(pa.float64())),
        ),
    ],
    ids=str,
)
def test_equal_values_have_equal_keys_whatever_their_type(one: pa.Array, other: pa.Array) -> None:
    assert keys(a=one) == keys(a=other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1]), pa.array([True])),
        (pa.array([1]), pa.array(["1"])),
        (pa.array([0]), pa.array([None], pa.int64())),
        (pa.array([""]), pa.array([None], pa.string())),
        (pa.array(["a"]), pa.array([b"a"])),
        (pa.array([2**53]), pa.array([2**53 + 1])),
        (pa.array([-(2**63)]), pa.array([2**63], pa.uint64())),
        (pa.array([7], pa.timestamp("s")), pa.array([7], pa.duration("s"))),
        (pa.array([[1, 2]]), pa.array([[2, 1]])),
        (
            pa.array([Decimal("0.12345678901234567890123456789012345678")]),
            pa.array([Decimal("0.12345678901234567890123456789012345679")]),
        ),
    ],
    ids=str,
)
def test_different_values_have_different_keys(one: pa.Array, other: pa.Array) -> None:
    assert keys(a=one) != keys(a=other)


def test_keys_ignore_column_order_and_excluded_columns() -> None:
    table = pa.table({"a": [1, 2], "b": ["x", "y"], "label": ["p", "q"]})
    plain = content_keys(table, exclude=["label"])
    assert content_keys(table.select(["label", "b", "a"]), exclude=["label"]) == plain
    assert content_keys(table.drop_columns(["label"])) == plain


def test_values_that_swap_columns_change_the_key() -> None:
    assert keys(a=[1], b=[2]) != keys(a=[2], b=[1])
    assert keys(a=[1], b=[2]) != keys(a=[1], c=[2])


values = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(-5, 5)),
        st.one_of(st.none(), st.floats(width=32)),
        st.one_of(st.none(), st.text(max_size=3)),
        st.one_of(st.none(), st.booleans()),
    ),
    min_size=1,
    max_size=20,
)


@pytest.mark.slow
@given(rows=values, data=st.data())
def test_keys_ignore_chunks_and_row_order(
    rows: list[tuple[object, ...]], data: st.DataObject
) -> None:
    types = [pa.int64(), pa.float64(), pa.string(), pa.bool_()]
    columns = [pa.array(c, t) for c, t in zip(zip(*rows, strict=True), types, strict=True)]
    table = pa.table(columns, names=list("abcd"))
    plain = content_keys(table)
    cut = data.draw(st.integers(0, len(rows)))
    assert content_keys(pa.concat_tables([table.slice(0, cut), table.slice(cut)])) == plain
    order = pa.array(data.draw(st.permutations(range(len(rows)))))
    assert content_keys(table.take(order)) == plain.take(order)


def test_batches_do_not_change_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"a": list(range(10)), "b": list("aabbccddee")})
    plain = content_keys(table)
    monkeypatch.setattr("prefect_augment.encoding.record_ids.ROWS_AT_ONCE", 3)
    assert content_keys(table) == plain


def test_an_empty_table_has_no_keys() -> None:
    assert content_keys(pa.table({"a": pa.array([], pa.int64())})).to_pylist() == []


def test_derived_ids_differ_between_origins_parents_and_ordinals() -> None:
    real = derived_ids("real", ["p"] * 2, "tail", range(2)).to_pylist()
    copies = derived_ids("copy", ["p", "p", "q"], "tail", [0, 1, 0]).to_pylist()
    classic = derived_ids("classic", ["p", "p", "q"], "tail", [0, 1, 0]).to_pylist()
    synthetic = derived_ids("synthetic", "p", ["tail"] * 3, np.arange(3)).to_pylist()
    assert len({*real, *copies, *classic, *synthetic}) == 2 + 3 + 3 + 3


def test_derived_ids_keep_neighbouring_parts_apart() -> None:
    assert derived_ids("copy", ["ab"], ["c"]) != derived_ids("copy", ["a"], ["bc"])


def test_float_variants_tell_apart_what_keys_do_not() -> None:
    table = pa.table({"x": pa.array([None, NAN, 0.0, -0.0, 1.0]), "n": [1, 1, 1, 1, 1]})
    null, nan, zero, negative, one = float_variants(table).tolist()
    assert null == zero == one
    assert len({null, nan, negative}) == 3
