"""Reading a source once, into batches on local disk, with the origin of each record; for ingest and profile.

A format is a :class:`prefect_augment.sources.base.SourceReader` in the registry's ``FORMATS``; its file
endings are in :mod:`prefect_augment.sources.discovery`.
"""

import json
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Bool, Int, Int32
from prefect_augment.errors import EmptyFileError, InputError, SourceChangedError
from prefect_augment.ingest.quarantine import Batch, Quarantine
from prefect_augment.ingest.schema import (
    UNTYPED_FORMATS,
    one_schema,
    plain_schema,
    refuse_lineage_names,
)
from prefect_augment.params import Source
from prefect_augment.schema import Result
from prefect_augment.shards.image_columns import main_image
from prefect_augment.sources.base import Rejected, SourceRecords, in_batches
from prefect_augment.sources.discovery import Entry, Listing, listing_notes, notes_of_files
from prefect_augment.sources.images.columns import image_bytes
from prefect_augment.sources.images.scan import Folder, inspect_folder, read_folder, read_images
from prefect_augment.sources.open import reader_of
from prefect_augment.storage import Stage, read_result
from prefect_augment.storage.spill import Spill, Workspace

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
Dictionaries = dict[int, dict[str, list[Any]]]

REST = "\0rest"  # in the metadata of a batch that is staged
LOOSE_AT_ONCE = 512  # image files
FILES_PER_PART = 4  # with fewer, one part may have much more work than another
FILE, POSITION = "\0file", "\0position"  # columns of the spilled tables


@dataclass
class Scan:
    """All records of a source, or those of its new files, on local disk."""

    listing: Listing  # all files
    workspace: Workspace
    schema: pa.Schema  # of all files, categories as dictionaries
    quarantine: Quarantine
    n_read: Int  # (n_files,) valid records
    files_read: Bool  # (n_files,) which files were read
    dictionaries: Dictionaries  # batch -> category column -> values in order of appearance
    notes: list[tuple[str, str]]  # (note, file), file empty for all
    folder: Folder | None = None  # of loose image files
    _spills: list[Spill] = field(default_factory=list)

    @property
    def n_records(self) -> int:
        """Valid records."""
        return int(self.n_read.sum())

    def batches(self) -> Iterator[Batch]:
        """Yield the records in the order they were read."""
        plain = plain_schema(self.schema)
        for spill in self._spills:
            for table in spill:
                file_index = table[FILE].to_numpy().astype(np.int32)
                positions = table[POSITION].to_numpy()
                yield Batch(table.select(plain.names).cast(plain), file_index, positions)

    def table(self) -> pa.Table:
        """Return all records at once."""
        plain = plain_schema(self.schema)
        tables = [plain.empty_table(), *(batch.table for batch in self.batches())]
        return pa.concat_tables(tables).cast(self.schema)

    def all_notes(self) -> list[str]:
        """Return distinct notes with their files, and those of the listing."""
        of_files = notes_of_files((note, path, 1) for note, path in self.notes)
        return [*of_files, *listing_notes(self.listing)]

    def clear(self) -> None:
        """Drop the records."""
        for spill in self._spills:
            spill.clear()


# --- parts, which other tasks do before ---------------------------------------------------------


def images_of_part(
    listing: Listing,
    source: Source,
    *,
    wanted: Collection[str] | None,
    part: int,
    n_parts: int,
) -> Iterator[list[bytes]]:
    """Yield the images of a part of a source, some together, without labels and checks; none of a table.

    A part has files of its own, or a share of each file where there are few.
    """
    if listing.format == "folder":
        yield from read_images(
            listing, source, wanted_paths=wanted, part=part, n_parts=n_parts, at_once=LOOSE_AT_ONCE
        )
        return
    entries = [e for e in listing.entries if wanted is None or e.path in wanted]
    has_files = len(entries) >= FILES_PER_PART * n_parts
    read = reader_of(listing)
    for entry in entries[part::n_parts] if has_files else entries:
        # What is wrong with a file, the scan says.
        with suppress(InputError, FileNotFoundError), listing.open(entry) as file:
            for records in in_batches(read(file, name=entry.path, source=source)):
                if not (image := main_image(records.table.schema)):
                    return
                column = records.table[image]
                if not has_files:
                    start, stop = (len(column) * i // n_parts for i in (part, part + 1))
                    column = column.slice(start, stop - start)
                if len(column):
                    yield list(image_bytes(column))


class _Parsed(Result):
    """The receipt of one file whose records are staged."""

    paths: tuple[str, ...]  # of the batches


@dataclass(frozen=True)
class ParsedFiles:
    """The records of text files, which other tasks parse and stage; typed formats are read as fast as staged ones."""

    stage: Stage
    name: str  # of the listing, within the stage

    def keep(
        self,
        listing: Listing,
        source: Source,
        *,
        wanted: Collection[str] | None,
        part: int,
        n_parts: int,
    ) -> int:
        """Parse and stage the files of a part, unless they are staged; return how many files there are."""
        entries = listing.entries
        chosen = [i for i, e in enumerate(entries) if wanted is None or e.path in wanted]
        if len(chosen) < 2:  # the other parts would wait for this one
            return 0
        # The largest first, so that no part has all of them.
        own = sorted(chosen, key=lambda i: -entries[i].n_bytes)[part::n_parts]
        for i in own:
            with suppress(InputError, FileNotFoundError):  # what is wrong, the scan says
                self.stage.item(self._item(i), _Parsed, partial(self._parse, listing, source, i))
        return len(own)

    def _item(self, index: int) -> str:
        return f"parsed-{self.name}-{index:06d}"

    def _parse(self, listing: Listing, source: Source, index: int) -> _Parsed:
        entry = listing.entries[index]
        paths: list[str] = []
        with listing.open(entry) as file:
            for records in in_batches(reader_of(listing)(file, name=entry.path, source=source)):
                paths.append(f"{self.stage.prefix}/{self._item(index)}/{len(paths):05d}.arrow")
                self.stage.store.put(paths[-1], _packed(records))
        if not listing.is_unchanged(entry):
            raise _changed(listing, entry)
        return _Parsed(paths=tuple(paths))

    def of(self, index: int) -> Iterator[SourceRecords] | None:
        """Return the records of a file of the listing, or None where they are not staged."""
        store, path = self.stage.store, f"{self.stage.prefix}/{self._item(index)}.json"
        parsed = read_result(store, path, _Parsed) if path in self._there else None
        return None if parsed is None else map(_unpacked, map(store.read, parsed.paths))

    @cached_property
    def _there(self) -> frozenset[str]:
        """One request instead of one a file."""
        return frozenset(self.stage.store.list(self.stage.prefix))


def _packed(records: SourceRecords) -> bytes:
    table = records.table.append_column(POSITION, pa.array(records.positions, pa.int64()))
    rest = {"rejected": [vars(r) for r in records.rejected], "notes": records.notes}
    metadata = {**(table.schema.metadata or {}), REST: json.dumps(rest)}
    table = table.replace_schema_metadata(metadata)
    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _unpacked(data: bytes) -> SourceRecords:
    table = pa.ipc.open_stream(data).read_all()
    metadata = dict(table.schema.metadata)
    rest = json.loads(metadata.pop(REST.encode()))
    positions = table[POSITION].to_numpy()
    table = table.drop_columns([POSITION]).replace_schema_metadata(metadata or None)
    rejected = tuple(Rejected(**r) for r in rest["rejected"])
    return SourceRecords(table, positions, rejected, tuple(rest["notes"]))


def _changed(listing: Listing, entry: Entry) -> SourceChangedError:
    return SourceChangedError(
        f"{entry.path} changed while it was read; run again when nothing writes to {listing.store.uri}.",
        path=entry.path,
    )


# --- the whole ------------------------------------------------------------------------------------


def scan(
    listing: Listing,
    source: Source,
    workspace: Workspace,
    *,
    batches: Int32 | None = None,
    wanted: Collection[str] | None = None,
    known: pa.Schema | None = None,
    folder: Folder | None = None,
    parsed: ParsedFiles | None = None,
    on_progress: Progress | None = None,
    has_lineage: bool = False,
) -> Scan:
    """Read a source's files, each once, and keep the records on local disk.

    ``batches`` has each file's batch; the schema is that of the first file of the lowest one. ``wanted``
    restricts to some files, ``known`` is the schema of the others. ``folder`` describes loose image
    files; ``parsed`` has records that are staged; with ``has_lineage`` columns may be named like lineage
    columns. Raises SourceChangedError if a file changed since it was listed, SchemaError if columns differ,
    InputError for no records.
    """
    numbers = np.ones(len(listing.entries), dtype=np.int32) if batches is None else batches
    if listing.format == "folder":
        folder = folder or inspect_folder(listing, source)
    scanner = _Scanner(listing, source, workspace, numbers, folder, parsed, on_progress)
    return scanner.run(wanted, known, has_lineage=has_lineage)


class _Scanner:
    """One scan in progress."""

    def __init__(
        self,
        listing: Listing,
        source: Source,
        workspace: Workspace,
        numbers: Int32,
        folder: Folder | None,
        parsed: ParsedFiles | None,
        on_progress: Progress | None,
    ) -> None:
        self.parsed = parsed if listing.format in UNTYPED_FORMATS else None
        self.listing, self.source, self.workspace, self.folder = listing, source, workspace, folder
        self.numbers = numbers
        self.report = on_progress or (lambda fraction, text: None)
        n = len(listing.entries)
        self.quarantine = Quarantine([e.path for e in listing.entries])
        self.n_read = np.zeros(n, dtype=np.int64)
        self.files_read = np.zeros(n, dtype=bool)
        self.schemas: list[tuple[str, pa.Schema]] = []
        self.spills: list[Spill] = []
        self.spilled: pa.Schema | None = None
        self.dictionaries: Dictionaries = {}
        self.notes: list[tuple[str, str]] = []

    def run(
        self, wanted: Collection[str] | None, known: pa.Schema | None, *, has_lineage: bool
    ) -> Scan:
        if known is not None:
            self.schemas.append(("the source of earlier versions", known))
        if self.folder is not None:
            self._read_folder(self.folder, wanted)
        else:
            self._read_objects(wanted)
        listing = self.listing
        if not self.n_read.any() and known is None:
            raise InputError(self._no_record(), uri=listing.store.uri)
        if not has_lineage:
            refuse_lineage_names(self.schemas[0][1], self.schemas[0][0])
        schema = one_schema(
            [schema for _, schema in self.schemas],
            [path for path, _ in self.schemas],
            widen=listing.format in UNTYPED_FORMATS,
        )
        return Scan(
            listing,
            self.workspace,
            schema,
            self.quarantine,
            self.n_read,
            self.files_read,
            self.dictionaries,
            self.notes,
            self.folder,
            self.spills,
        )

    def _read_objects(self, wanted: Collection[str] | None) -> None:
        entries = self.listing.entries
        chosen = [i for i, e in enumerate(entries) if wanted is None or e.path in wanted]
        chosen.sort(key=lambda i: (int(self.numbers[i]), entries[i].path))
        n_bytes = sum(entries[i].n_bytes for i in chosen) or 1
        done = 0
        for i in chosen:
            self._read_object(i, entries[i])
            done += entries[i].n_bytes
            self.report(done / n_bytes, f"read {entries[i].path}")

    def _read_object(self, index: int, entry: Entry) -> None:
        try:
            with self.listing.open(entry) as file, self._may_be_empty(index):
                staged = None if self.parsed is None else self.parsed.of(index)
                if staged is None:
                    read = reader_of(self.listing)
                    staged = in_batches(read(file, name=entry.path, source=self.source))
                for records in staged:
                    self._take(records, index)
            unchanged = self.listing.is_unchanged(entry)
        except FileNotFoundError:
            unchanged = False
        if not unchanged:
            raise _changed(self.listing, entry)
        logger.info(
            "Read %s: %s records, %s rejected.",
            entry.path,
            self.n_read[index],
            self.quarantine.by_file[index],
        )

    @contextmanager
    def _may_be_empty(self, index: int) -> Iterator[None]:
        """Accept a file without records, unless the source has only this one."""
        entry = self.listing.entries[index]
        try:
            yield
        except InputError as exc:
            is_empty = isinstance(exc, EmptyFileError) or entry.n_bytes == 0
            if len(self.listing.entries) == 1 or not is_empty or self.files_read[index]:
                raise
            self.files_read[index] = True
            self.notes.append(("holds no records and is skipped", entry.path))

    def _take(self, records: SourceRecords, index: int) -> None:
        """Add a batch of one file."""
        path = self.listing.entries[index].path
        if not self.files_read[index]:
            self.files_read[index] = True
            self.schemas.append((path, records.table.schema))
        for r in records.rejected:
            self.quarantine.add(index, r.position, r.reason, r.raw)
        self.notes += [(note, path) for note in records.notes]
        self.n_read[index] += records.table.num_rows
        self._put(
            records.table,
            np.full(records.table.num_rows, index, dtype=np.int32),
            records.positions,
            self.numbers[index],
        )

    def _read_folder(self, folder: Folder, wanted: Collection[str] | None) -> None:
        """Add loose files, each an object of its own so that quarantine names it."""
        entries = self.listing.entries
        for i, entry in enumerate(entries):
            self.files_read[i] = wanted is None or entry.path in wanted
        for records in read_folder(
            self.listing, folder, wanted_paths=wanted, on_progress=self.report
        ):
            if not self.schemas:
                self.schemas.append((self.listing.store.uri, records.table.schema))
            files = (records.positions - 1).astype(np.int32)
            self.n_read += np.bincount(files, minlength=len(entries))
            for r in records.rejected:
                file = r.position - 1
                raw = f"{entries[file].n_bytes} bytes"
                self.quarantine.add(file, 1, r.reason, raw, path=r.raw)
            self.notes += [(note, "") for note in records.notes]
            for number in np.unique(self.numbers[files]):
                rows = np.flatnonzero(self.numbers[files] == number)
                some = records.table if len(rows) == len(files) else records.table.take(rows)
                self._put(some, files[rows], np.ones(len(rows), dtype=np.int64), number)

    def _put(
        self,
        table: pa.Table,
        files: Int32,
        positions: Int,
        number: np.int32,
    ) -> None:
        for field_ in table.schema:
            if pa.types.is_dictionary(field_.type):
                self._note_categories(int(number), field_.name, table.column(field_.name))
        if table.num_rows == 0:
            return
        plain = plain_schema(table.schema).remove_metadata()
        if self.spilled is None or self.spilled != plain:
            self.spilled = plain
            self.spills.append(self.workspace.spill())
        table = table.replace_schema_metadata(None).cast(plain)
        table = table.append_column(FILE, pa.array(files)).append_column(
            POSITION, pa.array(positions, pa.int64())
        )
        self.spills[-1].append(table)

    def _note_categories(self, number: int, name: str, column: pa.ChunkedArray) -> None:
        """Keep the categories in order of appearance, which matters for ordered ones."""
        known = self.dictionaries.setdefault(number, {}).setdefault(name, [])
        for chunk in column.chunks:
            values = chunk.dictionary.to_pylist()
            if values != known[: len(values)]:
                seen = set(map(repr, known))
                known += [v for v in values if repr(v) not in seen and v is not None]

    def _no_record(self) -> str:
        n_rejected = len(self.quarantine)
        message = f"the source {self.listing.store.uri} holds no usable record in {len(self.listing.entries)} files"
        rejected = f" ({n_rejected} rejected)." if n_rejected else "."
        notes = [note for note, path in self.notes if not path]
        return message + rejected + "".join(f" {note}." for note in notes)
