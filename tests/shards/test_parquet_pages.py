"""Images as views of a Parquet file: the bytes that Arrow reads, or none."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import IntegrityError, SchemaError
from prefect_augment.shards import parquet
from prefect_augment.shards.base import open_shard
from prefect_augment.shards.image_columns import IMAGE_TYPE
from prefect_augment.shards.parquet import ParquetShards, write_parquet
from prefect_augment.shards.parquet_footer import ImagePages
from prefect_augment.storage import open_store

# Of 1 and 2 bytes of a run's length, around the 8 levels that are packed, and of several pages.
SIZES = ([0], [5] * 7, [3] * 8, [4] * 9, [0] * 300, [1, 0, 70_000] * 43, [900_000] * 5, [])


def images(sizes: Any, *, without: Any = (), seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    values = [
        None if i in without else {"bytes": rng.bytes(size), "path": None if i % 3 else f"{i}.png"}
        for i, size in enumerate(sizes)
    ]
    labels = pa.array(range(len(values)), pa.int64())
    return pa.table({"label": labels, "image": pa.array(values, IMAGE_TYPE)})


def ours(*groups: pa.Table) -> bytes:
    sink = io.BytesIO()
    write_parquet(groups, sink)
    return sink.getvalue()


def foreign(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def views(data: bytes, group: int = 0) -> list[Any] | None:
    """What is found without Arrow."""
    reader = pa.BufferReader(data)
    metadata = pq.ParquetFile(reader).metadata
    pages = ImagePages(reader, pq.ParquetFile(reader).schema)
    return pages.views("image", group, metadata.row_group(group).num_rows)


def by_arrow(data: bytes, group: int = 0) -> list[bytes | None]:
    column = pq.ParquetFile(pa.BufferReader(data)).read_row_group(group)["image"]
    return [value and value["bytes"] for value in column.to_pylist()]


def apart(file: Any, group: int = 0) -> tuple[list[int], list[bytes | None]]:
    table, found = ParquetShards().open(file).read_apart(["label"], ["image"], group=group)
    assert table.column_names == ["label"]
    return table["label"].to_pylist(), [v and bytes(v) for v in found["image"]]


@pytest.mark.parametrize("sizes", SIZES, ids=len)
def test_views_are_the_bytes_that_were_written(sizes: list[int]) -> None:
    table = images(sizes)
    data = ours(table)
    expected = [v["bytes"] for v in table["image"].to_pylist()]
    assert views(data) == by_arrow(data) == expected
    assert apart(pa.BufferReader(data)) == (table["label"].to_pylist(), expected)


def test_views_of_each_group_are_its_own() -> None:
    rng = np.random.default_rng(0)
    groups = [images(rng.integers(0, 30_000, n), seed=n) for n in rng.integers(1, 200, 12)]
    data = ours(*groups)
    for g, table in enumerate(groups):
        assert views(data, g) == by_arrow(data, g)
        assert apart(pa.BufferReader(data), g) == (table["label"].to_pylist(), by_arrow(data, g))


OTHERS: dict[str, Callable[[], bytes]] = {
    "null": lambda: ours(images([5] * 300, without={7})),
    "last is null": lambda: ours(images([5] * 7, without={6})),
    "all are null": lambda: ours(images([5] * 40, without=range(40))),
    "compressed": lambda: foreign(images([500] * 90), use_dictionary=False, compression="zstd"),
    "dictionary": lambda: foreign(images([3] * 90), use_dictionary=True, compression="none"),
    "other pages": lambda: foreign(
        images([50] * 90), use_dictionary=False, compression="none", data_page_version="2.0"
    ),
    "other values": lambda: foreign(
        images([50] * 90),
        use_dictionary=False,
        compression="none",
        column_encoding={"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_stored_in_another_way_is_read_by_arrow(kind: str) -> None:
    data = OTHERS[kind]()
    assert views(data) is None
    assert apart(pa.BufferReader(data))[1] == by_arrow(data)


def test_a_name_that_two_columns_could_have_is_read_by_arrow() -> None:
    inner = pa.array(
        [{"image": {"bytes": b"inner", "path": None}}], pa.struct([("image", IMAGE_TYPE)])
    )
    outer = images([9])["image"]
    data = foreign(
        pa.table({"a": inner, "a.image": outer}), use_dictionary=False, compression="none"
    )
    reader = pa.BufferReader(data)
    assert ImagePages(reader, pq.ParquetFile(reader).schema).views("a.image", 0, 1) is None
    _, found = ParquetShards().open(reader).read_apart([], ["a.image"], group=0)
    assert [bytes(v or b"") for v in found["a.image"]] == [outer[0].as_py()["bytes"]]


def test_a_file_that_is_neither_mapped_nor_in_memory_is_read_by_arrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parquet, "ImagePages", None)  # not to be asked
    data = ours(images([100] * 50))
    assert apart(io.BytesIO(data))[1] == by_arrow(data)


def test_views_outlive_the_file(tmp_path: Path) -> None:
    data = ours(images([70_000] * 40))
    store = open_store(str(tmp_path))
    store.put("x.parquet", data)
    with open_shard(store, "x.parquet") as shard:
        found = shard.read_apart(["label"], ["image"], group=0)[1]["image"]
    assert [bytes(v or b"") for v in found] == by_arrow(data)


@pytest.mark.slow
def test_damage_gives_the_bytes_that_arrow_reads_or_none() -> None:
    """Of lengths, headers, levels and the footer; what is in an image is as it stands for both."""
    data = ours(images([6, 0, 12, 40, 3] * 4), images([20] * 5))
    rng = np.random.default_rng(0)
    counts = {"same": 0, "none": 0}
    for i in range(1500):
        damaged = bytearray(data)
        for place in rng.integers(4, len(data) - 8, 1 + i % 2):
            damaged[place] ^= 1 << int(rng.integers(8))
        for group in range(2):
            try:
                expected = by_arrow(bytes(damaged), group)
            except (pa.ArrowException, OSError, ValueError, IndexError, KeyError):
                continue  # it does not open, or Arrow says what is wrong
            found = views(bytes(damaged), group)
            assert found is None or found == expected
            counts["same" if found else "none"] += 1
    assert min(counts.values()) > 50


@pytest.mark.parametrize("n_bytes", [-1, 1, 1 << 20, (1 << 31) + 5])
def test_a_length_that_is_not_true_is_never_followed(n_bytes: int) -> None:
    data = ours(images([64] * 9))
    lengths = (64).to_bytes(4, "little")
    last = data.rindex(lengths + by_arrow(data)[-1])
    for at in (data.index(lengths), last):
        changed = (64 + n_bytes).to_bytes(4, "little")
        assert views(data[:at] + changed + data[at + 4 :]) is None


def test_a_shard_whose_pages_are_damaged_says_so(tmp_path: Path) -> None:
    data = ours(images([64] * 9))
    at = data.index((64).to_bytes(4, "little"))
    store = open_store(str(tmp_path))
    store.put("x.parquet", data[:at] + b"\xff\xff\xff\x7f" + data[at + 4 :])
    with open_shard(store, "x.parquet") as shard:
        with pytest.raises(IntegrityError, match=r"x\.parquet is damaged"):
            shard.read_apart(["label"], ["image"], group=0)
        with pytest.raises(SchemaError, match="no column 'nothing'"):
            shard.read_apart(["label"], ["nothing"], group=0)


def test_a_name_that_is_no_text_is_damage(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("x.parquet", ours(images([64] * 9)).replace(b"label", b"l\xffbel"))
    with pytest.raises(IntegrityError, match=r"x\.parquet is damaged"):
        open_shard(store, "x.parquet")
