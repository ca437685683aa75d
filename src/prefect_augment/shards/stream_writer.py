"""Records too many for memory: written shard by shard as they come, and sorted on disk."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Unpack

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Int
from prefect_augment.errors import StorageError
from prefect_augment.registry import load_shard_format
from prefect_augment.schema import ShardInfo
from prefect_augment.shards.base import (
    HashedSink,
    ShardFields,
    rows_per_group,
    write_shard,
    write_shards,
)
from prefect_augment.storage import Draft, Store
from prefect_augment.storage.spill import Workspace, disk_space

# What is in memory at once, of Arrow data; a record that is larger is one by itself.
BATCH_BYTES = 8 << 20
BATCH_RECORDS = 1 << 16
# Files of a spill that are open at once; with more records than these hold, each is larger.
MAX_BUCKETS = 256


def write_stream(
    store: Store,
    tables: Iterable[pa.Table],
    *,
    n_records: int,
    prefix: str,
    stem: str,
    max_records: int,
    max_bytes: int,
    n_bytes: int = 0,
    shard_format: str = "parquet",
    **of: Unpack[ShardFields],
) -> tuple[ShardInfo, ...]:
    """Put records that come table by table as immutable objects named by their content.

    If the first table holds all ``n_records`` this is :func:`write_shards`, which documents the other parameters
    and errors. Otherwise shards are built by row groups, and their number follows from the record size in
    the first table, at least ``n_bytes`` in all; further cuts into tables change no byte.
    """
    rest = (table for table in tables if table.num_rows)
    first = next(rest, None)
    if first is None:
        return ()
    if first.num_rows == n_records:
        return write_shards(
            store,
            first,
            prefix=prefix,
            stem=stem,
            max_records=max_records,
            max_bytes=max_bytes,
            shard_format=shard_format,
            **of,
        )
    expected = max(first.nbytes / first.num_rows * n_records, n_bytes)
    n_shards = max(math.ceil(n_records / max_records), math.ceil(expected / max_bytes))
    n_rows = math.ceil(n_records / min(n_shards, n_records))
    group = min(n_rows, rows_per_group(n_records, expected))
    flow = _Rows(itertools.chain([first], rest))
    return tuple(
        write_shard(
            store,
            flow.groups(min(n_rows, n_records - start), group),
            kind=load_shard_format(shard_format)(),
            name=f"{prefix}/{stem}-{i:05d}",
            **of,
        )
        for i, start in enumerate(range(0, n_records, n_rows))
    )


class _Rows:
    """Tables in sequence, regrouped into any number of rows."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._held: list[pa.Table] = []

    def groups(self, n_rows: int, size: int) -> Iterator[pa.Table]:
        """Yield the next ``n_rows`` rows, ``size`` at a time, with one chunk and one dictionary per column."""
        for start in range(0, n_rows, size):
            taken = list(self.next_rows(min(size, n_rows - start)))
            yield pa.concat_tables(taken).unify_dictionaries().combine_chunks()

    def next_rows(self, n: int) -> Iterator[pa.Table]:
        while n:
            table = self._held.pop() if self._held else next(self._tables)
            if table.num_rows > n:
                self._held.append(table.slice(n))
                table = table.slice(0, n)
            n -= table.num_rows
            yield table


def cut(
    tables: Iterable[pa.Table], sizes: Sequence[int]
) -> Iterator[tuple[int, Iterator[pa.Table]]]:
    """Yield each size with that many of the next rows, as tables to be read before the next."""
    flow = _Rows(iter(tables))
    for size in sizes:
        yield size, flow.next_rows(size)


@contextmanager
def drafted(store: Store, folder: str, file: IO[bytes]) -> Iterator[tuple[Draft, str]]:
    """Yield a draft with a file's content, copied block by block, and its sha256."""
    with store.draft(folder) as draft:
        with HashedSink(draft) as sink:
            while block := file.read(1 << 20):
                sink.write(block)
        yield draft, sink.sha256


class Reordered(AbstractContextManager["Reordered"]):
    """Brings records into another order, each to a place below ``n_records``, through local files."""

    def __init__(self, n_records: int, n_bytes: int) -> None:
        self._n_records = n_records
        wanted = max(math.ceil(n_bytes / BATCH_BYTES), math.ceil(n_records / BATCH_RECORDS), 1)
        self._n_per_bucket = max(1, math.ceil(n_records / min(wanted, MAX_BUCKETS)))
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}
        self._workspace = Workspace()
        self._paths: dict[int, Path] = {}

    def __exit__(self, *exc: object) -> None:
        with suppress(StorageError):  # of a full disk, which has been said
            self._close()
        self._workspace.close()

    def add(self, table: pa.Table, places: Int) -> None:
        """Add records and the place of each."""
        buckets = places // self._n_per_bucket
        table = table.unify_dictionaries().append_column(_PLACE, pa.array(places, pa.int64()))
        for bucket in np.unique(buckets).tolist():
            rows = table.take(pa.array(np.flatnonzero(buckets == bucket)))
            with disk_space():
                if bucket not in self._writers:
                    self._paths[bucket] = Path(self._workspace.path())
                    self._writers[bucket] = pa.ipc.new_stream(str(self._paths[bucket]), rows.schema)
                self._writers[bucket].write_table(rows)

    def tables(self) -> Iterator[pa.Table]:
        """Yield all records in order, once, a file at a time."""
        self._close()
        for bucket in range(math.ceil(self._n_records / self._n_per_bucket)):
            if bucket not in self._paths:
                continue
            path = self._paths[bucket]
            with pa.OSFile(str(path)) as file:
                table = pa.ipc.open_stream(file).read_all()
            path.unlink()
            yield table.unify_dictionaries().sort_by(_PLACE).drop_columns([_PLACE])

    def _close(self) -> None:
        writers = list(self._writers.values())
        self._writers.clear()
        with disk_space():
            for writer in writers:
                writer.close()


_PLACE = "__place__"
