"""Staged real records: a shard at a time, sorted by ``aug_id`` within a part and a batch.

The records are gone through once more and dealt out to their shards, which wait on local disk; then each
is sorted, encoded and put. A shard's bytes depend on its records alone.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.compact import KEY, hex_column
from prefect_augment.datatypes import ShardFact
from prefect_augment.encoding.columns import ColumnCounts, ColumnSummary
from prefect_augment.shards.formats import write_shard
from prefect_augment.shards.groups import row_groups, rows_per_group
from prefect_augment.shards.parquet import ParquetShards
from prefect_augment.spill import Spill, Workspace, give_back
from prefect_augment.stages.decide import REASONS
from prefect_augment.stages.placing import Placing
from prefect_augment.stages.usable import Candidates
from prefect_augment.storage import Store

__all__ = ["Dealt", "deal_out", "write_staged"]

OPEN_AT_ONCE = 128
RANK, ID, CONTENT = "\0rank", "\0id", "\0content"  # columns of what is put aside


class Dealt:
    """Candidates dealt out to their shards, and what their columns hold.

    Attributes
    ----------
    counts : dict
        Batch number -> column -> counts.
    summaries : dict
        Column -> summary.
    """

    def __init__(
        self, found: Candidates, placing: Placing, workspace: Workspace, *, describes: bool = True
    ) -> None:
        self.found, self.placing, self.workspace = found, placing, workspace
        label = found.roles.label
        self.summaries = {
            f.name: ColumnSummary(f.type, workspace) for f in found.roles.schema if f.name != label
        }
        self.counts: dict[int, dict[str, ColumnCounts]] = defaultdict(dict)
        self._describes = describes
        self._spills: dict[int, Spill] = {}

    def deal(self, first: int = 0) -> None:
        """Deal out to the shards from ``first`` on, as many as may be open at once.

        The first time, take note of the columns and put what goes nowhere into quarantine.
        """
        places = self.placing.places()
        for batch in self.found.batches():
            place = places.next(batch.table.num_rows)
            shard = place["shard"]
            if first == 0:
                self._look(batch.table, shard)
                left_out = shard < 0
                if left_out.any():
                    why = [REASONS[r] for r in place["reason"][left_out].tolist()]
                    self.found.scan.quarantine.reject(batch, left_out, why)
            placed = batch.table
            for name, values in (
                (RANK, pa.array(np.ascontiguousarray(place["rank"]))),
                (ID, _as_binary(place["id"])),
                (CONTENT, _as_binary(place["key"])),
            ):
                placed = placed.append_column(name, values)
            for s in np.unique(shard[(shard >= first) & (shard < first + OPEN_AT_ONCE)]).tolist():
                spill = self._spills.setdefault(s, self.workspace.spill())
                some = np.flatnonzero(shard == s)
                whole = len(some) == placed.num_rows
                spill.append(placed if whole else placed.take(pa.array(some)))

    def _look(self, table: pa.Table, shard: NDArray[np.int32]) -> None:
        if not self._describes:
            return
        for number in {self.placing.numbers[s] for s in np.unique(shard[shard >= 0]).tolist()}:
            of_number = np.array([n == number for n in self.placing.numbers], dtype=bool)
            keep = (shard >= 0) & of_number[np.maximum(shard, 0)]
            some = table if keep.all() else table.filter(pa.array(keep))
            for name, summary in self.summaries.items():
                counts = summary.add(some[name])
                known = self.counts[number].get(name)
                self.counts[number][name] = counts if known is None else known.plus(counts)

    def shard(self, s: int) -> Spill:
        """Return the records of a shard as they came, with their ranks, ids and content keys."""
        if s and s % OPEN_AT_ONCE == 0:
            self.deal(s)
        return self._spills.pop(s)


def _as_binary(keys: NDArray[Any]) -> pa.Array:
    keys = np.ascontiguousarray(keys)
    return pa.Array.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(keys)])


def _as_keys(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of 16 bytes a record as keys."""
    chunks = [np.zeros(0, dtype=KEY)]
    for chunk in column.chunks:
        raw = np.frombuffer(chunk.buffers()[1], dtype=KEY)
        chunks.append(raw[chunk.offset : chunk.offset + len(chunk)])
    return np.concatenate(chunks)


def deal_out(
    found: Candidates,
    placing: Placing,
    workspace: Workspace,
    *,
    describes: bool = True,
) -> Dealt:
    """Deal candidates out to their shards; nothing is put into the store yet.

    Parameters
    ----------
    found : Candidates
        The records; their scan's quarantine takes what goes nowhere.
    placing : Placing
        Where each goes, or why it goes nowhere.
    workspace : Workspace
        Where shards wait.
    describes : bool
        Whether columns are summarised.
    """
    dealt = Dealt(found, placing, workspace, describes=describes)
    dealt.deal()
    return dealt


def write_staged(store: Store, dealt: Dealt, *, prefix: str) -> tuple[ShardFact, ...]:
    """Put the shards under names that hold their content's hash, one at a time."""
    placing, label = dealt.placing, dealt.found.roles.label
    facts = []
    for s, (part, stem) in enumerate(placing.stems):
        table = _staged(dealt, s)
        facts.append(
            write_shard(
                store,
                row_groups(table, rows_per_group(table.num_rows, table.nbytes)),
                kind=ParquetShards(),
                name=f"{prefix}/{stem}",
                split=part,
                origin="real",
                label=label,
                classes=(),
            )
        )
        del table
        give_back()  # the next one is of another size
    return tuple(facts)


def _staged(dealt: Dealt, s: int) -> pa.Table:
    """Return a shard's records as they are staged.

    Column after column is read and brought into order: a shard is in memory once, and one column of it twice.
    """
    schema = dealt.found.roles.schema
    categories = dealt.found.scan.dictionaries.get(dealt.placing.numbers[s], {})
    came = dealt.shard(s)
    order = np.argsort(came.column(RANK).to_numpy())
    ids, keys = (_as_keys(came.column(name))[order] for name in (ID, CONTENT))
    rows = pa.array(order)
    columns = []
    for field in schema:
        column = came.column(field.name).take(rows)
        if pa.types.is_dictionary(field.type):
            column = _with_categories(column, field.type, categories.get(field.name, []))
        columns.append(_canonical(column.cast(field.type), field))
        del column
    came.clear()
    for name, made in (("aug_id", ids), ("content_key", keys)):
        schema = schema.append(pa.field(name, pa.string()))
        columns.append(hex_column(made))
    return pa.table(columns, schema=schema)


def _with_categories(column: pa.ChunkedArray, kind: pa.DictionaryType, known: list[Any]) -> Any:
    """Give a category column its dictionary back."""
    values = pa.array(known, kind.value_type)
    codes = pc.index_in(column.combine_chunks(), value_set=values).cast(kind.index_type)
    return pa.DictionaryArray.from_arrays(codes, values, ordered=kind.ordered)


def _canonical(column: Any, field: pa.Field) -> pa.ChunkedArray:
    """Return the column as one chunk in buffers of its own, whatever it was cut out of.

    The encoder measures buffers to cut row groups; a slice, or a bitmap without a null in it, would
    show in the bytes.
    """
    table = pa.table([column], schema=pa.schema([field])).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    del table
    return pa.ipc.open_stream(sink.getvalue()).read_all().column(0)
