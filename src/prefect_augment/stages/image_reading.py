"""Image files and archives of a source, read into records.

Files are read side by side, because an object store answers each in its own time; what they hold is
kept encoded. Nothing is unpacked to disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO

from prefect_augment.datatypes import SourceFile
from prefect_augment.errors import SourceChangedError, StorageError
from prefect_augment.params import Source
from prefect_augment.shards.annotations import read_labels
from prefect_augment.shards.archives import read_archive, too_large
from prefect_augment.shards.base import SourceRecords
from prefect_augment.shards.image_files import Member, build_records
from prefect_augment.shards.image_names import ending_of, wanted
from prefect_augment.stages.listing import BROKEN_LINK, Entry, Listing
from prefect_augment.storage import sha256_hex

__all__ = ["by_folder", "read_archive_records", "read_folder"]

# Small files from an object store wait for the network, not for a processor.
READERS = 16
ANNOTATIONS = frozenset(
    {".json", ".xml", ".txt", ".yaml", ".yml", ".names", ".cls", ".labels", ".csv", ".jsonl"}
)
MAX_ANNOTATION_BYTES = 1 << 30


def read_folder(
    listing: Listing, source: Source, *, on_progress: Callable[[float, str], None] | None = None
) -> SourceRecords:
    """Return the records of loose image files; ``positions`` count the listing's entries from 1.

    Raises
    ------
    SourceChangedError
        If a file is not what was listed.
    """
    members: list[Member] = []
    for member in _in_order(
        lambda item: _read_one(listing, source, *item), list(enumerate(listing.entries, start=1))
    ):
        members.append(member)
        if on_progress is not None and len(members) % 500 == 0:
            on_progress(len(members) / len(listing.entries), f"read {len(members)} files")
    return build_records(members, source, read_labels=read_labels)


def _in_order(
    work: Callable[[tuple[int, Entry]], Member], items: Sequence[tuple[int, Entry]]
) -> Iterator[Member]:
    """Do the work in threads, a few ahead, and give the results in order."""
    waiting = iter(items)
    with ThreadPoolExecutor(READERS) as pool:
        ahead: list[Future[Member]] = [pool.submit(work, i) for i in islice(waiting, 4 * READERS)]
        while ahead:
            yield ahead.pop(0).result()
            ahead += [pool.submit(work, i) for i in islice(waiting, 1)]


def _read_one(listing: Listing, source: Source, position: int, entry: Entry) -> Member:
    path = entry.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if entry.etag == BROKEN_LINK:
        return Member(path, position, reason=f"unreadable: {BROKEN_LINK}")
    is_annotation = ending_of(path) in ANNOTATIONS
    if not is_annotation and not wanted(path, source):
        return Member(path, position)  # left out by its name: not read
    if entry.n_bytes > MAX_ANNOTATION_BYTES if is_annotation else _is_huge(entry, source):
        return Member(path, position, reason="oversized (more bytes than an image may have)")
    try:
        data = listing.store.read(entry.path)
        unchanged = len(data) == entry.n_bytes and _is_unchanged(listing, entry)
    except FileNotFoundError:
        unchanged = False
    except StorageError as exc:
        if isinstance(exc.__cause__, PermissionError):
            return Member(path, position, reason="unreadable: no permission")
        raise
    if not unchanged:
        raise SourceChangedError(
            f"{entry.path} changed while it was read; run again when nothing writes to {listing.store.uri}.",
            path=entry.path,
        )
    return Member(path, position, data)


def _is_huge(entry: Entry, source: Source) -> bool:
    return too_large(entry.n_bytes, source.max_megapixels)


def _is_unchanged(listing: Listing, entry: Entry) -> bool:
    """Look once more at a local file; on an object store a second request per file would cost too much.

    There an object is replaced as a whole, and its size has been compared.
    """
    if not listing.store.is_local:
        return True
    status = Path(listing.store.full(entry.path)).stat()
    return f"{status.st_size}-{status.st_mtime_ns}" == entry.etag


def read_archive_records(file: IO[bytes], name: str, source: Source) -> SourceRecords:
    """Return the records of one archive; ``positions`` are the numbers of its members."""
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    members = read_archive(file, name=name, n_bytes=n_bytes, max_megapixels=source.max_megapixels)
    return build_records(members, source, read_labels=read_labels)


def by_folder(files: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
    """Return one fact per folder of loose files: a hundred thousand of them are no reading."""
    folders: dict[str, list[SourceFile]] = {}
    for file in files:
        folder = str(PurePosixPath(file.path).parent)
        shown = folder.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        folders.setdefault(f"{shown}/", []).append(file)
    return tuple(
        SourceFile(
            path=folder,
            n_bytes=sum(max(0, f.n_bytes) for f in inside),
            etag=sha256_hex(repr([(f.path, f.etag) for f in inside]).encode())[:32],
            n_records=sum(f.n_records for f in inside),
            n_quarantined=sum(f.n_quarantined for f in inside),
        )
        for folder, inside in sorted(folders.items())
    )
