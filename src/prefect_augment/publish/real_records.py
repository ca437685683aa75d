"""Real records and copies of a version, read as streams.

A source of records has ``origin``, ``counts`` and ``counted`` (effective) per stratum, ``labels``, ``ids`` and
``pieces``, in order. Its small columns are read once for what concerns all records (strata, ids, order); the records
themselves are read again, in batches, when they are written.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import ByteString, Float, Int, Uint64
from prefect_augment.encoding.strata import table_strata
from prefect_augment.errors import EmptyClassError
from prefect_augment.schema import Origin, ShardInfo
from prefect_augment.shards.base import label_names
from prefect_augment.shards.parquet import select_columns
from prefect_augment.shards.staged import iter_shards, read_shards
from prefect_augment.shards.stream_writer import Reordered
from prefect_augment.storage import Store
from prefect_augment.storage.external_sort import PartitionedRows, bin_of_number
from prefect_augment.storage.keys import hash_ids
from prefect_augment.storage.spill import Workspace

# Ingest appends these to the source's columns; aug_id becomes a lineage column, content_key is dropped.
STAGED_COLUMNS = ("aug_id", "content_key")
N_ID_BINS = 64


@dataclass(frozen=True)
class Records:
    """A batch: the source's columns, strata, and the arguments of ``with_lineage``."""

    table: pa.Table
    strata: Sequence[str]
    lineage: Mapping[str, Any]
    shares: Float | None = None  # effective count of each, if not 1


@dataclass(frozen=True)
class Piece:
    """Records that are published as shards of their own; each call of ``records`` reads them again."""

    n_records: int
    n_bytes: int
    records: Callable[[], Iterator[Records]]


class Ids:
    """64-bit hashes of ids, partitioned on disk; see :func:`~prefect_augment.storage.keys.hash_ids`."""

    def __init__(self, workspace: Workspace) -> None:
        self.hashes = PartitionedRows(workspace, np.dtype(np.uint64), N_ID_BINS)

    def add(self, ids: pa.StringArray | pa.ChunkedArray) -> None:
        """Add a batch of ids."""
        hashes = hash_ids(ids)
        self.hashes.add(hashes, bin_of_number(hashes, N_ID_BINS))

    @staticmethod
    def duplicates(every: Sequence["Ids"]) -> Uint64:
        """Return hashes that occur more than once."""
        parts = [np.zeros(0, dtype=np.uint64)]
        for number in range(N_ID_BINS):
            hashes = np.concatenate([ids.hashes.read(number) for ids in every])
            hashes.sort()
            parts.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
        return np.concatenate(parts)


@dataclass(frozen=True)
class RecordReader:
    """How records are read: from where, which columns make up their strata, and where ids are kept."""

    store: Store
    label: str
    by: Sequence[str]
    workspace: Workspace

    @property
    def columns(self) -> list[str]:
        """Columns that make up a record's stratum."""
        return [*dict.fromkeys([self.label, *self.by])]

    def strata(self, table: pa.Table) -> list[str]:
        """Return the stratum of each record."""
        return table_strata(table, label=self.label, by=self.by)


# --- real records -----------------------------------------------------------------------------


class Real:
    """Real records of some parts: a piece per staged shard, in the order of their names.

    So what is published of a staged shard does not depend on the others.
    """

    origin: Origin = "real"

    def __init__(
        self,
        reader: RecordReader,
        shards: Sequence[ShardInfo],
        parts: Sequence[str],
        doubted: Mapping[str, float] | None = None,
    ) -> None:
        self.reader = reader
        self.doubted = doubted or {}  # by id, what a record counts, if not 1
        self.all_shards = shards
        of_parts = [s for s in shards if s.split in parts and s.n_records]
        self.shards = sorted(
            of_parts, key=lambda s: (parts.index(s.split), s.path.rsplit("/", 1)[-1])
        )
        self.pieces = tuple(
            Piece(s.n_records, s.n_bytes, partial(self._read, s)) for s in self.shards
        )
        self.labels = {name for s in self.shards for name, n in s.class_counts.items() if n}
        self.counts, self.ids = Counter[str](), Ids(reader.workspace)
        counted: dict[str, float] = {}  # a record counts 1, unless its label is doubted
        for table in self.small_columns():
            strata = reader.strata(table)
            self.counts.update(strata)
            self.ids.add(table["aug_id"])
            shares = self._shares(table) if self.doubted else ()
            for name, share in zip(strata, shares, strict=False):
                counted[name] = counted.get(name, 0.0) + float(share)
        self.counted: Mapping[str, float] = counted if self.doubted else self.counts

    def _read(self, shard: ShardInfo) -> Iterator[Records]:
        return map(self._records, iter_shards(self.reader.store, [shard]))

    def _records(self, table: pa.Table) -> Records:
        user = select_columns(table, [c for c in table.column_names if c not in STAGED_COLUMNS])
        shares = self._shares(table) if self.doubted else None
        return Records(user, self.reader.strata(table), {"aug_id": table["aug_id"]}, shares)

    def _shares(self, table: pa.Table) -> Float:
        return np.array([self.doubted.get(i, 1.0) for i in table["aug_id"].to_pylist()])

    def small_columns(self) -> Iterator[pa.Table]:
        """Yield ids and the columns of the strata, in the order of the records."""
        return iter_shards(self.reader.store, self.shards, ["aug_id", *self.reader.columns])

    @cached_property
    def like(self) -> pa.Table:
        """Empty table with the source's columns and all values of its categories."""
        shards = self.shards or self.all_shards[:1]
        if not shards:
            return read_shards(self.reader.store, [])
        first = []
        for shard in shards:
            for table in iter_shards(self.reader.store, [shard]):
                first.append(table.take(pa.array([0])))  # a slice would keep the whole table
                break
        table = pa.concat_tables(first).unify_dictionaries()
        return select_columns(table, [c for c in table.column_names if c not in STAGED_COLUMNS])


# --- copies -----------------------------------------------------------------------------------


class Copies:
    """Copies in turn over a stratum's records, so that no record gets two copies more than another."""

    origin: Origin = "copy"

    def __init__(self, real: Real, amounts: Mapping[str, int]) -> None:
        self.real = real
        self.counts = Counter({name: n for name, n in amounts.items() if n})
        self.counted: Mapping[str, float] = self.counts
        self.labels: set[str] = set()
        self._ids, self._parents = self._draw()
        self.ids = Ids(real.reader.workspace)
        self.ids.add(_texts(self._ids))
        n = len(self._ids)
        share = n / max(1, real.counts.total())
        n_bytes = int(share * sum(s.n_bytes for s in real.shards))
        self.pieces: tuple[Piece, ...] = (Piece(n, n_bytes, self._records),) if n else ()

    def _draw(self) -> tuple[ByteString, Int]:
        """Return the copies' ids, sorted, and the row of each one's parent among the real records."""
        rows: dict[str, list[tuple[ByteString, Int]]] = {name: [] for name in self.counts}
        start = 0
        for table in self.real.small_columns():
            strata = np.array(self.real.reader.strata(table), dtype=object)
            ids = np.array(table["aug_id"].to_pylist(), dtype="S32")
            labels = np.array(label_names(table[self.real.reader.label]), dtype=object)
            for name, members in rows.items():
                places = np.flatnonzero(strata == name)
                members.append((ids[places], places + start))
                self.labels.update(labels[places].tolist())
            start += table.num_rows
        copy_ids = [np.zeros(0, dtype="S32")]
        parents = [np.zeros(0, dtype=np.int64)]
        for name, n in sorted(self.counts.items()):
            ids = np.concatenate([i for i, _ in rows[name]] or copy_ids[:1])
            places = np.concatenate([p for _, p in rows[name]] or parents[:1])
            if not ids.size:
                raise EmptyClassError(
                    f"the recipe wants {n} copies in {name!r}, which has no real record."
                )
            order = np.argsort(ids)
            turns = np.arange(n)
            of = order[turns % ids.size]
            numbers = (turns // ids.size).tolist()
            texts = [
                hashlib.blake2b(b"copy/%s/%d" % (parent, k), digest_size=16).hexdigest()
                for parent, k in zip(ids[of].tolist(), numbers, strict=True)
            ]
            copy_ids.append(np.array(texts, dtype="S32"))
            parents.append(places[of])
        copies = np.concatenate(copy_ids)
        order = np.argsort(copies)
        return copies[order], np.concatenate(parents)[order]

    def _records(self) -> Iterator[Records]:
        by_parent = np.argsort(self._parents, kind="stable")
        parents = self._parents[by_parent]
        piece, start = self.pieces[0], 0
        with Reordered(piece.n_records, piece.n_bytes) as spill:
            for table in iter_shards(self.real.reader.store, self.real.shards):
                lo, hi = np.searchsorted(parents, [start, start + table.num_rows]).tolist()
                for at in range(lo, hi, table.num_rows):  # no more at once than were read
                    rows = np.arange(at, min(at + table.num_rows, hi))
                    spill.add(table.take(pa.array(parents[rows] - start)), by_parent[rows])
                start += table.num_rows
            place = 0
            for table in spill.tables():
                records = self.real._records(table)
                ids = _texts(self._ids[place : place + table.num_rows])
                place += table.num_rows
                yield Records(
                    records.table, records.strata, {"aug_id": ids, "parent": table["aug_id"]}
                )


def _texts(ids: ByteString) -> pa.StringArray:
    return pa.array([aug_id.decode() for aug_id in ids.tolist()], pa.string())
