"""The source's records as one table, with where each came from.

Shared by ingest, which writes what it finds, and profile, which only says it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.datatypes import SourceFile
from prefect_augment.errors import InputError, SchemaError, SourceChangedError
from prefect_augment.params import Source
from prefect_augment.registry import FORMATS, load_reader
from prefect_augment.shards import webdataset
from prefect_augment.shards.base import Rejected, SourceRecords
from prefect_augment.shards.parquet import LINEAGE, select_columns
from prefect_augment.stages.image_columns import with_image_columns
from prefect_augment.stages.image_reading import read_archive_records, read_folder
from prefect_augment.stages.listing import Entry, Listing, entry_of, list_source

__all__ = [
    "TEXT_FORMATS",
    "Listing",
    "Progress",
    "Quarantined",
    "SourceTable",
    "list_source",
    "read_source",
    "refuse_other_names",
    "wider_type",
]

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
# Columns of our own published and staged records; engines such as DuckDB ignore case.
RESERVED = frozenset(
    [*LINEAGE.names, "content_key", "aug_stratum", "aug_ordinal", "aug_score", "aug_reason"]
)
# Binary values up to this size are kept whole in the quarantine.
MAX_SHOWN_BYTES = 256
# Formats whose types are our own reading.
TEXT_FORMATS = ("csv", "jsonl")
_PUBLISHED_TAR = "a shard of a dataset published by this tool: only its real records are read"


# --- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quarantined:
    """One record that is not used: where it stood, why, and what it was."""

    path: str
    position: int
    reason: str
    record: str


@dataclass(frozen=True)
class SourceTable:
    """All records of a source, in the order of its objects.

    Parameters
    ----------
    table : pyarrow.Table
        The source's columns; the schema and its metadata are the first object's.
    paths : tuple of str
        Names of the objects.
    file_index : ndarray of int64, shape (n_records,)
        Which of ``paths`` each record came from.
    positions : ndarray of int64, shape (n_records,)
        Its row or line there, from 1.
    files : tuple of SourceFile
        Facts per object.
    rejected : tuple of Quarantined
        What could not be read.
    notes : tuple of str
        What was found on the way.
    """

    table: pa.Table
    paths: tuple[str, ...]
    file_index: NDArray[np.int64]
    positions: NDArray[np.int64]
    files: tuple[SourceFile, ...]
    rejected: tuple[Quarantined, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def without(
        self,
        unusable: NDArray[np.bool_],
        reason: str | Sequence[str],
        *,
        details: Sequence[str] = (),
    ) -> SourceTable:
        """Return the records that are usable, the others rejected with the reason.

        Parameters
        ----------
        unusable : ndarray of bool, shape (n_records,)
            Which to reject.
        reason : str or sequence of str
            One for all, or one for each rejected record.
        details : sequence of str, optional
            What more there is to say of each; kept with the record.
        """
        if not unusable.any():
            return self
        out = self.table.filter(pa.array(unusable)).to_pylist()
        rows = np.flatnonzero(unusable)
        reasons = [reason] * len(rows) if isinstance(reason, str) else reason
        said = details or [""] * len(rows)
        rejected = [
            Quarantined(
                self.paths[self.file_index[i]],
                int(self.positions[i]),
                why,
                _as_json({**record, "detail": detail} if detail else record),
            )
            for i, record, why, detail in zip(rows, out, reasons, said, strict=True)
        ]
        keep = ~unusable
        n_out = np.bincount(self.file_index[rows], minlength=len(self.files))
        files = tuple(
            f.model_copy(
                update={
                    "n_records": f.n_records - int(n),
                    "n_quarantined": f.n_quarantined + int(n),
                }
            )
            for f, n in zip(self.files, n_out, strict=True)
        )
        return SourceTable(
            self.table.filter(pa.array(keep)),
            self.paths,
            self.file_index[keep],
            self.positions[keep],
            files,
            (*self.rejected, *rejected),
            self.notes,
        )

    def with_table(self, table: pa.Table) -> SourceTable:
        """Return the same records with other columns."""
        return replace(self, table=table)


def _as_json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, default=_plain_text)


def _plain_text(value: Any) -> str:
    if not isinstance(value, bytes):
        return str(value)
    # An image is found again by its file; a bomb in the quarantine would be one more bomb.
    return value.hex() if len(value) <= MAX_SHOWN_BYTES else f"{len(value)} bytes"


def read_source(
    listing: Listing, source: Source, *, on_progress: Progress | None = None
) -> SourceTable:
    """Return all records of the listed objects as one table.

    Raises
    ------
    SourceChangedError
        If an object is not what was listed when its reading ends.
    SchemaError
        If the objects' columns differ, or one is named like a lineage column.
    InputError
        If there is no record.
    """
    if listing.format == "folder":
        return _of_files(listing, read_folder(listing, source, on_progress=on_progress))
    read = READERS[listing.format] if listing.manifest is None else _read_published
    parts: list[SourceRecords] = []
    n_bytes = sum(e.n_bytes for e in listing.entries) or 1
    done = 0
    for entry in listing.entries:
        try:
            with listing.store.open(entry.path) as file:
                records = read(file, entry.path, source)
            unchanged = entry_of(listing.store, entry.path) == entry
        except FileNotFoundError:
            unchanged = False
        if not unchanged:
            raise SourceChangedError(
                f"{entry.path} changed while it was read; run again when nothing writes to {listing.store.uri}.",
                path=entry.path,
            )
        done += entry.n_bytes
        if on_progress is not None:
            on_progress(done / n_bytes, f"read {entry.path}")
        logger.info(
            "Read %s: %s records, %s rejected.",
            entry.path,
            records.table.num_rows,
            len(records.rejected),
        )
        parts.append(records)
    return _joined(listing, parts)


def _read_table(kind: str, file: IO[bytes], name: str, source: Source) -> SourceRecords:
    """Records of a file of one of the registry's formats."""
    records: SourceRecords = load_reader(kind)(file, name=name, source=source)
    return replace(records, table=with_image_columns(records.table))


def _read_archive(file: IO[bytes], name: str, source: Source) -> SourceRecords:
    """Records of an archive; of a shard of ours outside its dataset, the real ones."""
    if not webdataset.is_published_tar(file):
        return read_archive_records(file, name, source)
    records = _read_published(file, name, source)
    return replace(records, notes=(_PUBLISHED_TAR,))


def _read_published(file: IO[bytes], name: str, source: Source) -> SourceRecords:
    """Real records of a shard of ours, of either format."""
    if not webdataset.is_published_tar(file):
        return _only_real(_read_table("parquet", file, name, source))
    try:
        table = webdataset.WebDatasetShards().open(file).read()
    except pa.ArrowException as exc:
        raise InputError(
            f"{name} cannot be read as a WebDataset shard of ours ({exc}); write it again, or leave it out.",
            path=name,
        ) from exc
    positions = np.arange(1, table.num_rows + 1, dtype=np.int64)
    return _only_real(SourceRecords(table, positions))


READERS: dict[str, Callable[[IO[bytes], str, Source], SourceRecords]] = {
    **{kind: partial(_read_table, kind) for kind in FORMATS},
    "archive": _read_archive,
}


def _of_files(listing: Listing, records: SourceRecords) -> SourceTable:
    """Loose files as a source: each is an object of its own, so that quarantine names it."""
    n_rejected = len(records.rejected)
    if records.table.num_rows == 0:
        raise InputError(_no_record(listing, n_rejected, records.notes), uri=listing.store.uri)
    entries = listing.entries
    file_index = records.positions - 1
    n_records = np.bincount(file_index, minlength=len(entries))
    n_quarantined = np.bincount([r.position - 1 for r in records.rejected], minlength=len(entries))
    loops = f"{listing.n_loops} links that lead back into a folder above them were not followed"
    return SourceTable(
        table=records.table,
        paths=tuple(e.path for e in entries),
        file_index=file_index,
        positions=np.ones(records.table.num_rows, dtype=np.int64),
        files=tuple(
            SourceFile(path=e.path, n_bytes=e.n_bytes, etag=e.etag, n_records=n, n_quarantined=q)
            for e, n, q in zip(entries, n_records.tolist(), n_quarantined.tolist(), strict=True)
        ),
        rejected=tuple(
            Quarantined(r.raw, 1, r.reason, f"{entries[r.position - 1].n_bytes} bytes")
            for r in records.rejected
        ),
        notes=(*records.notes, *([loops] if listing.n_loops else ())),
    )


def _no_record(listing: Listing, n_rejected: int, notes: Sequence[str] = ()) -> str:
    found = f"the source {listing.store.uri} holds no usable record in {len(listing.entries)} files"
    rejected = f" ({n_rejected} rejected)." if n_rejected else "."
    return found + rejected + "".join(f" {note}." for note in notes)


def _only_real(records: SourceRecords) -> SourceRecords:
    """Real records of a dataset of ours, as its source had them."""
    table = records.table
    is_real = pc.equal(table["aug_origin"], "real")
    names = [name for name in table.column_names if name not in LINEAGE.names]
    real = _without_empty_pandas(select_columns(table.filter(is_real), names))
    return SourceRecords(real, records.positions[is_real.to_numpy()])


def _without_empty_pandas(table: pa.Table) -> pa.Table:
    """Drop the pandas key that publishing added to a source without one, for the lineage columns alone."""
    metadata = dict(table.schema.metadata or {})
    if b"pandas" in metadata and not json.loads(metadata[b"pandas"]).get("columns"):
        del metadata[b"pandas"]
    return table.replace_schema_metadata(metadata or None)


def _joined(listing: Listing, parts: Sequence[SourceRecords]) -> SourceTable:
    paths = [e.path for e in listing.entries]
    _refuse_lineage_names(parts[0].table, paths[0])
    tables = _with_one_schema([p.table for p in parts], paths, widen=listing.format in TEXT_FORMATS)
    table = pa.concat_tables(tables)
    n_rejected = sum(len(p.rejected) for p in parts)
    if table.num_rows == 0:
        raise InputError(_no_record(listing, n_rejected), uri=listing.store.uri)
    return SourceTable(
        table=table,
        paths=tuple(paths),
        file_index=np.repeat(np.arange(len(parts)), [p.table.num_rows for p in parts]),
        positions=np.concatenate([p.positions for p in parts]),
        files=tuple(_file(e, p) for e, p in zip(listing.entries, parts, strict=True)),
        rejected=tuple(
            _quarantined(path, r) for path, p in zip(paths, parts, strict=True) for r in p.rejected
        ),
        notes=_notes(listing, parts),
    )


def _file(entry: Entry, records: SourceRecords) -> SourceFile:
    return SourceFile(
        path=entry.path,
        n_bytes=entry.n_bytes,
        etag=entry.etag,
        n_records=records.table.num_rows,
        n_quarantined=len(records.rejected),
    )


def _quarantined(path: str, rejected: Rejected) -> Quarantined:
    return Quarantined(path, rejected.position, rejected.reason, rejected.raw)


def _notes(listing: Listing, parts: Sequence[SourceRecords]) -> tuple[str, ...]:
    """Notes of the files, each once, and what was passed over."""
    of: dict[str, list[str]] = {}
    for entry, records in zip(listing.entries, parts, strict=True):
        for note in records.notes:
            of.setdefault(note, []).append(entry.path)
    notes = [
        f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: {note}"
        for note, paths in of.items()
    ]
    notes += listing.notes
    if listing.n_ignored:
        notes.append(f"{listing.n_ignored} files of other formats were passed over")
    if listing.manifest is not None:
        notes.append(
            f"the source is version {listing.manifest.version} of a dataset published by this tool: only its real "
            "records are read, with its split"
        )
    return tuple(notes)


# --- one schema -------------------------------------------------------------------------------


def _refuse_lineage_names(table: pa.Table, path: str) -> None:
    taken = [name for name in table.column_names if name.casefold() in RESERVED]
    if taken:
        raise SchemaError(
            f"{path} has columns named like lineage columns: {', '.join(map(repr, taken))}; rename them in the source. "
            "(A dataset published by this tool can be a source as a whole: give its folder.)",
            columns=taken,
        )


def _with_one_schema(
    tables: Sequence[pa.Table], paths: Sequence[str], *, widen: bool
) -> list[pa.Table]:
    """Return the tables with the first one's columns, in its order; refuse other names or types.

    With ``widen`` (text, whose types are our own reading) types give way: null to anything, whole
    numbers to numbers, dates to timestamps.
    """
    first = tables[0]
    if all(table.schema == first.schema for table in tables):
        return list(tables)
    for table, path in zip(tables[1:], paths[1:], strict=True):
        refuse_other_names(table, path, like=first, where=paths[0])
    fields = []
    for field_ in first.schema:
        found = [table.schema.field(field_.name) for table in tables]
        kind = _common_type([f.type for f in found], field_.name, paths, widen=widen)
        fields.append(field_.with_type(kind).with_nullable(any(f.nullable for f in found)))
    schema = pa.schema(fields, metadata=first.schema.metadata)
    return [table.select(first.column_names).cast(schema) for table in tables]


def refuse_other_names(table: pa.Table, path: str, *, like: pa.Table, where: str) -> None:
    """Refuse a table that lacks a column of another, or has one more."""
    missing = [name for name in like.column_names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in like.column_names]
    if missing or extra:
        what = (
            f"lacks column {missing[0]!r}, which {where} has"
            if missing
            else f"has column {extra[0]!r}, which {where} has not"
        )
        raise SchemaError(
            f"{path} {what}; expected {like.column_names}, found {table.column_names}.",
            path=path,
            column=(missing or extra)[0],
        )


def _common_type(
    kinds: Sequence[pa.DataType], name: str, paths: Sequence[str], *, widen: bool
) -> pa.DataType:
    common = kinds[0]
    for kind, path in zip(kinds[1:], paths[1:], strict=True):
        if kind == common:
            continue
        wider = wider_type(common, kind) if widen else _same_dictionary(common, kind)
        if wider is None:
            raise SchemaError(
                f"column {name!r} is {kind} in {path} and {common} in {paths[0]}; files of one source have the "
                "same types. Convert one of them.",
                path=path,
                column=name,
                expected=str(common),
                found=str(kind),
            )
        common = wider
    return common


def _same_dictionary(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Dictionaries whose codes differ in width only."""
    t = pa.types
    if not (t.is_dictionary(one) and t.is_dictionary(other)):
        return None
    if (one.value_type, one.ordered) != (other.value_type, other.ordered):
        return None
    return one if one.index_type.bit_width >= other.index_type.bit_width else other


def wider_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds both as a CSV file would spell them, or None."""
    t = pa.types
    for a, b in ((one, other), (other, one)):
        if t.is_null(a) or (t.is_int64(a) and t.is_float64(b)):
            return b
        if t.is_date(a) and t.is_timestamp(b) and b.tz is None:
            return b
        if t.is_timestamp(a) and t.is_timestamp(b) and a.tz == b.tz and a.unit == "us":
            return b
    return None
