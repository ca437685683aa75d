"""The record index: what the split needs of every record, in arrays and as a staged object per batch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefect_augment.array_types import Array, Bool, Int, Int8, Int32
from prefect_augment.ingest.validate_images import TRAIT_NAMES, TRAITS, Traits
from prefect_augment.shards.base import binary_column, keys_of, write_shard
from prefect_augment.shards.parquet import ParquetShards
from prefect_augment.sources.images.validation import THUMB_SIDE
from prefect_augment.storage import Store
from prefect_augment.storage.external_sort import PartitionedRows, first_of_bin
from prefect_augment.storage.keys import KEY, Coded, shared_names, sort_order, taken
from prefect_augment.storage.spill import ArraySpill, Workspace

THUMB_BYTES = THUMB_SIDE * THUMB_SIDE
ROWS_AT_ONCE = 131_072
LEFT_OUT = -1  # as a part: in quarantine


@dataclass
class RecordIndex:
    """Records sorted by key, label, batch, mark and variant; arrays of shape (n_records,)."""

    keys: Array  # content keys
    labels: Coded
    batch: Int32
    rows: Int  # number of the candidate; -1 in earlier batches
    marked: Bool | None  # in the hold-out column
    groups: Coded | None
    parts: Int8  # index into PARTS, or LEFT_OUT
    numbers: Int32  # among records of one key and label
    files: Int32
    sizes: Int32  # approximate bytes; 0 in earlier batches
    traits: Int32 | None = None  # index into distinct_traits
    thumb_rows: Int | None = None  # row of thumbs; -1 where the ledger has it
    distinct_traits: Sequence[Traits] = ()
    thumbs: Int8 | ArraySpill | None = None  # (n_thumbs, 1024) int8

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Array) -> "RecordIndex":
        """Return some of the records, in the order of ``rows``; the same where these are all."""
        if len(rows) == len(self) and bool((np.diff(rows) == 1).all()):
            return self
        return replace(self, **{name: taken(getattr(self, name), rows) for name in COLUMNS})

    def of_bin(self, number: int, n_bins: int) -> "RecordIndex":
        """Return the records whose keys are in a bin; see :func:`prefect_augment.storage.external_sort.bin_of`."""
        if n_bins == 1:
            return self
        ends = [len(self)] * 2
        for i, b in enumerate((number, number + 1)):
            if b < n_bins:
                ends[i] = int(np.searchsorted(self.keys, first_of_bin(b, n_bins))[0])
        return self.take(np.arange(*ends))


COLUMNS = [f.name for f in fields(RecordIndex) if f.name not in ("distinct_traits", "thumbs")]


def merge(parts: Sequence[RecordIndex]) -> RecordIndex:
    """Merge the records of several batches, each sorted, into one order."""
    first, *rest = parts
    if not rest:
        return first
    # One set of traits and thumbnails for all parts.
    distinct: dict[Traits, int] = {}
    thumbs = None if first.thumbs is None else ArraySpill(THUMB_BYTES)
    shared = []
    for p in parts:
        if thumbs is not None and p.traits is not None and p.thumb_rows is not None:
            codes = [distinct.setdefault(t, len(distinct)) for t in p.distinct_traits]
            traits = np.array(codes, dtype=np.int32)[p.traits] if len(p) else p.traits
            thumb_rows = np.where(p.thumb_rows < 0, -1, p.thumb_rows + len(thumbs))
            thumbs.extend(p.thumbs)
            p = replace(p, traits=traits, thumb_rows=thumb_rows)
        shared.append(p)
    columns = {name: _concatenated([getattr(p, name) for p in shared]) for name in COLUMNS}
    whole = RecordIndex(**columns, distinct_traits=list(distinct), thumbs=thumbs)
    # A batch keeps its own order; only there do variants count.
    sides = [] if whole.marked is None else [whole.marked]
    return whole.take(sort_order(whole.keys, whole.labels.codes, whole.batch, *sides))


def _concatenated(columns: Sequence[Any]) -> Any:
    if columns[0] is None:
        return None
    if not isinstance(columns[0], Coded):
        return np.concatenate(columns)
    coded = shared_names(*columns)
    return Coded(np.concatenate([c.codes for c in coded]), coded[0].names)


class IndexSpill:
    """The indexes of the batches read, on local disk; their pieces come in order."""

    def __init__(self, workspace: Workspace, batches: Sequence[int]) -> None:
        self._batches = np.array(sorted(batches), dtype=np.int32)
        columns = [
            ("keys", KEY),
            ("thumb_rows", np.int64),
            ("parts", np.int8),
            ("marked", np.bool_),
        ]
        columns += [(name, np.int32) for name in ("labels", "groups", "traits", "numbers")]
        self._rows = PartitionedRows(workspace, np.dtype(columns), len(batches))
        self._like: RecordIndex | None = None

    def append(self, index: RecordIndex) -> None:
        """Add the next records; all pieces share one set of names."""
        rows = np.zeros(len(index), dtype=self._rows.dtype)
        for name in self._rows.dtype.names or ():
            values = getattr(index, name)
            if values is not None:
                rows[name] = values.codes if isinstance(values, Coded) else values
        self._like = index
        is_new = index.rows >= 0
        self._rows.add(rows[is_new], np.searchsorted(self._batches, index.batch[is_new]))

    def counts(self) -> dict[int, int]:
        """Return the records of each batch that has any."""
        sizes = zip(self._batches.tolist(), self._rows.sizes.tolist(), strict=True)
        return {number: n for number, n in sizes if n}

    def write(self, store: Store, *, prefix: str, batch: int) -> str:
        """Put one batch's index as an object named by its content, and return its path."""
        bin_ = int(np.searchsorted(self._batches, batch))
        return write_shard(
            store,
            (_table(self._index(rows)) for rows in self._rows.blocks(bin_, ROWS_AT_ONCE)),
            kind=ParquetShards(),
            name=f"{prefix}/index-b{batch:05d}",
            split="index",
            origin="real",
        ).path

    def _index(self, rows: Array) -> RecordIndex:
        assert self._like is not None
        columns: dict[str, Any] = {}
        for name in rows.dtype.names or ():
            like, values = getattr(self._like, name), np.ascontiguousarray(rows[name])
            if like is not None:
                columns[name] = Coded(values, like.names) if isinstance(like, Coded) else values
        return replace(self._like, **columns)


def _table(some: RecordIndex) -> pa.Table:
    columns: dict[str, Any] = {
        "key": binary_column(some.keys),
        "label": _strings(some.labels),
        "part": pa.array(some.parts, pa.int8()),
        "number": pa.array(some.numbers, pa.int32()),
    }
    if some.marked is not None:
        columns["marked"] = pa.array(some.marked)
    if some.groups is not None:
        columns["group"] = _strings(some.groups)
    if some.traits is not None and some.thumb_rows is not None and some.thumbs is not None:
        distinct = [dict(zip(TRAIT_NAMES, k, strict=True)) for k in some.distinct_traits]
        columns["kind"] = pa.array(distinct, TRAITS).take(pa.array(some.traits))
        # The ledger has the thumbnails of all others.
        thumbs = [
            some.thumbs[row].tobytes() if part == LEFT_OUT else None
            for row, part in zip(some.thumb_rows.tolist(), some.parts.tolist(), strict=True)
        ]
        columns["thumb"] = pa.array(thumbs, pa.binary(THUMB_BYTES))
    return pa.table(columns)


def _strings(column: Coded) -> pa.Array:
    codes = pa.array(np.ascontiguousarray(column.codes))
    return pa.array(column.names.tolist(), pa.string()).take(codes)


def read_index(store: Store, path: str, *, batch: int) -> RecordIndex:
    """Return a staged index; raises FileNotFoundError, ArrowException or KeyError if missing or damaged."""
    with store.open(path) as file:
        reader = pq.ParquetFile(file)
        return merge([_read(b, batch) for b in reader.iter_batches(ROWS_AT_ONCE)])


def _read(table: pa.RecordBatch, batch: int) -> RecordIndex:
    n = table.num_rows
    has = table.schema.names
    traits = thumb_rows = thumbs = None
    distinct: list[Traits] = []
    if "kind" in has:
        known: dict[Traits, int] = {}
        rows = table["kind"].to_pylist()
        codes = [known.setdefault(tuple(r[t] for t in TRAIT_NAMES), len(known)) for r in rows]
        traits, distinct = np.array(codes, dtype=np.int32), list(known)
        pixels = table["thumb"]
        there = pixels.is_valid().to_numpy(zero_copy_only=False)
        thumb_rows = np.where(there, np.cumsum(there) - 1, -1)
        data = b"".join(pixels.drop_null().to_pylist())
        thumbs = np.frombuffer(data, dtype=np.int8).reshape(-1, THUMB_BYTES)
    return RecordIndex(
        keys=keys_of(pa.chunked_array([table["key"]])),
        labels=_coded(table["label"]),
        batch=np.full(n, batch, dtype=np.int32),
        rows=np.full(n, -1, dtype=np.int64),
        marked=table["marked"].to_numpy(zero_copy_only=False) if "marked" in has else None,
        groups=_coded(table["group"]) if "group" in has else None,
        parts=table["part"].to_numpy().astype(np.int8),
        numbers=table["number"].to_numpy().astype(np.int32),
        files=np.zeros(n, dtype=np.int32),
        sizes=np.zeros(n, dtype=np.int32),
        traits=traits,
        thumb_rows=thumb_rows,
        distinct_traits=distinct,
        thumbs=thumbs,
    )


def _coded(texts: pa.Array) -> Coded:
    encoded = texts.dictionary_encode()
    return Coded.from_names(encoded.indices.to_numpy(), encoded.dictionary.to_pylist())
