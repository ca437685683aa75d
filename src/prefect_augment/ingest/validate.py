"""Validation of a source's records, and what the split needs to know of each.

Batches are read one by one; key, class, group and the like go to local disk, binned by key. Images
are decoded here, once, for ingest, profile and a hold-out alike.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cached_property

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
from prefect_augment.ingest.record_index import LEFT_OUT, RecordIndex
from prefect_augment.ingest.scan import Progress, Scan
from prefect_augment.ingest.schema import plain_schema
from prefect_augment.ingest.validate_images import ImageChecker, Images, StagedChecks
from prefect_augment.params import Source
from prefect_augment.shards.base import record_bytes
from prefect_augment.sources.images.columns import GROUP, with_group_column
from prefect_augment.split.corrections import NO_CORRECTIONS, Corrections
from prefect_augment.storage.external_sort import PartitionedRows, bin_of, n_bins_for
from prefect_augment.storage.keys import KEY, Coded, hex_column, sort_order

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
        """Raise InputError for a value that is neither yes nor no, or one for all; counts are of other records."""
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


class Candidates:
    """The valid records of a scan, in the order they were read; what the split needs of each is on local disk."""

    def __init__(
        self,
        scan: Scan,
        roles: Roles,
        *,
        n_bins: int,
        conform: Conform | None,
        corrections: Corrections,
    ) -> None:
        self.scan, self.roles, self.n_bins = scan, roles, n_bins
        self.images: Images | None = None
        self.holdout_column = HoldoutColumn(roles.holdout_column) if roles.holdout_column else None
        #: Distinct labels as the source has them.
        self.label_values = pa.array([], plain_schema(roles.schema).field(roles.label).type)
        self._corrections, self._conform = corrections, conform
        self._labels, self._groups = Names(), Names()
        self._kept: list[NDArray[np.uint8]] = []  # per batch, a bit per record
        variant = KEY if roles.image else np.dtype(np.uint64)
        fields = [("key", KEY), ("variant", variant), ("row", np.dtype(np.int64))]
        fields += [(name, np.dtype(np.int32)) for name in ("label", "file", "size", "group")]
        dtype = np.dtype([*fields, ("mark", np.dtype(np.bool_))])
        self._partitions = PartitionedRows(scan.workspace, dtype, n_bins)

    @property
    def n_records(self) -> int:
        """How many records there are."""
        return len(self._partitions)

    @property
    def label_counts(self) -> dict[str, int]:
        """Records per class."""
        return self._labels.counts()

    def index(self, number: int = 0) -> RecordIndex:
        """Return the records of a bin, before the split."""
        rows, images = self._partitions.read(number), self.images
        labels = self._labels.coded(rows["label"])
        batch = self.scan.batch_of_file[rows["file"]]
        sides = [] if self.holdout_column is None else [rows["mark"]]
        order = sort_order(rows["key"], labels.codes, batch, *sides, rows["variant"])
        groups = self._groups.coded(rows["group"][order]) if self.roles.grouped_by else None
        return RecordIndex(
            keys=rows["key"][order],
            labels=labels.take(order),
            batch=batch[order],
            rows=rows["row"][order],
            marked=rows["mark"][order] if sides else None,
            groups=groups,
            parts=np.full(len(order), LEFT_OUT, dtype=np.int8),
            numbers=np.zeros(len(order), dtype=np.int32),
            files=rows["file"][order],
            sizes=rows["size"][order],
            traits=None if images is None else images.traits[order],
            thumb_rows=None if images is None else order,
            distinct_traits=() if images is None else images.distinct_traits,
            thumbs=None if images is None else images.thumbs,
        )

    @cached_property
    def every(self) -> RecordIndex:
        """All records, in one bin: those of a separate hold-out."""
        return self.index()

    def batches(self) -> Iterator[Batch]:
        """Yield the records in batches, published columns only, categories as plain values."""
        for batch, bits in zip(self.scan.batches(), self._kept, strict=True):
            keep = np.unpackbits(bits, count=len(batch.positions)).view(np.bool_)
            some = self._conformed(batch).filter(keep)
            yield Batch(self._published(some.table), some.file_index, some.positions)

    def _conformed(self, batch: Batch) -> Batch:
        if self._conform is None:
            return batch
        return Batch(self._conform(batch.table), batch.file_index, batch.positions)

    def _published(self, table: pa.Table) -> pa.Table:
        return _corrected(self.roles.published_table(table), self.roles, self._corrections)

    def _add(self, batch: Batch, checker: ImageChecker | None) -> None:
        n = len(batch.positions)
        batch, rows = self._valid(self._conformed(batch), checker)
        keep = np.zeros(n, dtype=bool)
        keep[rows] = True
        self._kept.append(np.packbits(keep))
        label = self.roles.label
        published = self._published(batch.table)
        values = published[label].combine_chunks().unique()
        self.label_values = pa.concat_arrays([self.label_values, values]).unique()
        if len(rows) == 0:
            return
        some = np.zeros(len(rows), dtype=self._partitions.dtype)
        some["row"] = len(self._partitions) + np.arange(len(rows))
        some["key"] = record_digests(published, label=label)
        some["variant"] = record_variants(published, label=label)
        some["size"] = record_bytes(published)
        some["file"] = batch.file_index
        some["label"] = self._labels.add(label_text(published[label]))
        if self.roles.grouped_by:
            names = pa.array(group_names(batch.table[self.roles.grouped_by]), pa.string())
            some["group"] = self._groups.add(names)
        if self.holdout_column is not None:
            some["mark"] = self.holdout_column.add(batch.table[self.roles.holdout_column])
        self._partitions.add(some, bin_of(some["key"], self.n_bins))

    def _valid(self, batch: Batch, checker: ImageChecker | None) -> tuple[Batch, NDArray[np.intp]]:
        """Return the valid records of a batch, and their row numbers."""
        roles = self.roles
        rows = np.arange(len(batch.positions))

        def reject(unusable: NDArray[np.bool_], reason: str) -> None:
            nonlocal batch, rows
            batch = self.scan.quarantine.reject(batch, unusable, reason)
            rows = rows[~unusable]

        reject(missing_labels(batch.table[roles.label]).to_numpy(zero_copy_only=False), "no label")
        if roles.pattern and GROUP not in batch.table.column_names:
            table = with_group_column(batch.table, roles.pattern)
            batch = Batch(table, batch.file_index, batch.positions)
        if roles.grouped_by and self._conform is None:
            reason = (
                "source.group_pattern does not match its path"
                if roles.pattern
                else f"no value in group column {roles.grouped_by!r}"
            )
            reject(np.asarray(group_names(batch.table[roles.grouped_by])) == "", reason)
        if checker is not None and batch.table.num_rows:
            reasons, details = checker.check(batch.table[roles.image])
            batch = self.scan.quarantine.reject_each(batch, reasons, details)
            rows = rows[[why == "" for why in reasons]]
        return batch, rows

    def _finish(self, checker: ImageChecker | None) -> None:
        self.images = None if checker is None else checker.images()
        if not self._corrections:
            return
        # A file's categories may lack a class that its records have now.
        label = self.roles.label
        texts = {text for of in self._corrections.labels.values() for text in of.values()}
        new = pa.array(sorted(texts), pa.string()).cast(self.label_values.type).to_pylist()
        for categories in self.scan.dictionaries.values():
            known = categories.get(label, [])
            known += [value for value in new if value not in known]


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

    ``conform`` first brings each batch into other columns (a hold-out's into the source's). ``may_be_empty`` says that
    other records exist, so none of these has to be valid. With ``in_bins`` the split decides on one key at a time;
    groups and near-duplicates need all records in one bin. ``checks`` are those of other tasks. Raises InputError if
    no image is valid, MissingExtraError without Pillow.
    """
    alone = in_bins and not roles.image and not roles.grouped_by
    n_bins = n_bins_for(scan.n_records) if alone else 1
    candidates = Candidates(scan, roles, n_bins=n_bins, conform=conform, corrections=corrections)
    checker = ImageChecker(roles.image, source.max_megapixels, checks) if roles.image else None
    with checker or nullcontext():
        n_done = 0
        for batch in scan.batches():
            candidates._add(batch, checker)
            n_done += len(batch.positions)
            if on_progress is not None:
                on_progress(n_done / max(1, scan.n_records), f"checked {n_done} records")
    if checker is not None and not may_be_empty:
        checker.refuse_none()
    candidates._finish(checker)
    return candidates


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


def group_names(column: pa.ChunkedArray) -> list[str]:
    """Return the group of each record as text; empty where there is none."""
    return [value or "" for value in plain(column).cast(pa.string()).to_pylist()]
