"""Arrow files in: what Arrow, pandas, polars and `datasets` write comes back to the type."""

import io
import warnings
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from hypothesis import given, strategies as st
from support.sources import whole

from prefect_augment.errors import AugmentError, InputError, SchemaError
from prefect_augment.params import Source
from prefect_augment.sources import archives as packed, arrow
from prefect_augment.sources.base import SourceRecords


def read(data: bytes) -> SourceRecords:
    return whole(arrow.read_batches(io.BytesIO(data), name="in.arrow", source=Source()))


def as_file(table: pa.Table, *, stream: bool = False, **options: Any) -> bytes:
    sink = io.BytesIO()
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue()


def as_feather(table: pa.Table, version: int = 2) -> bytes:
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        feather.write_feather(table, sink, version=version)
    return sink.getvalue()


EVERYTHING = pa.table(
    {
        "bool": [True, None, False, True],
        "i8": pa.array([1, None, -128, 127], pa.int8()),
        "u64": pa.array([0, None, 2**64 - 1, 1], pa.uint64()),
        "f32": pa.array([1.5, None, float("nan"), -0.0], pa.float32()),
        "text": ["a", None, "ü\n", ""],
        "large": pa.array(["a", None, "", "c"], pa.large_string()),
        "bytes": [b"\0", None, b"", b"x"],
        "category": pa.array(["u", None, "v", "u"]).dictionary_encode(),
        "day": [date(2026, 1, 1), None, date(1900, 1, 1), date(2026, 1, 2)],
        "when": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * 3 + [None], pa.timestamp("us", "Europe/Berlin")),
        "list": [[1.0], None, [], [2.0, None]],
        "struct": [{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}, {"a": 2, "b": None}],
        "nothing": pa.nulls(4),
    }
).replace_schema_metadata({"who": "me"})  # fmt: skip


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
def test_every_type_comes_back(stream: bool, compression: str | None) -> None:
    found = read(as_file(EVERYTHING, stream=stream, compression=compression))
    assert found.table.schema.equals(EVERYTHING.schema, check_metadata=True)
    assert found.table.to_pylist()[0] == EVERYTHING.to_pylist()[0]
    assert found.table.drop_columns(["f32"]).equals(EVERYTHING.drop_columns(["f32"]))
    assert found.positions.tolist() == [1, 2, 3, 4]


NUMBERS = st.integers(-(2**31), 2**31 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.slow
@given(st.lists(st.tuples(st.none() | NUMBERS, st.none() | TEXTS)), st.booleans())
def test_any_values_come_back(rows: list[tuple[int | None, str | None]], stream: bool) -> None:
    table = pa.table(
        [pa.array([a for a, _ in rows], pa.int32()), pa.array([b for _, b in rows], pa.string())],
        names=["a", "b"],
    )
    assert read(as_file(table, stream=stream)).table.equals(table)


@pytest.mark.parametrize("version", [1, 2])
def test_what_pandas_writes_as_feather_comes_back(version: int) -> None:
    frame = pd.DataFrame(
        {
            "x": [1.0, None],
            "n": [1, 2],
            "when": pd.to_datetime(["2026-01-01", None]),
            "kind": pd.Categorical(["a", "b"], categories=["b", "a"]),
            "text": ["a", None],
        }
    )
    # Version 1 has no form for the strings of newer pandas but that of all Arrow tables.
    table = pa.Table.from_pandas(frame.astype({"text": object}))
    found = read(as_feather(table, version))
    back = found.table.to_pandas()
    same = feather.read_table(io.BytesIO(as_feather(table))).to_pandas()
    pd.testing.assert_frame_equal(back, same, check_dtype=version == 2)
    assert back["kind"].cat.categories.tolist() == ["b", "a"]


def test_what_polars_writes_comes_back() -> None:
    frame = pl.DataFrame(
        {"x": [1.0, None], "text": ["a", "b" * 40], "kind": ["u", "v"], "raw": [b"1", None]},
        schema_overrides={"kind": pl.Categorical},
    )
    sink = io.BytesIO()
    frame.write_ipc(sink)  # text as string_view, which Parquet has no form for
    found = read(sink.getvalue()).table
    assert found.schema.field("text").type == pa.string()
    assert found.schema.field("raw").type in (pa.binary(), pa.large_binary())
    assert found.to_pylist() == [
        {"x": 1.0, "text": "a", "kind": "u", "raw": b"1"},
        {"x": None, "text": "b" * 40, "kind": "v", "raw": None},
    ]


def test_a_stream_s_batches_may_have_dictionaries_of_their_own() -> None:
    parts = [pa.table({"k": pa.array(values).dictionary_encode()}) for values in (["a", "b"], ["c", "a"])]  # fmt: skip
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, parts[0].schema) as writer:
        for part in parts:
            writer.write_table(part)
    found = read(sink.getvalue()).table["k"]
    assert found.to_pylist() == ["a", "b", "c", "a"]
    assert {tuple(chunk.dictionary.to_pylist()) for chunk in found.chunks} == {("a", "b", "c")}


def test_batches_are_those_of_the_file() -> None:
    file = io.BytesIO(as_file(EVERYTHING))
    parts = list(arrow.read_batches(file, name="in.arrow", source=Source()))
    assert [part.positions.tolist() for part in parts] == [[], [1, 2, 3], [4]]


def test_a_large_batch_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "BYTES_AT_ONCE", 100)
    table = pa.table({"x": range(100)})
    file = io.BytesIO(as_feather(table))
    parts = list(arrow.read_batches(file, name="in.arrow", source=Source()))
    assert max(part.table.num_rows for part in parts) == 13
    assert pa.concat_tables([part.table for part in parts]).equals(table)
    assert np.concatenate([part.positions for part in parts]).tolist() == list(range(1, 101))


def test_an_empty_file_has_its_columns() -> None:
    found = read(as_file(EVERYTHING.slice(0, 0), stream=True))
    assert found.table.schema == EVERYTHING.schema
    assert found.table.num_rows == 0


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
def test_a_damaged_file_is_an_error_and_never_a_crash(stream: bool) -> None:
    """Bits flipped anywhere, and the file cut anywhere: whole records, or an error of ours."""
    data = as_file(EVERYTHING.slice(0, 3), stream=stream, compression=None)
    rng = np.random.default_rng(0)
    n_refused = 0
    for i in range(400):
        damaged = bytearray(data)
        if i % 4 == 0:
            del damaged[int(rng.integers(len(data))) :]
        else:
            damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        try:
            as_feather(read(bytes(damaged)).table)  # every value is looked at
        except AugmentError:
            n_refused += 1
    assert n_refused > 100


def test_a_file_that_unpacks_to_far_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MIN_TOTAL_BYTES", 1 << 20)
    data = as_file(pa.table({"x": ["a" * 100_000] * 40}), compression="zstd")
    with pytest.raises(InputError, match="unpacks to more than 1,0"):
        read(data)


def test_two_columns_of_one_name_are_refused() -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    with pytest.raises(SchemaError, match="more than one column named 'x'"):
        read(as_file(table))


def test_a_type_that_cannot_be_published_is_refused_by_name() -> None:
    kind = pa.month_day_nano_interval()
    table = pa.table({"ok": [1], "gap": pa.array([(1, 2, 3)], kind)})
    with pytest.raises(SchemaError, match="column 'gap' of in.arrow is of type month_day_nano"):
        read(as_file(table))
