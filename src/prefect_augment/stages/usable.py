"""Which records of a source can be used, and what the split needs to know of them.

The records are gone through in batches: of each only its key, class, group and the like are kept, in
arrays. Images are decoded here, once, for ingest, profile and a hold-out alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.compact import KEY, Coded
from prefect_augment.encoding.keys import plain_array
from prefect_augment.encoding.labels import (
    label_text,
    missing_labels,
)
from prefect_augment.params import Source
from prefect_augment.stages.image_columns import (
    GROUP,
    record_digests,
    record_variants,
    with_group_column,
)
from prefect_augment.stages.marks import Marks
from prefect_augment.stages.quarantine import Batch
from prefect_augment.stages.record_sizes import record_bytes
from prefect_augment.stages.roles import Roles
from prefect_augment.stages.schemas import plain_schema
from prefect_augment.stages.source import Progress, Scan
from prefect_augment.stages.usable_images import ImageChecker, Images

__all__ = ["Candidates", "find_candidates", "group_names"]

Conform = Callable[[pa.Table], pa.Table]


@dataclass
class Candidates:
    """The records of a scan that can be used, in the order they were read.

    Parameters
    ----------
    scan : Scan
        Where they are put aside.
    roles : Roles
        What their columns are for.
    keys : ndarray of keys, shape (n_records,)
        Content keys.
    labels : Coded, length n_records
        Class names.
    label_values : pyarrow.Array
        The different labels as the source has them.
    files : ndarray of int32, shape (n_records,)
        The file of each.
    variants : ndarray, shape (n_records,)
        What tells apart records of one key and class.
    sizes : ndarray of int32, shape (n_records,)
        About so many bytes each.
    marks : Marks, optional
        Hold-out records, where a column of the source says it.
    groups : Coded, optional
        Groups as text, where records are grouped.
    images : Images, optional
        What was found about the images.
    kept : list of ndarray of bool
        Which records of each batch of the scan these are.
    conform : callable, optional
        Brings a batch's table into other columns first.
    """

    scan: Scan
    roles: Roles
    keys: NDArray[Any]
    labels: Coded
    label_values: pa.Array
    files: NDArray[np.int32]
    variants: NDArray[Any]
    sizes: NDArray[np.int32]
    marks: Marks | None = None
    groups: Coded | None = None
    images: Images | None = None
    kept: list[NDArray[np.bool_]] = field(default_factory=list)
    conform: Conform | None = None

    def forget(self) -> None:
        """Let go of what an index of the records has as well."""
        self.keys, self.variants = self.keys[:0].copy(), self.variants[:0].copy()
        self.labels, self.groups, self.images = Coded.of([]), None, None

    @property
    def n_records(self) -> int:
        """How many records there are."""
        return len(self.files)

    def batches(self) -> Iterator[Batch]:
        """Yield the records in batches, published columns only, categories as plain values."""
        for batch, keep in zip(self.scan.batches(), self.kept, strict=True):
            some = _conformed(batch, self.conform).filter(keep)
            table = self.roles.published_table(some.table)
            yield Batch(table, some.file_index, some.positions)


def find_candidates(
    scan: Scan,
    roles: Roles,
    source: Source,
    *,
    conform: Conform | None = None,
    may_be_empty: bool = False,
    on_progress: Progress | None = None,
) -> Candidates:
    """Go through the records, put what cannot be used into quarantine, and return the others.

    Parameters
    ----------
    scan : Scan
        The records; its quarantine takes more.
    roles : Roles
        What the columns are for.
    source : Source
        ``max_megapixels`` bounds what is decoded.
    conform : callable, optional
        Brings a batch's table into other columns first: those of a hold-out, whose groups may be unknown.
    may_be_empty : bool
        Whether there are other records, so that none of these has to be usable.
    on_progress : callable, optional
        Called with a fraction in [0, 1] and what is being done.

    Raises
    ------
    InputError
        If no image can be used.
    MissingExtraError
        If Pillow is not installed.
    """
    found = _Found(roles, scan.n_records)
    checker = ImageChecker(roles.image, source.max_megapixels) if roles.image else None
    with checker or _Nothing():
        n_done = 0
        for batch in scan.batches():
            n = len(batch.positions)
            batch = _conformed(batch, conform)
            needs_group = conform is None
            found.add(_usable(batch, roles, scan, checker, needs_group=needs_group), n)
            n_done += n
            if on_progress is not None:
                on_progress(n_done / max(1, scan.n_records), f"checked {n_done} records")
    if checker is not None and not may_be_empty:
        checker.refuse_none()
    return found.candidates(scan, None if checker is None else checker.images(), conform)


def _conformed(batch: Batch, conform: Conform | None) -> Batch:
    if conform is None:
        return batch
    return Batch(conform(batch.table), batch.file_index, batch.positions)


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *of: Any) -> None:
        return None


def _usable(
    batch: Batch,
    roles: Roles,
    scan: Scan,
    checker: ImageChecker | None,
    *,
    needs_group: bool,
) -> tuple[Batch, NDArray[np.intp]]:
    """Return the records of a batch that can be used, and which they are."""
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


class _Names:
    """Texts that come in batches, as codes."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._codes: list[NDArray[np.int32]] = []

    def add(self, texts: pa.Array) -> None:
        encoded = texts.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        codes = [self._index.setdefault(name, len(self._index)) for name in names]
        self._codes.append(np.array(codes, dtype=np.int32)[encoded.indices.to_numpy()])

    def coded(self) -> Coded:
        every = [np.zeros(0, dtype=np.int32), *self._codes]
        return Coded.from_names(np.concatenate(every), list(self._index))


class _Found:
    """What is kept of each batch, in arrays that have room for all records."""

    def __init__(self, roles: Roles, n_records: int) -> None:
        self.roles = roles
        self.kept: list[NDArray[np.bool_]] = []
        self.n = 0
        self.keys = np.zeros(n_records, dtype=KEY)
        self.variants = np.zeros(n_records, dtype=KEY if roles.image else np.uint64)
        self.files = np.zeros(n_records, dtype=np.int32)
        self.sizes = np.zeros(n_records, dtype=np.int32)
        self.labels, self.groups = _Names(), _Names()
        self.values: pa.Array | None = None
        self.marks = Marks(roles.marks) if roles.marks else None

    def add(self, usable: tuple[Batch, NDArray[np.intp]], n: int) -> None:
        batch, rows = usable
        keep = np.zeros(n, dtype=bool)
        keep[rows] = True
        self.kept.append(keep)
        table, label = batch.table, self.roles.label
        values = table[label].combine_chunks().unique()
        self.values = (
            values if self.values is None else pa.concat_arrays([self.values, values]).unique()
        )
        if len(rows) == 0:
            return
        published = self.roles.published_table(table)
        some = slice(self.n, self.n + len(rows))
        self.n += len(rows)
        self.keys[some] = record_digests(published, label=label)
        self.variants[some] = record_variants(published, label=label)
        self.sizes[some] = record_bytes(published)
        self.files[some] = batch.file_index
        self.labels.add(label_text(table[label]))
        if self.roles.grouped_by:
            self.groups.add(pa.array(group_names(table[self.roles.grouped_by]), pa.string()))
        if self.marks is not None:
            self.marks.add(table[self.roles.marks])

    def candidates(self, scan: Scan, images: Images | None, conform: Conform | None) -> Candidates:
        kind = plain_schema(scan.schema).field(self.roles.label).type
        return Candidates(
            scan,
            self.roles,
            self.keys[: self.n],
            self.labels.coded(),
            pa.array([], kind) if self.values is None else self.values,
            self.files[: self.n],
            self.variants[: self.n],
            self.sizes[: self.n],
            self.marks,
            self.groups.coded() if self.roles.grouped_by else None,
            images,
            self.kept,
            conform,
        )


def group_names(column: pa.ChunkedArray) -> list[str]:
    """Return the group of each record as text; empty where there is none."""
    return [value or "" for value in plain_array(column).cast(pa.string()).to_pylist()]
