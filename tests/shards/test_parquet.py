import errno
import gc
import io
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st
from support.sources import whole

from prefect_augment.errors import InputError, IntegrityError, SchemaError, StorageError
from prefect_augment.params import Source
from prefect_augment.shards.base import label_names, read_shard, write_shards
from prefect_augment.shards.parquet import LINEAGE, conform, select_columns, with_lineage
from prefect_augment.sources.parquet import read_batches
from prefect_augment.storage import Draft, Store, open_store, sha256_hex

SOURCE = Source()


def as_file(table: pa.Table, **options: Any) -> io.BytesIO:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    sink.seek(0)
    return sink


def from_file(table: pa.Table, **options: Any) -> pa.Table:
    return whole(read_batches(as_file(table, **options), name="in.parquet", source=SOURCE)).table


def write(store: Store, table: pa.Table, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "prefix": "data", "stem": "train-real", "split": "train", "origin": "real", "label": "label",
        "max_records": 1000, "max_bytes": 1 << 30,
    }  # fmt: skip
    return write_shards(store, table, **{**settings, **options})


def finished(table: pa.Table) -> pa.Table:
    return with_lineage(table, origin="real", aug_id=[f"{i:032x}" for i in range(table.num_rows)])


# --- round trips ------------------------------------------------------------------------------

NAMES = st.text(min_size=1, max_size=8).filter(
    lambda name: name not in LINEAGE.names and "\0" not in name
)
ARROW_TYPES = st.sampled_from(
    [
        pa.int8(), pa.int64(), pa.uint16(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.string(),
        pa.large_string(), pa.binary(), pa.date32(), pa.timestamp("us"), pa.timestamp("ns", "Europe/Berlin"),
        pa.time64("us"), pa.duration("ms"), pa.decimal128(12, 3), pa.null(), pa.list_(pa.int32()),
        pa.struct([("a", pa.int8()), ("b", pa.string())]), pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int32(), pa.string(), ordered=True),
    ]
)  # fmt: skip
PANDAS_DTYPES = st.sampled_from(
    ["int64", "float32", "Int16", "Float64", "boolean", "bool", "str", "object", "category", "ordered",
     "datetime64[ns]", "datetime64[s, UTC]", "timedelta64[ns]", "numbers"]
)  # fmt: skip


def arrow_column(kind: pa.DataType, n: int, rng: np.random.Generator) -> pa.Array:
    gaps = rng.random(n) < 0.3
    if pa.types.is_dictionary(kind):
        codes = pa.array(rng.integers(0, 3, n), pa.int32(), mask=gaps)
        return pa.DictionaryArray.from_arrays(
            codes, pa.array(["z", "never", "ä"]), ordered=kind.ordered
        )
    if pa.types.is_null(kind):
        return pa.nulls(n)
    numbers = rng.integers(0, 100, n)
    if pa.types.is_struct(kind):
        values: list[Any] = [{"a": int(v), "b": None} for v in numbers]
    elif pa.types.is_list(kind):
        values = [[int(v)] * int(v % 3) for v in numbers]
    elif pa.types.is_decimal(kind):
        return pa.array(
            [None if g else Decimal(int(v)) for v, g in zip(numbers, gaps, strict=True)], kind
        )
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = [f"<{v}>" for v in numbers]
    elif pa.types.is_binary(kind):
        values = [bytes([v]) for v in numbers]
    elif pa.types.is_boolean(kind):
        values = [bool(v % 2) for v in numbers]
    elif pa.types.is_floating(kind):
        values = [float(v) if v % 5 else float("nan") for v in numbers]
        return pa.array(np.array(values, dtype=kind.to_pandas_dtype()), kind, mask=gaps)
    else:
        ints = pa.array(numbers, pa.int32() if kind == pa.date32() else pa.int64(), mask=gaps)
        return ints.cast(kind)
    return pa.array([None if gap else v for v, gap in zip(values, gaps, strict=True)], kind)


def pandas_column(dtype: str, n: int, rng: np.random.Generator) -> Any:
    numbers = rng.integers(0, 50, n)
    if dtype in ("category", "ordered", "numbers"):
        levels = [30, 10, 20] if dtype == "numbers" else ["z", "never", "ä"]
        return pd.Categorical.from_codes(numbers % 2 * 2, levels, ordered=dtype == "ordered")
    if dtype == "object":
        return np.array([b"x%d" % v for v in numbers], dtype=object)
    if dtype == "str":
        return pd.array([f"t{v}" if v % 4 else None for v in numbers], dtype="str")
    if dtype in ("Int16", "Float64"):
        return pd.array([int(v) if v % 4 else None for v in numbers], dtype=dtype)
    if dtype in ("boolean", "bool"):
        return pd.array([v % 2 == 0 for v in numbers], dtype=dtype)
    return (
        pd.Series(numbers).astype("int64").astype(dtype)
        if "[" not in dtype
        else _times(dtype, numbers)
    )


def _times(dtype: str, numbers: Any) -> pd.Series:
    if dtype.startswith("timedelta"):
        return pd.Series(pd.to_timedelta(numbers, unit="s")).astype("timedelta64[ns]")
    stamps = pd.Series(pd.to_datetime(numbers, unit="D"))
    return stamps.dt.tz_localize("UTC") if "UTC" in dtype else stamps.astype(dtype)


@pytest.mark.slow
@given(
    columns=st.dictionaries(NAMES, ARROW_TYPES, min_size=1, max_size=6),
    n=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    max_records=st.integers(1, 50),
)
def test_an_arrow_table_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    columns: dict[str, Any],
    n: int,
    seed: int,
    max_records: int,
) -> None:
    store = open_store(str(tmp_path_factory.mktemp("s")))
    rng = np.random.default_rng(seed)
    made = pa.table({name: arrow_column(kind, n, rng) for name, kind in columns.items()})
    source = from_file(made.replace_schema_metadata({"theirs": "kept"}))
    shards = write(store, finished(source), label="", max_records=max_records)
    back = pa.concat_tables([read_shard(store, s.path) for s in shards])
    assert back.column_names == [*source.column_names, *LINEAGE.names]
    assert back.select(source.column_names).schema.equals(source.schema)
    assert back.schema.metadata[b"theirs"] == b"kept"
    assert as_text(back.select(source.column_names)) == as_text(source)  # NaN equals NaN
    assert sum(s.n_records for s in shards) == n
    assert all(s.n_records <= max_records for s in shards)


def as_text(table: pa.Table) -> list[str]:
    return [repr(row) for row in table.to_pylist()]


@pytest.mark.slow
@given(
    columns=st.dictionaries(NAMES, PANDAS_DTYPES, min_size=1, max_size=6),
    n=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    index=st.sampled_from(["range", "sliced", "named", "text"]),
)
def test_a_frame_comes_back_with_its_dtypes_and_pandas_metadata(
    tmp_path_factory: pytest.TempPathFactory, columns: dict[str, str], n: int, seed: int, index: str
) -> None:
    store = open_store(str(tmp_path_factory.mktemp("s")))
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({name: pandas_column(dtype, n, rng) for name, dtype in columns.items()})
    frame.index = {
        "range": pd.RangeIndex(n),
        "sliced": pd.RangeIndex(5, 5 + n),
        "named": pd.RangeIndex(n, name="number"),
        "text": pd.Index([f"r{i}" for i in range(n)], name="key of row"),
    }[index]
    file = as_file(pa.Table.from_pandas(frame))
    source = whole(read_batches(file, name="in.parquet", source=SOURCE)).table
    (shard,) = write(store, finished(source), label="")

    back = read_shard(store, shard.path)
    before, after = (json.loads(t.schema.metadata[b"pandas"]) for t in (source, back))
    n_before = len(before["columns"])
    assert after["columns"][:n_before] == before["columns"]
    assert [c["name"] for c in after["columns"][n_before:]] == LINEAGE.names
    assert {**after, "columns": 0} == {**before, "columns": 0}

    file.seek(0)
    expected, found = pd.read_parquet(file), pd.read_parquet(Path(store.root) / shard.path)
    assert list(found.columns) == [*expected.columns, *LINEAGE.names]
    pd.testing.assert_frame_equal(found[list(expected.columns)], expected)


def test_pandas_reads_lineage_with_exact_seeds(store: Store) -> None:
    """float64, which pandas takes for integers with nulls by itself, would round the seed."""
    seeds = [None, 2**62 + 1]
    for metadata in (
        None,
        {"pandas": json.dumps({"index_columns": [], "column_indexes": [], "columns": []})},
    ):
        table = pa.table({"label": ["a", "b"]}).replace_schema_metadata(metadata)
        table = with_lineage(table, origin="synthetic", aug_id=["1", "2"], seed=seeds)
        (shard,) = write(store, table)
        frame = pd.read_parquet(Path(store.root) / shard.path)
        assert frame["aug_seed"].dtype == "Int64"
        assert frame["aug_seed"][1] == seeds[1]
        assert frame["aug_weight"].dtype == "float32"
        assert frame["label"].dtype == "str"


# --- schema metadata --------------------------------------------------------------------------


def test_a_huggingface_key_gets_the_lineage_columns(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them `datasets` would find columns that the features it was told do not have."""
    datasets = pytest.importorskip("datasets")
    features = {
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
        "x": {"dtype": "int8", "_type": "Value"},
    }
    table = pa.table({"label": pa.array([0, 1], pa.int64()), "x": pa.array([1, 2], pa.int8())})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    (shard,) = write(store, finished(from_file(table)))
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(Path(store.root) / shard.path),
        cache_dir=str(tmp_path / "cache"),
        split="train",
    )
    assert loaded.features["label"].names == ["cat", "dog"]
    assert loaded.features["x"].dtype == "int8"
    assert loaded.features["aug_weight"].dtype == "float32"
    assert loaded["aug_id"] == [f"{i:032x}" for i in range(2)]


@pytest.mark.parametrize("value", [b"no json", b"[1]", b'{"info": {}}x', b'{"other": 1}'])
def test_a_huggingface_key_that_cannot_be_extended_is_dropped(value: bytes) -> None:
    table = pa.table({"x": [1]}).replace_schema_metadata({"huggingface": value, "mine": "kept"})
    metadata = finished(table).schema.metadata
    assert b"huggingface" not in metadata
    assert metadata[b"mine"] == b"kept"


def test_columns_that_go_are_taken_out_of_the_metadata() -> None:
    frame = pd.DataFrame({"a": [1], "b": [2]}, index=pd.Index(["k"], name="key"))
    table = pa.Table.from_pandas(frame)
    assert select_columns(table, table.column_names).schema.metadata == table.schema.metadata
    left = select_columns(table, ["b"])
    found = json.loads(left.schema.metadata[b"pandas"])
    assert [c["name"] for c in found["columns"]] == ["b"]
    assert found["index_columns"] == []
    assert left.to_pandas().columns.tolist() == ["b"]


def test_adding_and_taking_away_lineage_gives_the_same_bytes_of_metadata() -> None:
    table = from_file(pa.Table.from_pandas(pd.DataFrame({"a": [1], "ä": ["x"]})))
    assert (
        select_columns(finished(table), table.column_names).schema.metadata == table.schema.metadata
    )


def test_a_column_named_like_a_lineage_column_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"'aug_seed'.*rename"):
        finished(pa.table({"aug_seed": [1]}))


def test_conform_keeps_categories_in_the_source_s_order() -> None:
    like = pa.table({"c": pd.Categorical(["b", "a"], categories=["b", "never", "a"])})
    like = from_file(like)
    other = from_file(
        pa.table({"c": pa.array(["a", None, "b"]).dictionary_encode(), "more": [1, 2, 3]})
    )
    got = conform(other, like, where="here")
    assert got["c"].to_pylist() == ["a", None, "b"]
    assert got["c"].to_pandas().cat.categories.tolist() == ["b", "never", "a"]


def test_conform_refuses_other_types_and_missing_columns() -> None:
    like = pa.table({"x": pa.array([1], pa.int8())})
    with pytest.raises(
        SchemaError, match="column 'x' is int64 in the candidates and int8 in the source"
    ):
        conform(pa.table({"x": [1]}), like, where="the candidates")
    with pytest.raises(SchemaError, match="lacks the columns 'x'"):
        conform(pa.table({"y": [1]}), like, where="the candidates")


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0, 1, None], pa.int64(), ["0", "1", None]),
        ([True, False], pa.bool_(), ["true", "false"]),
        (["x", "y"], pa.dictionary(pa.int32(), pa.string()), ["x", "y"]),
    ],
)
def test_classes_are_named_by_the_label_as_text(
    values: Any, kind: Any, expected: list[Any]
) -> None:
    assert label_names(pa.chunked_array([pa.array(values, kind)])) == expected


# --- source files that cannot be used ---------------------------------------------------------


def test_two_columns_of_one_name_are_refused_by_name() -> None:
    table = pa.Table.from_arrays([pa.array([1])] * 3, names=["a", "b", "a"])
    with pytest.raises(SchemaError, match=r"in\.parquet has more than one column named 'a'"):
        from_file(table)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"a,b\n1,2\n",
        lambda data: data[:4] + b"\xff" * 60 + data[64:],
        lambda data: data[:-8] + bytes([data[-8] ^ 255]) + data[-7:],
    ],
    ids=["empty", "cut off", "csv", "overwritten pages", "flipped footer length"],
)
def test_a_file_that_is_not_whole_parquet_is_named(damage: Callable[[bytes], bytes]) -> None:
    data = damage(as_file(pa.table({"a": list(range(1000))})).getvalue())
    with pytest.raises(InputError, match=r"lake/in\.parquet cannot be read as Parquet"):
        whole(read_batches(io.BytesIO(data), name="lake/in.parquet", source=SOURCE))


def test_text_that_is_not_utf8_is_named() -> None:
    wrong = pa.StringArray.from_buffers(
        1, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")
    )
    with pytest.raises(InputError, match=r"in\.parquet cannot be read.*UTF"):
        from_file(pa.table({"a": wrong}))


def test_positions_count_from_one() -> None:
    records = whole(read_batches(as_file(pa.table({"a": [5, 6]})), name="x", source=SOURCE))
    assert records.positions.tolist() == [1, 2]
    assert records.rejected == ()


# --- shards -----------------------------------------------------------------------------------


def test_names_hold_the_digest_and_info_tells_the_truth(store: Store) -> None:
    table = pa.table({"label": ["a", "b", "a"]})
    (shard,) = write(store, table)
    data = store.read(shard.path)
    assert shard.path == f"data/train-real-00000-{sha256_hex(data)[:12]}.parquet"
    assert (shard.n_bytes, shard.sha256, shard.n_records) == (len(data), sha256_hex(data), 3)
    assert shard.class_counts == {"a": 2, "b": 1}


def test_how_records_were_chunked_does_not_change_the_bytes(store: Store) -> None:
    halves = [
        pa.table({"label": pa.array(part).dictionary_encode(), "x": list(range(len(part)))})
        for part in (["b", "a"] * 50, ["c", "a"] * 50)
    ]
    chunked = pa.concat_tables(halves)
    together = chunked.unify_dictionaries().combine_chunks()
    assert (
        write(store, chunked)
        == write(store, together)
        == write(store, pa.concat_tables([together.slice(0, 7), together.slice(7)]))
    )


def test_a_shard_that_is_there_is_not_put_again(store: Store) -> None:
    table = pa.table({"label": ["a"]})
    (shard,) = write(store, table)
    inode = (Path(store.root) / shard.path).stat().st_ino
    assert write(store, table) == (shard,)
    assert (Path(store.root) / shard.path).stat().st_ino == inode


def test_shards_and_row_groups_are_cut_by_bytes(store: Store) -> None:
    n = 200_000
    rng = np.random.default_rng(0)
    table = pa.table({f"x{k}": rng.random(n) for k in range(8)})  # 12.8 MB
    shards = write(store, table, label="", max_records=n, max_bytes=7_000_000)
    assert [s.n_records for s in shards] == [100_000, 100_000]
    metadata = pq.ParquetFile(Path(store.root) / shards[0].path).metadata
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    assert 2e6 < sizes[0] < 4e6


def pictures(n: int = 400, size: int = 20_000) -> pa.Table:
    """Records whose pictures no compression makes smaller."""
    rng = np.random.default_rng(0)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": rng.bytes(size + i), "path": f"a/{i}.jpg"} for i in range(n)]
    images[3], images[4] = {"bytes": None, "path": "gone"}, None  # type: ignore[call-overload]
    boxes = [[[1.0, 2.0]]] * n
    made = {"image": pa.array(images, kind), "label": ["x", "y"] * (n // 2), "boxes": boxes}
    return finished(pa.table(made))


def test_pictures_are_written_as_they_are_and_all_else_compressed(store: Store) -> None:
    table = pictures()
    (shard,) = write(store, table)
    assert read_shard(store, shard.path).equals(table)
    metadata = pq.ParquetFile(Path(store.root) / shard.path).metadata
    columns = [metadata.row_group(0).column(i) for i in range(metadata.num_columns)]
    for column in columns:
        is_picture = column.path_in_schema == "image.bytes"
        assert (column.compression == "UNCOMPRESSED") == is_picture
        assert column.is_stats_set != is_picture
        dictionary = "RLE_DICTIONARY" in column.encodings
        assert dictionary == (column.path_in_schema not in ("image.bytes", "image.path", "aug_id"))
    assert "boxes.list.element.list.element" in [c.path_in_schema for c in columns]
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    assert 2e6 < min(sizes[:-1]) <= max(sizes) < 4e6


def test_pictures_in_other_chunks_give_the_same_shard(store: Store) -> None:
    table = pictures()
    written = write(store, table)
    store.delete(written[0].path)
    parts = [table.slice(0, 7), table.slice(7, 250), table.slice(257)]
    assert write(store, pa.concat_tables(parts)) == written
    assert write(store, pa.concat_tables([table, table]).slice(0, 400)) == written


@pytest.mark.slow
def test_a_disk_that_fills_up_in_the_middle_is_said_and_nothing_is_left(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    written = 0

    def fill(self: Draft, data: Any) -> int:
        nonlocal written
        written += len(data)
        if written > 3_000_000:
            raise OSError(errno.ENOSPC, "full")
        return len(data)

    monkeypatch.setattr(Draft, "write", fill)
    with pytest.raises(StorageError, match="no space left to write"):
        write(store, pictures())
    gc.collect()
    assert list((Path(store.root) / "data").iterdir()) == []
    assert "Error ignored" not in capfd.readouterr().err


def test_a_write_that_fails_leaves_nothing(store: Store) -> None:
    table = pictures(20).append_column(
        "span", pa.array([(1, 2, 3)] * 20, pa.month_day_nano_interval())
    )
    with pytest.raises(SchemaError, match="Parquet cannot hold 'span'"):
        write(store, table)
    assert list((Path(store.root) / "data").iterdir()) == []


def test_no_records_give_no_shard(store: Store) -> None:
    assert write(store, pa.table({"label": pa.array([], pa.string())})) == ()
    assert store.list() == []


def test_a_type_that_parquet_lacks_is_named(store: Store) -> None:
    table = pa.table({"label": ["a"], "span": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(SchemaError, match="Parquet cannot hold 'span'"):
        write(store, table)


def test_columns_are_read_by_their_whole_name(store: Store) -> None:
    (shard,) = write(
        store, pa.table({"label": ["x"], "a": [1], "a.b": [2], "c": [{"d": 1}], "c.d": [3]})
    )
    assert read_shard(store, shard.path, ["a.b", "a"]).to_pydict() == {"a.b": [2], "a": [1]}
    assert read_shard(store, shard.path, ["c.d"]).to_pydict() == {"c.d": [3]}
    with pytest.raises(SchemaError, match="no column 'nope'"):
        read_shard(store, shard.path, ["nope"])


def test_a_missing_a_cut_and_a_changed_shard_each_say_so(store: Store) -> None:
    (shard,) = write(store, pa.table({"label": [f"{i}" for i in range(100)]}))
    data = store.read(shard.path)
    with pytest.raises(IntegrityError, match=r"data/none is missing"):
        read_shard(store, "data/none")
    store.put(shard.path, data[:-20])
    with pytest.raises(IntegrityError, match="is damaged"):
        read_shard(store, shard.path)
    store.put(shard.path, data[:50] + bytes([data[50] ^ 1]) + data[51:])
    with pytest.raises(IntegrityError, match="has other bytes than were published"):
        read_shard(store, shard.path, sha256=shard.sha256)


def test_a_shard_below_a_file_is_a_storage_error(store: Store) -> None:
    store.put("data", b"")
    with pytest.raises(StorageError, match="cannot"):
        write(store, pa.table({"label": ["a"]}))
