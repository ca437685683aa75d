"""Validation of a source's records, and what the split needs to know of each.

Batches are read one by one; key, class, group and the like go to local disk, binned by key. Images
are decoded here, once, for ingest, profile and a hold-out alike.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.encoding.labels import label_text, missing_labels
from prefect_augment.encoding.record_ids import record_digests, record_variants
from prefect_augment.encoding.values import plain
from prefect_augment.errors import InputError
from prefect_augment.ingest.column_roles import Roles
from prefect_augment.ingest.quarantine import Batch
from prefect_augment.ingest.scan import Progress, Scan
from prefect_augment.ingest.schema import plain_schema
from prefect_augment.ingest.validate_images import ImageChecker, Images, StagedChecks
from prefect_augment.params import Source
from prefect_augment.shards.row_groups import record_bytes
from prefect_augment.sources.images.columns import GROUP, with_group_column
from prefect_augment.split.corrections import NO_CORRECTIONS, Corrections
from prefect_augment.storage.external_sort import PartitionedRows, bin_of, n_bins_for
from prefect_augment.storage.keys import KEY, Coded, hex_column, taken

IN_HOLDOUT = frozenset({"true", "1", "yes", "holdout", "hold-out", "hold_out", "test"})
IN_TRAINING = frozenset({"false", "0", "no", "train", "training", "validation", ""})


class HoldoutColumn:
    """The user's hold-out column, read batch by batch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._unknown: set[str] = set()
        self._n = self._n_marked = 0

    def add(self, column: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Return which records of a batch are marked."""
        encoded = label_text(column).dictionary_encode()
        words = [word.strip().casefold() for word in encoded.dictionary.to_pylist()]
        self._unknown |= set(words) - IN_HOLDOUT - IN_TRAINING
        held = np.array([*(word in IN_HOLDOUT for word in words), False])
        codes = encoded.indices.fill_null(len(words)).to_numpy()
        marked: NDArray[np.bool_] = held[codes]
        self._n += len(marked)
        self._n_marked += int(marked.sum())
        return marked

    def check(self, *, n: int = 0, n_marked: int = 0) -> None:
        """Raise InputError if the column has a value that is neither yes nor no, or one value for all records.

        ``n`` and ``n_marked`` count other records and the marked ones among them.
        """
        if self._unknown:
            unknown = sorted(self._unknown)
            raise InputError(
                f"holdout_column {self.name!r} holds {', '.join(map(repr, unknown[:5]))}; expected true, 1, holdout "
                "or test for hold-out records and false, 0, train or nothing for the others.",
                column=self.name,
                values=unknown,
            )
        n, n_marked = self._n + n, self._n_marked + n_marked
        if n_marked in (0, n):
            where = "all records" if n_marked else "no record"
            raise InputError(
                f"holdout_column {self.name!r} marks {where} as hold-out; expected a part of them.",
                column=self.name,
            )


Conform = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Rows:
    """What the split needs to know of some records, in the order they were read; arrays of shape (n_records,)."""

    keys: NDArray[Any]  # content keys
    labels: Coded
    rows: NDArray[np.int64]  # numbers of the candidates
    files: NDArray[np.int32]
    variants: NDArray[Any]  # sorts records of one key and class
    sizes: NDArray[np.int32]  # approximate bytes
    marked: NDArray[np.bool_] | None  # in the hold-out column
    groups: Coded | None

    def take(self, rows: NDArray[Any]) -> "Rows":
        """Return some of them."""
        return Rows(*(taken(getattr(self, f.name), rows) for f in fields(self)))


@dataclass
class Candidates:
    """The valid records of a scan, in the order they were read."""

    scan: Scan
    roles: Roles
    partitions: PartitionedRows  # what rows() returns, binned by key
    labels: "Names"
    groups: "Names"
    label_values: pa.Array  # distinct labels as the source has them
    holdout_column: HoldoutColumn | None = None
    images: Images | None = None
    kept: list[NDArray[np.uint8]] = field(default_factory=list)  # per batch, a bit per record
    conform: Conform | None = None  # brings a batch into other columns first
    corrections: Corrections = NO_CORRECTIONS

    @property
    def n_records(self) -> int:
        """How many records there are."""
        return len(self.partitions)

    @property
    def n_bins(self) -> int:
        """Number of bins, by key."""
        return self.partitions.n_bins

    def rows(self, number: int = 0) -> Rows:
        """Return the records of a bin."""
        rows = self.partitions.read(number)
        return Rows(
            np.ascontiguousarray(rows["key"]),
            self.labels.coded(rows["label"]),
            rows["row"],
            rows["file"],
            rows["variant"],
            rows["size"],
            None if self.holdout_column is None else rows["mark"],
            self.groups.coded(rows["group"]) if self.roles.grouped_by else None,
        )

    @property
    def label_counts(self) -> dict[str, int]:
        """Records per class."""
        return self.labels.counts()

    @cached_property
    def every(self) -> Rows:
        """All records, in one bin: those of a separate hold-out."""
        return self.rows()

    def batches(self) -> Iterator[Batch]:
        """Yield the records in batches, published columns only, categories as plain values."""
        for batch, bits in zip(self.scan.batches(), self.kept, strict=True):
            keep = np.unpackbits(bits, count=len(batch.positions)).view(np.bool_)
            some = _conformed(batch, self.conform).filter(keep)
            table = _corrected(self.roles.published_table(some.table), self.roles, self.corrections)
            yield Batch(table, some.file_index, some.positions)


def find_candidates(
    scan: Scan,
    roles: Roles,
    source: Source,
    *,
    conform: Conform | None = None,
    corrections: Corrections = NO_CORRECTIONS,
    may_be_empty: bool = False,
    in_bins: bool = False,
    checks: StagedChecks | None = None,
    on_progress: Progress | None = None,
) -> Candidates:
    """Validate the records of a scan, reject the invalid ones into its quarantine, and return the others.

    ``conform`` first brings each batch into other columns (a hold-out's into the source's). ``corrections`` are
    labels that hold in place of the source's.
    ``may_be_empty`` says that other records exist, so none of these has to be valid. With ``in_bins`` the
    split decides on one key at a time; groups and near-duplicates need all records in one bin. ``checks`` are
    those of other tasks.
    Raises InputError if no image is valid, MissingExtraError without Pillow.
    """
    alone = in_bins and not roles.image and not roles.grouped_by
    collector = _Collector(roles, scan, n_bins_for(scan.n_records) if alone else 1, corrections)
    checker = ImageChecker(roles.image, source.max_megapixels, checks) if roles.image else None
    with checker or nullcontext():
        n_done = 0
        for batch in scan.batches():
            n = len(batch.positions)
            batch = _conformed(batch, conform)
            needs_group = conform is None
            collector.add(_valid(batch, roles, scan, checker, needs_group=needs_group), n)
            n_done += n
            if on_progress is not None:
                on_progress(n_done / max(1, scan.n_records), f"checked {n_done} records")
    if checker is not None and not may_be_empty:
        checker.refuse_none()
    return collector.candidates(None if checker is None else checker.images(), conform)


def _conformed(batch: Batch, conform: Conform | None) -> Batch:
    if conform is None:
        return batch
    return Batch(conform(batch.table), batch.file_index, batch.positions)


def _valid(
    batch: Batch,
    roles: Roles,
    scan: Scan,
    checker: ImageChecker | None,
    *,
    needs_group: bool,
) -> tuple[Batch, NDArray[np.intp]]:
    """Return the valid records of a batch, and their row numbers."""
    rows = np.arange(len(batch.positions))

    def reject(unusable: NDArray[np.bool_], reason: Any, details: Sequence[str] = ()) -> None:
        nonlocal batch, rows
        if unusable.any():
            batch = scan.quarantine.reject(batch, unusable, reason, details=details)
            rows = rows[~unusable]

    reject(missing_labels(batch.table[roles.label]).to_numpy(zero_copy_only=False), "no label")
    if roles.pattern and GROUP not in batch.table.column_names:
        table = with_group_column(batch.table, roles.pattern)
        batch = Batch(table, batch.file_index, batch.positions)
    if roles.grouped_by and needs_group:
        reason = (
            "source.group_pattern does not match its path"
            if roles.pattern
            else f"no value in group column {roles.grouped_by!r}"
        )
        reject(np.asarray(group_names(batch.table[roles.grouped_by])) == "", reason)
    if checker is not None and batch.table.num_rows:
        reasons, details = checker.check(batch.table[roles.image])
        unusable = np.array([why != "" for why in reasons], dtype=bool)
        bad = np.flatnonzero(unusable)
        reject(unusable, [reasons[i] for i in bad], [details[i] for i in bad])
    return batch, rows


def _corrected(table: pa.Table, roles: Roles, corrections: Corrections) -> pa.Table:
    """Return published columns with the labels that people corrected."""
    if not corrections or table.num_rows == 0:
        return table
    keys = hex_column(record_digests(table, label=roles.label))
    named = pc.indices_nonzero(pc.is_in(keys, pa.array([*corrections.labels]))).to_pylist()
    if not named:
        return table
    names = label_text(table[roles.label]).to_pylist()
    for i in named:
        names[i] = corrections.labels[keys[i].as_py()].get(names[i], names[i])
    at = table.column_names.index(roles.label)
    kind = table.schema.field(at)
    return table.set_column(at, kind, pa.array(names, pa.string()).cast(kind.type))


class Names:
    """Texts in batches, coded in order of appearance."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._n = np.zeros(0, dtype=np.int64)

    def add(self, texts: pa.Array) -> NDArray[np.int32]:
        """Return the codes of a batch."""
        encoded = texts.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        indices = [self._index.setdefault(name, len(self._index)) for name in names]
        codes: NDArray[np.int32] = np.array(indices, dtype=np.int32)[encoded.indices.to_numpy()]
        n = np.bincount(codes, minlength=len(self._index))
        n[: len(self._n)] += self._n
        self._n = n
        self.__dict__.pop("_ranks", None)
        return codes

    @cached_property
    def _ranks(self) -> Coded:
        """The names sorted, and the rank of each code."""
        return Coded.from_names(np.arange(len(self._index)), list(self._index))

    def coded(self, codes: NDArray[np.int32]) -> Coded:
        """Return codes of the sorted names."""
        return Coded(self._ranks.codes[codes], self._ranks.names)

    def counts(self) -> dict[str, int]:
        """Return records per name, in the order of the names."""
        return dict(sorted(zip(self._index, self._n.tolist(), strict=True)))


class _Collector:
    """Collects what is kept of each batch, binned by key."""

    def __init__(self, roles: Roles, scan: Scan, n_bins: int, corrections: Corrections) -> None:
        self.roles, self.scan, self.corrections = roles, scan, corrections
        self.kept: list[NDArray[np.uint8]] = []
        dtype = np.dtype(
            [
                ("key", KEY),
                ("variant", KEY if roles.image else np.uint64),
                ("row", np.int64),
                ("label", np.int32),
                ("file", np.int32),
                ("size", np.int32),
                ("group", np.int32),
                ("mark", np.bool_),
            ]
        )
        self.partitions = PartitionedRows(scan.workspace, dtype, n_bins)
        self.labels, self.groups = Names(), Names()
        self.values: pa.Array | None = None
        self.holdout_column = HoldoutColumn(roles.holdout_column) if roles.holdout_column else None

    def add(self, valid: tuple[Batch, NDArray[np.intp]], n: int) -> None:
        batch, rows = valid
        keep = np.zeros(n, dtype=bool)
        keep[rows] = True
        self.kept.append(np.packbits(keep))
        table, label = batch.table, self.roles.label
        published = _corrected(self.roles.published_table(table), self.roles, self.corrections)
        values = published[label].combine_chunks().unique()
        self.values = (
            values if self.values is None else pa.concat_arrays([self.values, values]).unique()
        )
        if len(rows) == 0:
            return
        some = np.zeros(len(rows), dtype=self.partitions.dtype)
        some["row"] = len(self.partitions) + np.arange(len(rows))
        some["key"] = record_digests(published, label=label)
        some["variant"] = record_variants(published, label=label)
        some["size"] = record_bytes(published)
        some["file"] = batch.file_index
        some["label"] = self.labels.add(label_text(published[label]))
        if self.roles.grouped_by:
            names = pa.array(group_names(table[self.roles.grouped_by]), pa.string())
            some["group"] = self.groups.add(names)
        if self.holdout_column is not None:
            some["mark"] = self.holdout_column.add(table[self.roles.holdout_column])
        self.partitions.add(some, bin_of(some["key"], self.partitions.n_bins))

    def candidates(self, images: Images | None, conform: Conform | None) -> Candidates:
        kind = plain_schema(self.scan.schema).field(self.roles.label).type
        # A file's categories may lack a class that its records have now.
        texts = {label for of in self.corrections.labels.values() for label in of.values()}
        for categories in self.scan.dictionaries.values() if texts else ():
            if self.roles.label in categories:
                known = categories[self.roles.label]
                new = pa.array(sorted(texts), pa.string()).cast(kind).to_pylist()
                known += [value for value in new if value not in known]
        return Candidates(
            self.scan,
            self.roles,
            self.partitions,
            self.labels,
            self.groups,
            pa.array([], kind) if self.values is None else self.values,
            self.holdout_column,
            images,
            self.kept,
            conform,
            self.corrections,
        )


def group_names(column: pa.ChunkedArray) -> list[str]:
    """Return the group of each record as text; empty where there is none."""
    return [value or "" for value in plain(column).cast(pa.string()).to_pylist()]
