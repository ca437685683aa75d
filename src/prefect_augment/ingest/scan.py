"""Reading a source once, into batches on local disk, with the origin of each record; for ingest and profile."""

import json
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Bool, Int, Int32
from prefect_augment.errors import EmptyFileError, InputError
from prefect_augment.ingest.quarantine import Batch, Quarantine
from prefect_augment.ingest.schema import (
    UNTYPED_FORMATS,
    one_schema,
    plain_schema,
    refuse_lineage_names,
)
from prefect_augment.params import Source
from prefect_augment.schema import Result
from prefect_augment.shards.base import as_stream
from prefect_augment.shards.image_columns import main_image
from prefect_augment.sources.base import Rejected, SourceRecords, in_batches
from prefect_augment.sources.discovery import Listing, changed, listing_notes, notes_of_files
from prefect_augment.sources.images.columns import image_bytes
from prefect_augment.sources.images.files import ImageFiles
from prefect_augment.sources.images.scan import inspect_folder, read_folder, read_images
from prefect_augment.sources.open import reader_of
from prefect_augment.storage import Stage, read_result
from prefect_augment.storage.spill import Spill, Workspace

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], None]

REST = "\0rest"  # in the metadata of a batch that is staged
FILES_PER_PART = 4  # with fewer, one part may have much more work than another
FILE, POSITION = "\0file", "\0position"  # columns of the spilled tables


def images_of_part(
    listing: Listing, source: Source, *, wanted: Collection[str] | None, part: int, n_parts: int
) -> Iterator[list[bytes]]:
    """Yield the images of a part of a source, some together: own files, or a share of each where there are few."""
    if listing.format == "folder":
        yield from read_images(listing, source, wanted_paths=wanted, part=part, n_parts=n_parts)
        return
    entries = [listing.entries[i] for i in _chosen(listing, wanted)]
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


def _chosen(listing: Listing, wanted: Collection[str] | None) -> list[int]:
    return [i for i, e in enumerate(listing.entries) if wanted is None or e.path in wanted]


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
        chosen = _chosen(listing, wanted)
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
            raise changed(listing, entry.path)
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
    return bytes(as_stream(table, pa.ipc.IpcWriteOptions(compression="lz4")))


def _unpacked(data: bytes) -> SourceRecords:
    table = pa.ipc.open_stream(data).read_all()
    metadata = dict(table.schema.metadata)
    rest = json.loads(metadata.pop(REST.encode()))
    positions = table[POSITION].to_numpy()
    table = table.drop_columns([POSITION]).replace_schema_metadata(metadata or None)
    rejected = tuple(Rejected(**r) for r in rest["rejected"])
    return SourceRecords(table, positions, rejected, tuple(rest["notes"]))


class Scan:
    """All records of a source, or those of its new files, on local disk."""

    def __init__(
        self,
        listing: Listing,
        workspace: Workspace,
        batches: Int32 | None,
        folder: ImageFiles | None,
    ) -> None:
        n = len(listing.entries)
        self.listing = listing  # all files
        self.workspace = workspace
        self.folder = folder  # of loose image files
        self.batch_of_file = np.ones(n, dtype=np.int32) if batches is None else batches
        self.schema = pa.schema([])  # of all files, categories as dictionaries
        self.quarantine = Quarantine([e.path for e in listing.entries])
        self.n_read: Int = np.zeros(n, dtype=np.int64)  # valid records per file
        self.files_read: Bool = np.zeros(n, dtype=bool)
        #: By batch and category column: values in order of appearance.
        self.dictionaries: dict[int, dict[str, list[Any]]] = {}
        self.notes: list[tuple[str, str]] = []  # (note, file), file empty for all
        self._schemas: list[tuple[str, pa.Schema]] = []
        self._spills: list[Spill] = []
        self._spilled: pa.Schema | None = None

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

    def all_notes(self) -> list[str]:
        """Return distinct notes with their files, and those of the listing."""
        of_files = notes_of_files((note, path, 1) for note, path in self.notes)
        return [*of_files, *listing_notes(self.listing)]

    def _read_object(self, index: int, source: Source, parsed: ParsedFiles | None) -> None:
        entry = self.listing.entries[index]
        try:
            with self.listing.open(entry) as file, self._may_be_empty(index):
                staged = None if parsed is None else parsed.of(index)
                if staged is None:
                    read = reader_of(self.listing)
                    staged = in_batches(read(file, name=entry.path, source=source))
                for records in staged:
                    self._take(records, index)
            unchanged = self.listing.is_unchanged(entry)
        except FileNotFoundError:
            unchanged = False
        if not unchanged:
            raise changed(self.listing, entry.path)
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
        path = self.listing.entries[index].path
        if not self.files_read[index]:
            self.files_read[index] = True
            self._schemas.append((path, records.table.schema))
        for r in records.rejected:
            self.quarantine.add(index, r.position, r.reason, r.raw)
        self.notes += [(note, path) for note in records.notes]
        n = records.table.num_rows
        self.n_read[index] += n
        files = np.full(n, index, dtype=np.int32)
        self._put(records.table, files, records.positions, int(self.batch_of_file[index]))

    def _take_loose(self, records: SourceRecords) -> None:
        """Add loose files, each an object of its own so that quarantine names it."""
        entries = self.listing.entries
        if not self._schemas:
            self._schemas.append((self.listing.store.uri, records.table.schema))
        files = (records.positions - 1).astype(np.int32)
        self.n_read += np.bincount(files, minlength=len(entries))
        for r in records.rejected:
            file = r.position - 1
            self.quarantine.add(file, 1, r.reason, f"{entries[file].n_bytes} bytes", path=r.raw)
        self.notes += [(note, "") for note in records.notes]
        batches = self.batch_of_file[files]
        for batch in np.unique(batches).tolist():
            rows = np.flatnonzero(batches == batch)
            some = records.table if len(rows) == len(files) else records.table.take(rows)
            self._put(some, files[rows], np.ones(len(rows), dtype=np.int64), batch)

    def _put(self, table: pa.Table, files: Int32, positions: Int, batch: int) -> None:
        for column in table.schema:
            if pa.types.is_dictionary(column.type):
                self._note_categories(batch, column.name, table.column(column.name))
        if table.num_rows == 0:
            return
        plain = plain_schema(table.schema).remove_metadata()
        if self._spilled is None or self._spilled != plain:
            self._spilled = plain
            self._spills.append(self.workspace.spill())
        table = table.replace_schema_metadata(None).cast(plain)
        table = table.append_column(FILE, pa.array(files))
        self._spills[-1].append(table.append_column(POSITION, pa.array(positions, pa.int64())))

    def _note_categories(self, batch: int, name: str, column: pa.ChunkedArray) -> None:
        """Keep the categories in order of appearance, which matters for ordered ones."""
        known = self.dictionaries.setdefault(batch, {}).setdefault(name, [])
        for chunk in column.chunks:
            values = chunk.dictionary.to_pylist()
            if values != known[: len(values)]:
                seen = set(map(repr, known))
                known += [v for v in values if repr(v) not in seen and v is not None]


def scan(
    listing: Listing,
    source: Source,
    workspace: Workspace,
    *,
    batches: Int32 | None = None,
    wanted: Collection[str] | None = None,
    known: pa.Schema | None = None,
    folder: ImageFiles | None = None,
    parsed: ParsedFiles | None = None,
    on_progress: Progress | None = None,
    has_lineage: bool = False,
) -> Scan:
    """Read a source's files, each once, and keep the records on local disk.

    ``batches`` has each file's batch; the schema is that of the first file of the lowest one. ``wanted`` restricts to
    some files, ``known`` is the schema of the others; with ``has_lineage`` columns may be named like lineage columns.
    Raises SourceChangedError if a file changed since it was listed, SchemaError if columns differ, InputError for no
    records.
    """
    result = Scan(listing, workspace, batches, folder)
    report = on_progress or (lambda fraction, text: None)
    if known is not None:
        result._schemas.append(("the source of earlier versions", known))
    if listing.format == "folder":
        result.folder = folder = folder or inspect_folder(listing, source)
        result.files_read[_chosen(listing, wanted)] = True
        for records in read_folder(listing, folder, wanted_paths=wanted, on_progress=report):
            result._take_loose(records)
    else:
        parsed = parsed if listing.format in UNTYPED_FORMATS else None
        chosen = _chosen(listing, wanted)
        chosen.sort(key=lambda i: (int(result.batch_of_file[i]), listing.entries[i].path))
        sizes = np.cumsum([listing.entries[i].n_bytes for i in chosen])
        for i, done in zip(chosen, sizes.tolist(), strict=True):
            result._read_object(i, source, parsed)
            report(done / (sizes[-1] or 1), f"read {listing.entries[i].path}")
    if not result.n_read.any() and known is None:
        rejected = f" ({len(result.quarantine)} rejected)" if len(result.quarantine) else ""
        notes = "".join(f" {note}." for note, path in result.notes if not path)
        raise InputError(
            f"the source {listing.store.uri} holds no usable record in {len(listing.entries)} files{rejected}.{notes}",
            uri=listing.store.uri,
        )
    files, schemas = zip(*result._schemas, strict=True)
    if not has_lineage:
        refuse_lineage_names(schemas[0], files[0])
    result.schema = one_schema(schemas, files, widen=listing.format in UNTYPED_FORMATS)
    return result
