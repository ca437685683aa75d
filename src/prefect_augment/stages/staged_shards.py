"""Staged real records: a shard at a time, sorted by ``aug_id`` within a part and a batch.

The records are gone through once more and dealt out to their shards, which wait on local disk; then each
is sorted, encoded and put. A shard's bytes depend on its records alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.compact import hex_column, sort_order
from prefect_augment.datatypes import ShardFact
from prefect_augment.encoding.columns import ColumnCounts, ColumnSummary
from prefect_augment.shards.formats import write_shard
from prefect_augment.shards.groups import row_groups, rows_per_group
from prefect_augment.shards.parquet import ParquetShards
from prefect_augment.spill import Spill, Workspace, give_back
from prefect_augment.stages.decide import REASONS
from prefect_augment.stages.usable import Candidates
from prefect_augment.storage import Store

__all__ = ["Dealt", "Placing", "deal_out", "place", "write_staged"]

# Bounds the memory: a shard is held a few times over while it is sorted and encoded.
SHARD_BYTES = 32 << 20
OPEN_AT_ONCE = 128
RANK = "\0rank"


@dataclass(frozen=True)
class Placing:
    """Where each candidate goes.

    Parameters
    ----------
    stems : tuple of (str, str)
        Part and the beginning of its shards' names, per shard.
    shard : ndarray of int32, shape (n_candidates,)
        Which shard; -1 for none.
    rank : ndarray of int64, shape (n_candidates,)
        Its place there.
    numbers : tuple of int
        Number of the batch, per shard.
    ids, keys : ndarray of keys, shape (n_candidates,)
        ``aug_id`` and content key.
    """

    stems: tuple[tuple[str, str], ...]
    shard: NDArray[np.int32]
    rank: NDArray[np.int64]
    numbers: tuple[int, ...]
    ids: NDArray[Any]
    keys: NDArray[Any]


def place(
    parts: Mapping[int, str],
    part: NDArray[np.int8],
    batch: NDArray[np.int32],
    ids: NDArray[Any],
    keys: NDArray[Any],
    sizes: NDArray[np.int32],
) -> Placing:
    """Cut every part of every batch into shards of about equal bytes.

    Parameters
    ----------
    parts : mapping of int to str
        Name of each part.
    part, batch, ids, keys, sizes : ndarrays, shape (n_candidates,)
        Of the candidates; other parts than those named go nowhere. Sizes in bytes.
    """
    shard = np.full(len(ids), -1, dtype=np.int32)
    rank = np.zeros(len(ids), dtype=np.int64)
    stems: list[tuple[str, str]] = []
    numbers: list[int] = []
    for p, name in parts.items():
        for number in np.unique(batch[part == p]).tolist():
            rows = np.flatnonzero((part == p) & (batch == number))
            rows = rows[sort_order(ids[rows])]
            after = np.cumsum(sizes[rows], dtype=np.int64)
            n_shards = max(1, -(-int(after[-1]) // SHARD_BYTES))
            which = np.minimum((after - 1) * n_shards // max(1, int(after[-1])), n_shards - 1)
            shard[rows] = len(stems) + which
            which = np.unique(which, return_inverse=True)[1]  # one huge record leaves numbers out
            n_shards = int(which[-1]) + 1
            starts = np.searchsorted(which, np.arange(n_shards))
            rank[rows] = np.arange(len(rows)) - starts[which]
            stems += [(name, f"{name}-b{number:05d}-{i:05d}") for i in range(n_shards)]
            numbers += [number] * n_shards
    return Placing(tuple(stems), shard, rank, tuple(numbers), ids, keys)


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

    def deal(self, first: int = 0, reasons: NDArray[np.int8] | None = None) -> None:
        """Deal out to the shards from ``first`` on, as many as may be open at once.

        The first time, take note of the columns and put what goes nowhere into quarantine.
        """
        start = 0
        for batch in self.found.batches():
            rows = np.arange(start, start + batch.table.num_rows)
            start += batch.table.num_rows
            shard = self.placing.shard[rows]
            if first == 0:
                self._look(batch.table, shard)
                left_out = shard < 0
                if reasons is not None and left_out.any():
                    why = [REASONS[r] for r in reasons[rows[left_out]].tolist()]
                    self.found.scan.quarantine.reject(batch, left_out, why)
            ranked = batch.table.append_column(RANK, pa.array(rows))
            for s in np.unique(shard[(shard >= first) & (shard < first + OPEN_AT_ONCE)]).tolist():
                spill = self._spills.setdefault(s, self.workspace.spill())
                some = np.flatnonzero(shard == s)
                whole = len(some) == ranked.num_rows
                spill.append(ranked if whole else ranked.take(pa.array(some)))

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

    def sorted_shard(self, s: int) -> tuple[pa.Table, NDArray[np.int64]]:
        """Return the records of a shard in their order, and which candidates they are."""
        if s and s % OPEN_AT_ONCE == 0:
            self.deal(s)
        spill = self._spills.pop(s)
        table = spill.table()
        spill.clear()
        rows = table[RANK].to_numpy()
        order = np.argsort(self.placing.rank[rows])
        return table.drop_columns([RANK]).take(pa.array(order)), rows[order]


def deal_out(
    found: Candidates,
    placing: Placing,
    workspace: Workspace,
    *,
    reasons: NDArray[np.int8] | None = None,
    describes: bool = True,
) -> Dealt:
    """Deal candidates out to their shards; nothing is put into the store yet.

    Parameters
    ----------
    found : Candidates
        The records; their scan's quarantine takes what goes nowhere.
    placing : Placing
        Where each goes.
    workspace : Workspace
        Where shards wait.
    reasons : ndarray of int8, shape (n_candidates,), optional
        Why a candidate goes nowhere: index into :data:`~prefect_augment.stages.decide.REASONS`.
    describes : bool
        Whether columns are summarised.
    """
    dealt = Dealt(found, placing, workspace, describes=describes)
    dealt.deal(0, reasons)
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
    """Return a shard's records as they are staged."""
    roles, placing = dealt.found.roles, dealt.placing
    table, rows = dealt.sorted_shard(s)
    categories = dealt.found.scan.dictionaries.get(placing.numbers[s], {})
    table = _as_published(table, roles.schema, categories)
    table = table.append_column("aug_id", hex_column(placing.ids[rows]))
    table = table.append_column("content_key", hex_column(placing.keys[rows]))
    return _canonical(table)


def _as_published(
    table: pa.Table, schema: pa.Schema, categories: Mapping[str, list[Any]]
) -> pa.Table:
    """Give category columns their dictionaries back, and the table its schema."""
    columns = []
    for field in schema:
        column = table[field.name]
        if pa.types.is_dictionary(field.type):
            values = pa.array(categories.get(field.name, []), field.type.value_type)
            codes = pc.index_in(column.combine_chunks(), value_set=values)
            column = pa.DictionaryArray.from_arrays(
                codes.cast(field.type.index_type), values, ordered=field.type.ordered
            )
        columns.append(column)
    return pa.table(columns, schema=schema)


def _canonical(table: pa.Table) -> pa.Table:
    """Return the table as one batch in buffers of its own, whatever it was cut out of.

    The encoder measures buffers to cut row groups; a slice, or a bitmap without a null in it, would
    show in the bytes.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return pa.ipc.open_stream(sink.getvalue()).read_all()
