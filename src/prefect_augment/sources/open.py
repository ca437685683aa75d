"""The reader of one source object: the registry's readers, archives, and our own shards."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.params import Source
from prefect_augment.registry import FORMATS, load_reader
from prefect_augment.shards import webdataset
from prefect_augment.shards.parquet import LINEAGE, select_columns
from prefect_augment.sources.arrow import read_table
from prefect_augment.sources.base import SourceRecords, guarded, in_batches, numbered
from prefect_augment.sources.discovery import PART, Listing
from prefect_augment.sources.images.columns import as_image_columns, find_image_columns, is_binary
from prefect_augment.sources.images.scan import read_archive_records
from prefect_augment.sources.parquet import read_batches as read_parquet

# An image column is known by its first values; where a file begins with nulls, so much is read ahead.
MAX_AHEAD = 64 << 20
_PUBLISHED_TAR = "a shard of a dataset published by this tool: only its real records are read"


def reader_of(listing: Listing) -> Callable[..., Iterator[SourceRecords]]:
    """Return the reader of the source's objects."""
    if listing.manifest is not None:
        return guarded(_read_published, "a shard of ours")
    if listing.denoised:
        return guarded(_read_denoised, "a shard of ours")
    if listing.format == "archive":
        return guarded(_read_archive, "an archive")
    if listing.table is not None:
        table = listing.table

        def read_stored(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
            return _with_images(read_table(table.open(), name=name))

        return guarded(read_stored, f"a table of {table.title}")
    read = load_reader(listing.format)
    if listing.part:
        read = partial(read, sheet=listing.part)

    def with_images(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
        return _with_images(in_batches(read(file, name=name, source=source)))

    return guarded(with_images, FORMATS[listing.format].title)


def _with_images(batches: Iterator[SourceRecords]) -> Iterator[SourceRecords]:
    """Give image columns their one form; a file's first values tell which they are."""
    ahead: list[SourceRecords] = []
    for batch in batches:
        ahead.append(batch)
        binary = [f.name for f in batch.table.schema if is_binary(f.type)]
        seen = all(any(b.table[n].null_count < len(b.table[n]) for b in ahead) for n in binary)
        if seen or sum(b.table.nbytes for b in ahead) > MAX_AHEAD:
            break
    if not ahead:
        return
    names = find_image_columns(pa.concat_tables([b.table for b in ahead]))
    while ahead:
        batch = ahead.pop(0)
        yield replace(batch, table=as_image_columns(batch.table, names))
    for batch in batches:
        yield replace(batch, table=as_image_columns(batch.table, names))


def _read_archive(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
    """Yield the records of an archive; of a stray shard of ours, the real ones."""
    if not webdataset.is_published_tar(file):
        yield from read_archive_records(file, name=name, source=source)
        return
    notes: tuple[str, ...] = (_PUBLISHED_TAR,)
    for batch in _read_published(file, name=name, source=source):
        yield replace(batch, notes=notes)
        notes = ()


def _read_published(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
    """Yield the real records of a shard of ours, of either format."""
    if webdataset.is_published_tar(file):
        shard = webdataset.WebDatasetShards().open(file)
        batches = numbered(shard.read(groups=[i]) for i in range(len(shard.group_rows)))
    else:
        batches = _with_images(read_parquet(file, name=name, source=source))
    for batch in batches:
        table = batch.table
        is_real = pc.equal(table["aug_origin"], "real")
        names = [name for name in table.column_names if name not in LINEAGE.names]
        real = _without_empty_pandas(select_columns(table.filter(is_real), names))
        yield SourceRecords(real, batch.positions[is_real.to_numpy()])


def _read_denoised(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
    """Yield the real records of ``denoise`` output; the part column stays only as the hold-out column."""
    for batch in _read_published(file, name=name, source=source):
        names = [n for n in batch.table.column_names if n != PART or n == source.holdout_column]
        yield replace(batch, table=select_columns(batch.table, names))


def _without_empty_pandas(table: pa.Table) -> pa.Table:
    """Drop the pandas key that publishing added to a source without one, for the lineage columns alone."""
    metadata = dict(table.schema.metadata or {})
    if b"pandas" in metadata and not json.loads(metadata[b"pandas"]).get("columns"):
        del metadata[b"pandas"]
    return table.replace_schema_metadata(metadata or None)
