"""Image files and archives of a source as records.

Files are read concurrently, for the latency of object stores; images stay encoded and nothing is unpacked
to disk.
"""

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

from prefect_augment.errors import SourceChangedError, StorageError
from prefect_augment.params import Source
from prefect_augment.schema import SourceFile
from prefect_augment.sources.archives import read_archive, too_large
from prefect_augment.sources.base import BATCH_BYTES, Rejected, SourceRecords
from prefect_augment.sources.discovery import BROKEN_LINK, Entry, Listing
from prefect_augment.sources.images.annotations import read_labels
from prefect_augment.sources.images.files import (
    Chosen,
    Member,
    choose_records,
    ending_of,
    is_ignored,
    is_image_name,
    wanted,
)
from prefect_augment.sources.images.validation import BadImageError, header_of, looks_like
from prefect_augment.storage import sha256_hex
from prefect_augment.storage.spill import Spill, Workspace

# Small files from an object store wait for the network, not for a processor.
READERS = 16
ANNOTATIONS = frozenset(
    {".json", ".xml", ".txt", ".yaml", ".yml", ".names", ".cls", ".labels", ".csv", ".jsonl"}
)
MAX_ANNOTATION_BYTES = 1 << 30


@dataclass(frozen=True)
class Folder:
    """Loose image files: which of them are records. Positions count the listing's entries from 1."""

    chosen: Chosen

    @property
    def has_boxes(self) -> bool:
        """Whether there are annotations of objects."""
        return self.chosen.labels.objects is not None

    def labels_digest(self, paths: Collection[str]) -> str:
        """Return a hash of the classes of those files that are records."""
        digest = blake2b(digest_size=16)
        for member in self.chosen.records:
            if member.path in paths:
                label = self.chosen.labels.of_path[member.path]
                digest.update(f"{member.path}\0{label}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def inspect_folder(listing: Listing, source: Source) -> Folder:
    """Read the labels of image files, and none of the images; raises SourceChangedError if a file changed."""
    members = list(
        _in_order(
            lambda item: _inspect_one(listing, source, *item),
            enumerate(listing.entries, start=1),
        )
    )
    return Folder(choose_records(members, source, read_labels=read_labels))


def read_folder(
    listing: Listing,
    folder: Folder,
    *,
    wanted_paths: Collection[str] | None = None,
    on_progress: Callable[[float, str], None] | None = None,
) -> Iterator[SourceRecords]:
    """Yield the records of loose image files in batches; ``positions`` count the listing's entries from 1.

    ``wanted_paths`` restricts to some files. Raises SourceChangedError if one is not what was listed.
    """
    chosen = folder.chosen

    def is_wanted(position: int) -> bool:
        return wanted_paths is None or listing.entries[position - 1].path in wanted_paths

    records = [m for m in chosen.records if is_wanted(m.position)]
    rejected = [r for r in chosen.rejected if is_wanted(r.position)]
    kept: list[Member] = []
    data: list[bytes] = []
    size = n_read = 0
    for member in _in_order(lambda m: _loaded(listing, m), records):
        n_read += 1
        if on_progress is not None and n_read % 500 == 0:
            on_progress(n_read / len(records), f"read {n_read} files")
        if member.reason:
            rejected.append(Rejected(member.position, member.reason, member.path))
            continue
        kept.append(member)
        data.append(member.data)
        size += len(member.data)
        if size > BATCH_BYTES:
            yield chosen.batch(kept, data)
            kept, data, size = [], [], 0
    yield replace(chosen.batch(kept, data), rejected=tuple(rejected), notes=chosen.notes)


def read_images(
    listing: Listing,
    source: Source,
    *,
    wanted_paths: Collection[str] | None,
    part: int,
    n_parts: int,
    at_once: int,
) -> Iterator[list[bytes]]:
    """Yield the loose files of a part that are images by their names, ``at_once`` together; labels stay unread."""
    named = (
        Member(path, position)
        for position, entry in enumerate(listing.entries, start=1)
        if is_image_name(path := shown_path(entry.path))
        and (wanted_paths is None or entry.path in wanted_paths)
        and not is_ignored(path)
        and wanted(path, source)
        and entry.etag != BROKEN_LINK
        and not _is_huge(entry, source)
    )
    own = islice(named, part, None, n_parts)
    data = (m.data for m in _in_order(lambda m: _read_one(listing, m), own) if not m.reason)
    while batch := list(islice(data, at_once)):
        yield batch


def _in_order(work: Callable[[Any], Member], items: Iterable[Any]) -> Iterator[Member]:
    """Run ``work`` in threads, a few items ahead, and yield the results in order."""
    waiting = iter(items)
    with ThreadPoolExecutor(READERS) as pool:
        ahead = deque(pool.submit(work, i) for i in islice(waiting, 4 * READERS))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(work, i) for i in islice(waiting, 1))


def _inspect_one(listing: Listing, source: Source, position: int, entry: Entry) -> Member:
    """Read a file that may hold labels; check others by name and size."""
    path = shown_path(entry.path)
    if entry.etag == BROKEN_LINK:
        return Member(path, position, reason=f"unreadable: {BROKEN_LINK}")
    is_annotation = ending_of(path) in ANNOTATIONS
    if not is_annotation and not wanted(path, source):
        return Member(path, position)  # left out by its name: not read
    if entry.n_bytes > MAX_ANNOTATION_BYTES if is_annotation else _is_huge(entry, source):
        return Member(path, position, reason="oversized (more bytes than an image may have)")
    if is_annotation:
        return _read_one(listing, Member(path, position))
    return Member(path, position, load=lambda: listing.store.read(entry.path))


def shown_path(path: str) -> str:
    """Return a path as valid Unicode."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _loaded(listing: Listing, member: Member) -> Member:
    """Return the member with its content, or the reason why there is none."""
    return member if member.load is None else _read_one(listing, member)


def _read_one(listing: Listing, member: Member) -> Member:
    entry = listing.entries[member.position - 1]
    try:
        data = listing.store.read(entry.path)
        unchanged = len(data) == entry.n_bytes and _is_unchanged(listing, entry)
    except FileNotFoundError:
        unchanged = False
    except StorageError as exc:
        if isinstance(exc.__cause__, PermissionError):
            return Member(member.path, member.position, reason="unreadable: no permission")
        raise
    if not unchanged:
        raise SourceChangedError(
            f"{entry.path} changed while it was read; run again when nothing writes to {listing.store.uri}.",
            path=entry.path,
        )
    return Member(member.path, member.position, data)


def _is_huge(entry: Entry, source: Source) -> bool:
    return too_large(entry.n_bytes, source.max_megapixels)


def _is_unchanged(listing: Listing, entry: Entry) -> bool:
    """Check a local file again; on an object store a second request per file would cost too much.

    Objects there are replaced as a whole, and the size has been compared.
    """
    if not listing.store.is_local:
        return True
    status = Path(listing.store.full(entry.path)).stat()
    return f"{status.st_size}-{status.st_mtime_ns}" == entry.etag


def read_archive_records(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
    """Yield the records of one archive; ``positions`` are the numbers of its members.

    Labels may come at the archive's end, so images are spilled until then.
    """
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    walk = read_archive(file, name=name, n_bytes=n_bytes, max_megapixels=source.max_megapixels)
    with Workspace() as workspace:
        images = workspace.spill()
        chosen = choose_records(
            list(_spilled(walk, images, source)), source, read_labels=read_labels
        )
        records = {m.position: m for m in chosen.records}
        for table in images:
            places = table["position"].to_pylist()
            rows = [i for i, place in enumerate(places) if place in records]
            if rows:
                data = [table["data"][i].as_py() for i in rows]
                yield chosen.batch([records[places[i]] for i in rows], data)
        # Annotations that are records all the same, because a layout says so.
        rest = [m for m in chosen.records if m.data]
        last = chosen.batch(rest, [m.data for m in rest])
        yield replace(last, rejected=chosen.rejected, notes=chosen.notes)


def _spilled(walk: Iterator[Member], images: Spill, source: Source) -> Iterator[Member]:
    """Yield the members without their content, which is spilled; annotations keep theirs."""
    positions: list[int] = []
    data: list[bytes] = []
    size = 0

    def flush() -> None:
        images.append(
            pa.table(
                {"position": pa.array(positions, pa.int64()), "data": pa.array(data, pa.binary())}
            )
        )

    for member in walk:
        if member.reason or not member.data or ending_of(member.path) in ANNOTATIONS:
            yield member
            if not member.data and not member.reason and not is_ignored(member.path):
                # An empty file is a record too, and rejected as one.
                positions.append(member.position)
                data.append(b"")
            continue
        positions.append(member.position)
        data.append(member.data)
        size += len(member.data)
        if size > BATCH_BYTES:
            flush()
            positions, data, size = [], [], 0
        yield Member(member.path, member.position, size=_size_of(member.data, source))
    flush()


def _size_of(data: bytes, source: Source) -> tuple[int, int] | None:
    """Return width and height, which boxes in relative coordinates need."""
    if source.format not in ("auto", "yolo") or not looks_like(data):
        return None
    try:
        width, height = header_of(data).size
    except BadImageError:
        return None
    return width, height


def by_folder(files: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
    """Return one entry per folder of loose files, as there may be a hundred thousand files."""
    folders: dict[str, list[SourceFile]] = {}
    for file in files:
        folder = str(PurePosixPath(file.path).parent)
        folders.setdefault(f"{shown_path(folder)}/", []).append(file)
    return tuple(
        SourceFile(
            path=folder,
            n_bytes=sum(max(0, f.n_bytes) for f in inside),
            etag=sha256_hex(repr([(f.path, f.etag) for f in inside]).encode())[:32],
            n_records=sum(f.n_records for f in inside),
            n_quarantined=sum(f.n_quarantined for f in inside),
            batch=max(f.batch for f in inside),
        )
        for folder, inside in sorted(folders.items())
    )
