"""Staged real records, one shard at a time: each part of each batch sorted by ``aug_id`` and cut into shards.

External sorts bring ids from key to id order and places from id to row order, so no array has one entry
per record. Records are then dealt to their shards on local disk, sorted, encoded and put; a shard's bytes
depend on its records alone.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Array, Int, Int8, Int32
from prefect_augment.encoding.columns import ColumnCounts, ColumnSummary
from prefect_augment.encoding.record_ids import real_ids
from prefect_augment.ingest.assign import REASONS, Decision, numbers_within
from prefect_augment.ingest.incremental import NotReusableError
from prefect_augment.ingest.record_index import IndexSpill
from prefect_augment.ingest.validate import Candidates
from prefect_augment.schema import ImageInfo, ShardInfo
from prefect_augment.shards.base import (
    as_stream,
    binary_column,
    keys_of,
    row_groups,
    rows_per_group,
    write_shard,
)
from prefect_augment.shards.parquet import ParquetShards
from prefect_augment.split.ledger import HOLDOUT, PARTS
from prefect_augment.split.ledger_io import write_ledger
from prefect_augment.storage import Stage, Store
from prefect_augment.storage.external_sort import PartitionedRows, bin_of, bin_of_row, n_bins_for
from prefect_augment.storage.keys import KEY, group_ids, hex_column, joined, sort_order
from prefect_augment.storage.spill import Spill, Workspace, give_back

# Bounds the memory: a shard is held a few times over while it is sorted and encoded.
SHARD_BYTES = 32 << 20

NOWHERE = -1
PLACED = np.dtype(
    [
        ("id", KEY),
        ("key", KEY),
        ("row", np.int64),
        ("size", np.int32),
        ("group", np.int32),
        ("shard", np.int32),
        ("rank", np.int32),
        ("reason", np.int8),
    ]
)


@dataclass(frozen=True)
class ShardLayout:
    """The shard of each candidate."""

    stems: tuple[tuple[str, str], ...]  # part and prefix of its shard names, per shard
    numbers: tuple[int, ...]  # batch, per shard
    placed: PartitionedRows  # places, by row
    first: Int32  # (n_groups,) first shard of each part of each batch


class Places:
    """Places of candidates in the order of their rows."""

    def __init__(self, layout: ShardLayout) -> None:
        self._layout = layout
        self._number = 0
        self._held = np.zeros(0, dtype=PLACED)

    def next(self, n: int) -> Array:
        """Return the places of the next ``n`` candidates: shard (-1 for left out, with ``reason``), and rank in it."""
        held = [self._held]
        while sum(map(len, held)) < n:
            rows = self._layout.placed.read(self._number)
            self._number += 1
            rows = rows[np.argsort(rows["row"])]
            goes = rows["group"] >= 0
            rows["shard"][goes] += self._layout.first[rows["group"][goes]]
            held.append(rows)
        every = np.concatenate(held)
        self._held = every[n:].copy()
        return every[:n]


@dataclass
class _Group:
    """A part of a batch while it is cut into shards."""

    n_bytes: int = 0  # of all its records
    done: int = 0  # bytes before the next record
    last: int = -2  # number of the last shard, those without records counted; none has it
    n_shards: int = 0
    n_in_shard: int = 0
    number: int = 0


class ShardPlanner:
    """Cuts every part of every batch into shards of about equal bytes, with external sorts."""

    def __init__(self, n_records: int, workspace: Workspace) -> None:
        n_bins = n_bins_for(n_records)
        self._waiting = PartitionedRows(workspace, PLACED, n_bins)
        self._placed = PartitionedRows(workspace, PLACED, n_bins)
        self._groups: dict[tuple[int, int], _Group] = {}

    def add(
        self, *, part: Int8, batch: Int32, ids: Array, keys: Array, sizes: Int32, rows: Int
    ) -> None:
        """Add candidates that go into a shard; all arrays of shape (n_records,), sizes in bytes."""
        waiting = np.zeros(len(rows), dtype=PLACED)
        waiting["id"], waiting["key"], waiting["row"], waiting["size"] = ids, keys, rows, sizes
        for p in np.unique(part).tolist():
            for number in np.unique(batch[part == p]).tolist():
                of_group = (part == p) & (batch == number)
                group = self._groups.setdefault((p, number), _Group(number=len(self._groups)))
                group.n_bytes += int(sizes[of_group].sum(dtype=np.int64))
                waiting["group"][of_group] = group.number
        self._waiting.add(waiting, bin_of(waiting["id"], self._waiting.n_bins))

    def leave_out(self, rows: Int, reasons: Int8) -> None:
        """Add candidates without a shard."""
        placed = np.zeros(len(rows), dtype=PLACED)
        placed["row"], placed["reason"] = rows, reasons
        placed["group"] = placed["shard"] = NOWHERE
        self._put(placed)

    def _put(self, placed: Array) -> None:
        self._placed.add(placed, bin_of_row(placed["row"]))

    def layout(self) -> ShardLayout:
        """Cut the shards."""
        by_number = {group.number: group for group in self._groups.values()}
        for number in range(self._waiting.n_bins):
            rows = self._waiting.read(number)
            rows = rows[sort_order(rows["group"], rows["id"])]
            starts = np.flatnonzero(np.diff(rows["group"], prepend=-1))
            for some in np.split(rows, starts[1:]):
                if len(some):
                    _cut(some, by_number[int(some["group"][0])])
                    self._put(some)
        self._waiting.clear()
        stems: list[tuple[str, str]] = []
        numbers: list[int] = []
        first = np.zeros(len(by_number), dtype=np.int32)
        for p, name in enumerate(PARTS):
            for batch in sorted(number for part, number in self._groups if part == p):
                group = self._groups[p, batch]
                first[group.number] = len(stems)
                stems += [(name, f"{name}-b{batch:05d}-{i:05d}") for i in range(group.n_shards)]
                numbers += [batch] * group.n_shards
        return ShardLayout(tuple(stems), tuple(numbers), self._placed, first)


def _cut(rows: Array, group: _Group) -> None:
    """Give the next records of a part of a batch, sorted by id, their places."""
    after = group.done + np.cumsum(rows["size"], dtype=np.int64)
    n_shards = max(1, -(-group.n_bytes // SHARD_BYTES))
    which = np.minimum((after - 1) * n_shards // max(1, group.n_bytes), n_shards - 1)
    begins = np.diff(which, prepend=group.last) != 0  # one huge record leaves numbers out
    shard = group.n_shards - 1 + np.cumsum(begins)
    place = np.arange(len(rows))
    start = np.maximum.accumulate(np.where(begins, place, -group.n_in_shard))
    rank = place - start
    group.done, group.last = int(after[-1]), int(which[-1])
    group.n_shards, group.n_in_shard = int(shard[-1]) + 1, int(rank[-1]) + 1
    rows["shard"], rows["rank"] = shard, rank


OPEN_AT_ONCE = 128
RANK, ID, CONTENT = "\0rank", "\0id", "\0content"  # columns of the spilled tables


class Dealt:
    """Candidates distributed to their shards on local disk, with summaries of their columns."""

    def __init__(
        self, candidates: Candidates, layout: ShardLayout, *, describes: bool = True
    ) -> None:
        self.candidates, self.layout = candidates, layout
        self.workspace = candidates.scan.workspace
        label = candidates.roles.label
        self.summaries = {
            f.name: ColumnSummary(f.type, self.workspace)
            for f in candidates.roles.schema
            if f.name != label
        }
        self.counts: dict[int, dict[str, ColumnCounts]] = defaultdict(dict)
        self._describes = describes
        self._spills: dict[int, Spill] = {}
        self.deal()

    def deal(self, first: int = 0) -> None:
        """Fill the shards from ``first`` on, as many as may be open at once; the first pass looks at all records."""
        places = Places(self.layout)
        for batch in self.candidates.batches():
            place = places.next(batch.table.num_rows)
            shard = place["shard"]
            if first == 0:
                self._look(batch.table, shard)
                if (shard == NOWHERE).any():
                    why = [REASONS[reason] for reason in place["reason"].tolist()]
                    self.candidates.scan.quarantine.reject_each(batch, why)
            placed = batch.table
            for name, values in (
                (RANK, pa.array(np.ascontiguousarray(place["rank"]))),
                (ID, binary_column(place["id"])),
                (CONTENT, binary_column(place["key"])),
            ):
                placed = placed.append_column(name, values)
            for s in np.unique(shard[(shard >= first) & (shard < first + OPEN_AT_ONCE)]).tolist():
                spill = self._spills.setdefault(s, self.workspace.spill())
                some = np.flatnonzero(shard == s)
                whole = len(some) == placed.num_rows
                spill.append(placed if whole else placed.take(pa.array(some)))

    def _look(self, table: pa.Table, shard: Int32) -> None:
        if not self._describes:
            return
        numbers = np.array([*self.layout.numbers, NOWHERE])[shard]
        for number in np.unique(numbers[numbers != NOWHERE]).tolist():
            keep = numbers == number
            some = table if keep.all() else table.filter(pa.array(keep))
            for name, summary in self.summaries.items():
                known = self.counts[number].get(name, ColumnCounts())
                self.counts[number][name] = known.plus(summary.add(some[name]))

    def shard(self, s: int) -> Spill:
        """Return the records of a shard as spilled, with their ranks, ids and content keys."""
        if s and s % OPEN_AT_ONCE == 0:
            self.deal(s)
        return self._spills.pop(s)


def write_staged(store: Store, dealt: Dealt, *, prefix: str) -> tuple[ShardInfo, ...]:
    """Put the shards one at a time, named by their content's hash."""
    layout, label = dealt.layout, dealt.candidates.roles.label
    info = []
    for s, (part, stem) in enumerate(layout.stems):
        table = _staged(dealt, s)
        info.append(
            write_shard(
                store,
                row_groups(table, rows_per_group(table.num_rows, table.nbytes)),
                kind=ParquetShards(),
                name=f"{prefix}/{stem}",
                split=part,
                origin="real",
                label=label,
            )
        )
        del table
        give_back()  # the next one is of another size
    return tuple(info)


def _staged(dealt: Dealt, s: int) -> pa.Table:
    """Return a shard's records as they are staged, sorted column by column, so that memory holds them once."""
    schema = dealt.candidates.roles.schema
    categories = dealt.candidates.scan.dictionaries.get(dealt.layout.numbers[s], {})
    spill = dealt.shard(s)
    order = np.argsort(spill.column(RANK).to_numpy())
    ids, keys = (keys_of(spill.column(name))[order] for name in (ID, CONTENT))
    rows = pa.array(order)
    columns = []
    for field in schema:
        column = spill.column(field.name).take(rows)
        if pa.types.is_dictionary(field.type):
            column = _with_categories(column, field.type, categories.get(field.name, []))
        columns.append(_canonical(column.cast(field.type), field))
        del column
    spill.clear()
    for name, values in (("aug_id", ids), ("content_key", keys)):
        schema = schema.append(pa.field(name, pa.string()))
        columns.append(hex_column(values))
    return pa.table(columns, schema=schema)


def _with_categories(column: pa.ChunkedArray, kind: pa.DictionaryType, known: list[Any]) -> Any:
    """Restore the dictionary of a category column."""
    values = pa.array(known, kind.value_type)
    codes = pc.index_in(column.combine_chunks(), value_set=values).cast(kind.index_type)
    return pa.DictionaryArray.from_arrays(codes, values, ordered=kind.ordered)


def _canonical(column: Any, field: pa.Field) -> pa.ChunkedArray:
    """Return the column as one chunk in buffers of its own.

    The encoder cuts row groups by buffer size, so a slice, or a bitmap without nulls, would change the bytes.
    """
    stream = as_stream(pa.table([column], schema=pa.schema([field])).combine_chunks())
    return pa.ipc.open_stream(stream).read_all().column(0)


@dataclass(frozen=True)
class SplitResult:
    """The split of the records that were read, and its totals."""

    layout: ShardLayout
    indexes: dict[int, tuple[str, int]]  # batch -> path of its index, number of its records
    n_used: Int  # (n_files,) records in a part
    class_counts: dict[str, int]  # records in a part, those of earlier batches too
    classes: tuple[str, ...]
    n_twins: int  # records whose key occurs more than once
    ledger: str
    ledger_digest: str
    n_new: int
    n_kept_against_mark: int
    is_grouped: bool  # whether any records stay together
    image: ImageInfo | None


def write_index(decision: Decision, stage: Stage) -> SplitResult:
    """Write ledger and indexes into the stage; NotReusableError, before that, if a staged record would move."""
    candidates, held = decision.candidates, decision.held
    workspace, batches = candidates.scan.workspace, candidates.scan.batch_of_file
    indexes = IndexSpill(workspace, np.unique(batches).tolist())
    planner = ShardPlanner(candidates.n_records, workspace)
    class_counts: Counter[str] = Counter()
    n_used = np.zeros(len(batches), dtype=np.int64)
    n_twins = n_moved = 0
    # A bin of keys at a time: count its records and spill their index and places.
    for number, piece in enumerate(decision.pieces()):
        index = piece.index
        renumbered = (piece.numbers != index.numbers) & (piece.parts >= 0)
        moved = (piece.parts != index.parts) | renumbered
        n_moved += int((moved & (index.rows < 0)).sum())  # of what is staged
        index.parts, index.numbers = piece.parts, piece.numbers
        is_used, is_new = piece.parts >= 0, index.rows >= 0
        indexes.append(index)
        class_counts.update(index.labels.take(is_used).counts())
        # Records whose key occurs more than once, including a separate hold-out's.
        theirs = (
            index.keys[:0] if held is None else held.every.of_bin(number, candidates.n_bins).keys
        )
        n_equal = np.bincount(group_ids(joined(index.keys[is_used], theirs)))
        n_twins += int(n_equal[n_equal > 1].sum())
        there = is_used & is_new
        n_used += np.bincount(index.files[there], minlength=len(batches))
        planner.add(
            part=piece.parts[there],
            batch=index.batch[there],
            ids=piece.ids[there],
            keys=index.keys[there],
            sizes=index.sizes[there],
            rows=index.rows[there],
        )
        planner.leave_out(index.rows[is_new & ~is_used], piece.reasons[is_new & ~is_used])
        del piece, index
    if n_moved:
        raise NotReusableError(f"{n_moved} of its records would move")
    ledger = decision.ledger
    return SplitResult(
        layout=planner.layout(),
        indexes={
            number: (indexes.write(stage.store, prefix=stage.prefix, batch=number), n)
            for number, n in indexes.counts().items()
        },
        n_used=n_used,
        class_counts=dict(class_counts),
        classes=decision.classes,
        n_twins=n_twins,
        ledger=write_ledger(stage.store, ledger, prefix=stage.prefix),
        ledger_digest=ledger.digest,
        n_new=decision.n_new,
        n_kept_against_mark=decision.n_kept_against_mark,
        is_grouped=decision.is_grouped,
        image=decision.image,
    )


def place_holdout(held: Candidates) -> ShardLayout:
    """Return the shard layout of a separate hold-out."""
    every = held.every
    n = len(every)
    planner = ShardPlanner(n, held.scan.workspace)
    planner.add(
        part=np.full(n, HOLDOUT, dtype=np.int8),
        batch=every.batch,
        ids=real_ids(every.keys, every.labels, numbers_within(every.keys, every.labels)),
        keys=every.keys,
        sizes=every.sizes,
        rows=every.rows,
    )
    return planner.layout()
