"""Where the records of a version come from, each origin read as a stream: here real ones and copies.

A source is looked through once, by its small columns, for what has to be known of all records
(strata, ids, order); the records themselves are read again, some at a time, when they are written.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.strata import table_strata
from prefect_augment.errors import EmptyClassError
from prefect_augment.schema.base import Origin, ShardInfo
from prefect_augment.shards.parquet import label_names, select_columns
from prefect_augment.shards.staged import iter_shards, read_shards
from prefect_augment.shards.stream_writer import Reordered
from prefect_augment.storage.external_sort import PartitionedRows, bin_of_number
from prefect_augment.storage.keys import hash_ids
from prefect_augment.storage.spill import Workspace
from prefect_augment.storage.store import Store

__all__ = [
    "Copies",
    "Ids",
    "Look",
    "Piece",
    "Real",
    "Records",
    "Source",
]

# What ingest appends to the source's columns; the first becomes a lineage column, the second ends here.
STAGED_COLUMNS = ("aug_id", "content_key")
N_ID_BINS = 64

Int = NDArray[np.int64]


@dataclass(frozen=True)
class Records:
    """Some records: the source's columns, a stratum for each, and what ``with_lineage`` takes.

    ``shares`` is what each counts, where that is not 1.
    """

    table: pa.Table
    strata: Sequence[str]
    lineage: Mapping[str, Any]
    shares: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Piece:
    """Records that are published as shards of their own; ``records`` reads them, each time anew."""

    n_records: int
    n_bytes: int
    records: Callable[[], Iterator[Records]]


class Source(Protocol):
    """Records of one origin."""

    @property
    def origin(self) -> Origin:
        """Of all of them."""
        ...

    @property
    def counts(self) -> Counter[str]:
        """Records per stratum."""
        ...

    @property
    def counted(self) -> Mapping[str, float]:
        """What the records of each stratum count before they are weighted."""
        ...

    @property
    def labels(self) -> set[str]:
        """Their classes."""
        ...

    @property
    def ids(self) -> Ids:
        """The records' ids."""
        ...

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The records, in order."""
        ...


class Ids:
    """Eight bytes of each id, put aside; see :func:`~prefect_augment.storage.keys.hash_ids`."""

    def __init__(self, workspace: Workspace) -> None:
        self._aside = PartitionedRows(workspace, np.dtype(np.uint64), N_ID_BINS)

    def add(self, ids: pa.StringArray | pa.ChunkedArray) -> None:
        """Put ids aside."""
        folded = hash_ids(ids)
        self._aside.add(folded, bin_of_number(folded, N_ID_BINS))

    @staticmethod
    def alike(sources: Sequence[Source]) -> NDArray[np.uint64]:
        """Return what more than one id is folded to."""
        found = [np.zeros(0, dtype=np.uint64)]
        for number in range(N_ID_BINS):
            folded = np.concatenate([source.ids._aside.read(number) for source in sources])
            folded.sort()
            found.append(np.unique(folded[1:][folded[1:] == folded[:-1]]))
        return np.concatenate(found)


@dataclass(frozen=True)
class Look:
    """How records are read: from where, which columns make up their strata, and where ids are put aside."""

    store: Store
    label: str
    by: Sequence[str]
    workspace: Workspace

    @property
    def columns(self) -> list[str]:
        """Columns that say a record's stratum."""
        return [*dict.fromkeys([self.label, *self.by])]

    def strata(self, table: pa.Table) -> list[str]:
        """Return the stratum of each record."""
        return table_strata(table, label=self.label, by=self.by)


# --- real records -----------------------------------------------------------------------------


class Real:
    """Real records of some parts of the source: a piece per staged shard, in the order of their names.

    So what is published of a staged shard does not depend on the others.
    """

    origin: Origin = "real"

    def __init__(self, look: Look, shards: Sequence[ShardInfo], parts: Sequence[str]) -> None:
        self.look = look
        self.all_shards = shards
        found = [s for s in shards if s.split in parts and s.n_records]
        self.shards = sorted(found, key=lambda s: (parts.index(s.split), s.path.rsplit("/", 1)[-1]))
        self.pieces = tuple(Piece(s.n_records, s.n_bytes, self._reader(s)) for s in self.shards)
        self.labels = {name for s in self.shards for name, n in s.class_counts.items() if n}

    def _reader(self, shard: ShardInfo) -> Callable[[], Iterator[Records]]:
        def records() -> Iterator[Records]:
            for table in iter_shards(self.look.store, [shard]):
                yield self._records(table)

        return records

    def _records(self, table: pa.Table) -> Records:
        user = select_columns(table, [c for c in table.column_names if c not in STAGED_COLUMNS])
        return Records(user, self.look.strata(table), {"aug_id": table["aug_id"]})

    @cached_property
    def _seen(self) -> tuple[Counter[str], Ids]:
        counts, ids = Counter[str](), Ids(self.look.workspace)
        for table in self.small_columns():
            counts.update(self.look.strata(table))
            ids.add(table["aug_id"])
        return counts, ids

    def small_columns(self) -> Iterator[pa.Table]:
        """Yield ids and what makes up the strata, in the order of the records."""
        return iter_shards(self.look.store, self.shards, ["aug_id", *self.look.columns])

    @property
    def counts(self) -> Counter[str]:
        """Records per stratum."""
        return self._seen[0]

    @property
    def counted(self) -> Mapping[str, float]:
        """Each counts 1."""
        return self.counts

    @property
    def ids(self) -> Ids:
        """See :class:`Source`."""
        return self._seen[1]

    @cached_property
    def like(self) -> pa.Table:
        """A table without rows that has the source's columns, and every value of its categories."""
        shards = self.shards or self.all_shards[:1]
        if not shards:
            return read_shards(self.look.store, [])
        first = []
        for shard in shards:
            for table in iter_shards(self.look.store, [shard]):
                first.append(table.take(pa.array([0])))  # a slice would keep the whole table
                break
        table = pa.concat_tables(first).unify_dictionaries()
        return select_columns(table, [c for c in table.column_names if c not in STAGED_COLUMNS])


# --- copies -----------------------------------------------------------------------------------


class Copies:
    """Duplicates in turn over a stratum's records, so that no record is two copies ahead of another."""

    origin: Origin = "copy"

    def __init__(self, real: Real, wanted: Mapping[str, int]) -> None:
        self.real = real
        self.counts = Counter({name: n for name, n in wanted.items() if n})
        self.counted: Mapping[str, float] = self.counts
        self.labels: set[str] = set()
        self._ids, self._parents = self._draw()
        n = len(self._ids)
        share = n / max(1, real.counts.total())
        n_bytes = int(share * sum(s.n_bytes for s in real.shards))
        found = [Piece(n, n_bytes, self._records)] if n else []
        self.pieces: tuple[Piece, ...] = tuple(found)

    def _draw(self) -> tuple[NDArray[np.bytes_], Int]:
        """Return the copies' ids, sorted, and the place of each one's record among the real ones."""
        rows: dict[str, list[tuple[NDArray[np.bytes_], Int]]] = {name: [] for name in self.counts}
        start = 0
        for table in self.real.small_columns():
            strata = np.array(self.real.look.strata(table), dtype=object)
            ids = np.array(table["aug_id"].to_pylist(), dtype="S32")
            labels = np.array(label_names(table[self.real.look.label]), dtype=object)
            for name, found in rows.items():
                places = np.flatnonzero(strata == name)
                found.append((ids[places], places + start))
                self.labels.update(labels[places].tolist())
            start += table.num_rows
        made = [np.zeros(0, dtype="S32")]
        parents = [np.zeros(0, dtype=np.int64)]
        for name, n in sorted(self.counts.items()):
            ids = np.concatenate([i for i, _ in rows[name]] or made[:1])
            places = np.concatenate([p for _, p in rows[name]] or parents[:1])
            if not ids.size:
                raise EmptyClassError(
                    f"the recipe wants {n} copies in {name!r}, which has no real record."
                )
            order = np.argsort(ids)
            turns = np.arange(n)
            of = order[turns % ids.size]
            made.append(
                np.array(
                    [
                        _copy_id(i, k)
                        for i, k in zip(ids[of].tolist(), (turns // ids.size).tolist(), strict=True)
                    ],
                    dtype="S32",
                )
            )
            parents.append(places[of])
        copies = np.concatenate(made)
        order = np.argsort(copies)
        return copies[order], np.concatenate(parents)[order]

    @cached_property
    def ids(self) -> Ids:
        """See :class:`Source`."""
        ids = Ids(self.real.look.workspace)
        ids.add(_texts(self._ids))
        return ids

    def _records(self) -> Iterator[Records]:
        by_parent = np.argsort(self._parents, kind="stable")
        parents = self._parents[by_parent]
        piece, start = self.pieces[0], 0
        with Reordered(piece.n_records, piece.n_bytes) as spill:
            for table in iter_shards(self.real.look.store, self.real.shards):
                lo, hi = np.searchsorted(parents, [start, start + table.num_rows]).tolist()
                for at in range(lo, hi, table.num_rows):  # no more at once than were read
                    rows = np.arange(at, min(at + table.num_rows, hi))
                    spill.add(table.take(pa.array(parents[rows] - start)), by_parent[rows])
                start += table.num_rows
            place = 0
            for table in spill.tables():
                found = self.real._records(table)
                ids = _texts(self._ids[place : place + table.num_rows])
                place += table.num_rows
                yield Records(found.table, found.strata, {"aug_id": ids, "parent": table["aug_id"]})


def _texts(ids: NDArray[np.bytes_]) -> pa.StringArray:
    return pa.array([aug_id.decode() for aug_id in ids.tolist()], pa.string())


def _copy_id(parent: bytes, number: int) -> str:
    return hashlib.blake2b(b"copy/%s/%d" % (parent, number), digest_size=16).hexdigest()
