"""Records that come table by table, and records that are brought into order on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import StorageError
from prefect_augment.shards import staged
from prefect_augment.shards.base import ROW_GROUP_BYTES, read_shard, write_shards
from prefect_augment.shards.staged import iter_shards
from prefect_augment.shards.stream_writer import BATCH_BYTES, Reordered, write_stream
from prefect_augment.storage import Store
from prefect_augment.storage.spill import Workspace

WISHES: dict[str, Any] = {
    "prefix": "data", "stem": "train-real", "split": "train", "origin": "real", "label": "label",
}  # fmt: skip


def records(n: int, *, seed: int = 0, n_bytes: int = 2000) -> pa.Table:
    """Records of about ``n_bytes`` each, with a category and a null."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "data": [rng.bytes(n_bytes) for _ in range(n)],
            "x": pa.array([None if i % 9 == 0 else float(i) for i in range(n)]),
            "label": pa.array([("a", "b", "c")[i % 3] for i in range(n)]).dictionary_encode(),
        }
    )


def pieces(table: pa.Table, sizes: list[int]) -> Iterator[pa.Table]:
    start = 0
    for size in sizes:
        yield table.slice(start, size)
        start += size
    yield table.slice(start)


def test_a_table_in_pieces_gives_the_bytes_of_the_whole_one(store: Store) -> None:
    """Also where the pieces come with dictionaries of their own, and pieces are larger than shards."""
    table = records(6000)
    limits = {"max_records": 2500, "max_bytes": 1 << 30}
    whole = write_shards(store, table, **WISHES, **limits)
    for sizes in ([1000, 1, 0, 3000], [5000]):
        assert (
            write_stream(store, pieces(table, sizes), n_records=6000, **WISHES, **limits) == whole
        )
    assert [s.n_records for s in whole] == [2000, 2000, 2000]
    assert pa.concat_tables(read_shard(store, s.path) for s in whole).equals(table)


def test_shards_hold_about_as_many_bytes_as_was_asked_for(store: Store) -> None:
    table = records(6000)
    shards = write_stream(
        store,
        pieces(table, [500] * 11),
        n_records=6000,
        **WISHES,
        max_records=10**6,
        max_bytes=4 << 20,
    )
    assert len(shards) == 3
    assert max(s.n_bytes for s in shards) < 5 << 20
    groups = pq.ParquetFile(store.full(shards[0].path)).metadata
    assert groups.row_group(0).total_byte_size == pytest.approx(ROW_GROUP_BYTES, rel=0.1)
    assert {name: sum(s.class_counts[name] for s in shards) for name in "abc"} == {
        "a": 2000, "b": 2000, "c": 2000,
    }  # fmt: skip


def test_no_record_gives_no_shard(store: Store) -> None:
    empty = records(3).slice(0, 0)
    limits = {"max_records": 10, "max_bytes": 1 << 20}
    assert write_stream(store, iter([empty]), n_records=0, **WISHES, **limits) == ()
    assert store.list() == []


def test_an_error_in_the_stream_leaves_nothing_behind(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a part of a shard under its name nor a temporary file."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    def torn() -> Iterator[pa.Table]:
        yield records(3000)
        raise RuntimeError("torn")

    with pytest.raises(RuntimeError, match="torn"):
        write_stream(store, torn(), n_records=6000, **WISHES, max_records=10**6, max_bytes=1 << 30)
    assert store.list() == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_full_temporary_disk_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full takes nothing, as a disk without room."""
    monkeypatch.setattr(Workspace, "path", lambda workspace: "/dev/full")
    with pytest.raises(StorageError, match="TMPDIR"), Reordered(4000, 1) as spill:
        spill.add(records(4000), np.arange(4000))


@pytest.mark.slow
def test_batches_are_the_records_in_order_and_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = records(20_000)
    shards = write_shards(store, table, **WISHES, max_records=15_000, max_bytes=1 << 30)
    batches = list(iter_shards(store, shards))
    assert pa.concat_tables(batches).unify_dictionaries().equals(table.unify_dictionaries())
    assert len(batches) > 2
    assert max(b.nbytes for b in batches) <= BATCH_BYTES
    monkeypatch.setattr(staged, "BATCH_RECORDS", 700)
    small = list(iter_shards(store, shards, ["label", "x"]))
    assert small[0].column_names == ["label", "x"]
    assert max(b.num_rows for b in small) == 700
    assert sum(b.num_rows for b in small) == 20_000


def test_reordered_records_come_in_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    table = records(5000, n_bytes=8000)
    places = np.random.default_rng(1).permutation(5000)
    with Reordered(5000, table.nbytes) as spill:
        for start in range(0, 5000, 700):
            spill.add(table.slice(start, 700), places[start : start + 700])
        found = list(spill.tables())
    assert len(found) > 1
    assert max(t.nbytes for t in found) < 1.2 * BATCH_BYTES
    expected = table.take(pa.array(np.argsort(places)))
    assert pa.concat_tables(found).to_pylist() == expected.to_pylist()
    assert list(tmp_path.iterdir()) == []
