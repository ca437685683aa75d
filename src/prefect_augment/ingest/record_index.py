"""The record index: what the split needs of every record, in arrays and as a staged object per batch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefect_augment.array_types import Array, Bool, Int, Int8, Int32
from prefect_augment.ingest.validate import Candidates, Rows
from prefect_augment.ingest.validate_images import Traits
from prefect_augment.shards.base import write_shard
from prefect_augment.shards.parquet import ParquetShards
from prefect_augment.sources.images.validation import THUMB_SIDE
from prefect_augment.storage import Store
from prefect_augment.storage.external_sort import PartitionedRows, first_of_bin
from prefect_augment.storage.keys import KEY, Coded, joined, shared_names, sort_order, taken
from prefect_augment.storage.spill import ArraySpill, Workspace

THUMB_BYTES = THUMB_SIDE * THUMB_SIDE
ROWS_AT_ONCE = 131_072
TRAITS = ("mode", "format", "width", "height", "is_animated", "is_rotated")
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
    traits: Int32 | None  # index into kinds
    distinct_traits: list[Traits]
    thumb_rows: Int | None  # row of thumbs; -1 where the ledger has it
    thumbs: Int8 | ArraySpill | None  # (n_thumbs, 1024) int8
    parts: Int8  # index into PARTS, or LEFT_OUT
    numbers: Int32  # among records of one key and label
    files: Int32
    sizes: Int32  # approximate bytes; 0 in earlier batches

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Array) -> "RecordIndex":
        """Return some of the records, in the order of ``rows``; the same where these are all."""
        if len(rows) == len(self) and bool((np.diff(rows) == 1).all()):
            return self
        whole = ("distinct_traits", "thumbs")
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in whole}
        return replace(self, **{name: taken(values, rows) for name, values in columns.items()})

    def of_bin(self, number: int, n_bins: int) -> "RecordIndex":
        """Return the records whose keys are in a bin; see :func:`prefect_augment.storage.external_sort.bin_of`."""
        if n_bins == 1:
            return self
        ends = [len(self)] * 2
        for i, b in enumerate((number, number + 1)):
            if b < n_bins:
                ends[i] = int(np.searchsorted(self.keys, first_of_bin(b, n_bins))[0])
        return self.take(np.arange(*ends))


def index_of(candidates: Candidates, rows: Rows, batches: Int32) -> RecordIndex:
    """Return the index of candidates, one bin of them (``rows``), before the split."""
    n = len(rows.keys)
    images = candidates.images
    index = RecordIndex(
        rows.keys,
        rows.labels,
        batches[rows.files],
        rows.rows,
        rows.marked,
        rows.groups,
        None if images is None else images.traits,
        [] if images is None else images.distinct_traits,
        None if images is None else np.arange(n),
        None if images is None else images.thumbs,
        np.full(n, LEFT_OUT, dtype=np.int8),
        np.zeros(n, dtype=np.int32),
        rows.files,
        rows.sizes,
    )
    columns = [index.keys, index.labels.codes, index.batch]
    columns += [] if rows.marked is None else [rows.marked]
    return index.take(sort_order(*columns, rows.variants))


def merge(parts: Sequence[RecordIndex]) -> RecordIndex:
    """Merge the records of several batches, each sorted, into one order."""
    first, *rest = parts
    if not rest:
        return first
    # One set of names, traits and thumbnails for all parts.
    labels = shared_names(*(p.labels for p in parts))
    groups = None if first.groups is None else shared_names(*(p.groups for p in parts if p.groups))
    distinct: dict[Traits, int] = {}
    traits, thumb_rows, thumbs, n_thumbs = [], [], [], 0
    for p in parts:
        if p.traits is None or p.thumb_rows is None or p.thumbs is None:
            continue
        code = np.array(
            [distinct.setdefault(t, len(distinct)) for t in p.distinct_traits],
            dtype=np.int32,
        )
        traits.append(code[p.traits] if len(p.traits) else p.traits)
        thumb_rows.append(np.where(p.thumb_rows < 0, -1, p.thumb_rows + n_thumbs))
        thumbs.append(p.thumbs)
        n_thumbs += len(p.thumbs)
    keys = first.keys
    for p in rest:
        keys = joined(keys, p.keys)
    whole = RecordIndex(
        keys,
        Coded(np.concatenate([c.codes for c in labels]), labels[0].names),
        np.concatenate([p.batch for p in parts]),
        np.concatenate([p.rows for p in parts]),
        None
        if first.marked is None
        else np.concatenate([p.marked for p in parts if p.marked is not None]),
        None
        if groups is None
        else Coded(np.concatenate([c.codes for c in groups]), groups[0].names),
        np.concatenate(traits) if traits else None,
        list(distinct),
        np.concatenate(thumb_rows) if traits else None,
        _joined(thumbs) if traits else None,
        np.concatenate([p.parts for p in parts]),
        np.concatenate([p.numbers for p in parts]),
        np.concatenate([p.files for p in parts]),
        np.concatenate([p.sizes for p in parts]),
    )
    # A batch keeps its own order; only there do variants count.
    columns = [whole.keys, whole.labels.codes, whole.batch]
    columns += [] if whole.marked is None else [whole.marked]
    return whole.take(sort_order(*columns))


def _joined(thumbs: Sequence[Int8 | ArraySpill]) -> ArraySpill:
    every = ArraySpill(THUMB_BYTES)
    for part in thumbs:
        every.extend(part)
    return every


# --- as an object -----------------------------------------------------------------------------


class IndexSpill:
    """The indexes of the batches read, on local disk; their pieces come in order."""

    def __init__(self, workspace: Workspace, batches: Sequence[int]) -> None:
        self._batches = np.array(sorted(batches), dtype=np.int32)
        fields = [("key", KEY), ("thumb", np.int64), ("label", np.int32), ("group", np.int32)]
        fields += [("trait", np.int32), ("number", np.int32), ("part", np.int8), ("mark", np.bool_)]
        self._rows = PartitionedRows(workspace, np.dtype(fields), len(batches))
        self._like: RecordIndex | None = None

    def append(self, index: RecordIndex) -> None:
        """Add the next records; all pieces share one set of names."""
        rows = np.zeros(len(index), dtype=self._rows.dtype)
        rows["key"], rows["label"] = index.keys, index.labels.codes
        rows["number"], rows["part"] = index.numbers, index.parts
        for name, values in (
            ("mark", index.marked),
            ("group", None if index.groups is None else index.groups.codes),
            ("trait", index.traits),
            ("thumb", index.thumb_rows),
        ):
            if values is not None:
                rows[name] = values
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
        like = self._like
        assert like is not None
        return replace(
            like,
            keys=rows["key"],
            labels=Coded(rows["label"], like.labels.names),
            marked=None if like.marked is None else np.ascontiguousarray(rows["mark"]),
            groups=None if like.groups is None else Coded(rows["group"], like.groups.names),
            traits=None if like.traits is None else np.ascontiguousarray(rows["trait"]),
            thumb_rows=None if like.thumb_rows is None else rows["thumb"],
            parts=np.ascontiguousarray(rows["part"]),
            numbers=np.ascontiguousarray(rows["number"]),
        )


def _table(some: RecordIndex) -> pa.Table:
    keys = np.ascontiguousarray(some.keys, dtype=KEY)
    columns: dict[str, Any] = {
        "key": pa.Array.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(keys)]),
        "label": _strings(some.labels),
        "part": pa.array(some.parts, pa.int8()),
        "number": pa.array(some.numbers, pa.int32()),
    }
    if some.marked is not None:
        columns["marked"] = pa.array(some.marked)
    if some.groups is not None:
        columns["group"] = _strings(some.groups)
    if some.traits is not None and some.thumb_rows is not None and some.thumbs is not None:
        columns["kind"] = _trait_structs(some.distinct_traits).take(pa.array(some.traits))
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


def _trait_structs(distinct: Sequence[Traits]) -> pa.Array:
    kind = pa.struct(
        [("mode", pa.string()), ("format", pa.string())]
        + [(name, pa.int32()) for name in TRAITS[2:4]]
        + [(name, pa.bool_()) for name in TRAITS[4:]]
    )
    return pa.array([dict(zip(TRAITS, k, strict=True)) for k in distinct], kind)


def read_index(store: Store, path: str, *, batch: int) -> RecordIndex:
    """Return a staged index; raises FileNotFoundError, ArrowException or KeyError if missing or damaged."""
    with store.open(path) as file:
        reader = pq.ParquetFile(file)
        return merge([_read(b, batch) for b in reader.iter_batches(ROWS_AT_ONCE)])


def _read(table: pa.RecordBatch, batch: int) -> RecordIndex:
    n = table.num_rows
    has = table.schema.names
    raw = np.frombuffer(table["key"].buffers()[1], dtype=np.uint8)
    start = table["key"].offset * 16
    keys = raw[start : start + 16 * n].copy().view(KEY)
    traits = thumb_rows = thumbs = None
    distinct: list[Traits] = []
    if "kind" in has:
        known: dict[Traits, int] = {}
        rows = table["kind"].to_pylist()
        codes = [known.setdefault(tuple(r[t] for t in TRAITS), len(known)) for r in rows]
        traits, distinct = np.array(codes, dtype=np.int32), list(known)
        pixels = table["thumb"]
        there = pixels.is_valid().to_numpy(zero_copy_only=False)
        thumb_rows = np.where(there, np.cumsum(there) - 1, -1)
        data = b"".join(pixels.drop_null().to_pylist())
        thumbs = np.frombuffer(data, dtype=np.int8).reshape(-1, THUMB_BYTES)
    return RecordIndex(
        keys,
        _coded(table["label"]),
        np.full(n, batch, dtype=np.int32),
        np.full(n, -1, dtype=np.int64),
        table["marked"].to_numpy(zero_copy_only=False) if "marked" in has else None,
        _coded(table["group"]) if "group" in has else None,
        traits,
        distinct,
        thumb_rows,
        thumbs,
        table["part"].to_numpy().astype(np.int8),
        table["number"].to_numpy().astype(np.int32),
        np.zeros(n, dtype=np.int32),
        np.zeros(n, dtype=np.int32),
    )


def _coded(texts: pa.Array) -> Coded:
    encoded = texts.dictionary_encode()
    return Coded.from_names(encoded.indices.to_numpy(), encoded.dictionary.to_pylist())
