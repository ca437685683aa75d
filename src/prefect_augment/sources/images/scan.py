"""Image files and archives of a source as records; files are read concurrently, for the latency of object stores."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

from prefect_augment.errors import StorageError
from prefect_augment.params import Source
from prefect_augment.schema import SourceFile
from prefect_augment.sources.archives import read_archive, size_of, too_large
from prefect_augment.sources.base import BATCH_BYTES, Rejected, SourceRecords
from prefect_augment.sources.discovery import BROKEN_LINK, Entry, Listing, changed
from prefect_augment.sources.images.annotations import read_labels
from prefect_augment.sources.images.files import (
    ImageFiles,
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
LOOSE_AT_ONCE = 512  # images of a part
ANNOTATIONS = frozenset(
    {".json", ".xml", ".txt", ".yaml", ".yml", ".names", ".cls", ".labels", ".csv", ".jsonl"}
)
MAX_ANNOTATION_BYTES = 1 << 30


def inspect_folder(listing: Listing, source: Source) -> ImageFiles:
    """Read the labels of image files, and none of the images; raises SourceChangedError if a file changed."""
    entries = enumerate(listing.entries, start=1)
    members = list(_in_order(lambda item: _inspect_one(listing, source, *item), entries))
    return choose_records(members, source, read_labels=read_labels)


def read_folder(
    listing: Listing,
    chosen: ImageFiles,
    *,
    wanted_paths: Collection[str] | None = None,
    on_progress: Callable[[float, str], None] | None = None,
) -> Iterator[SourceRecords]:
    """Yield the records of loose image files in batches; ``positions`` count the listing's entries from 1."""

    def is_wanted(position: int) -> bool:
        return wanted_paths is None or listing.entries[position - 1].path in wanted_paths

    records = [m for m in chosen.records if is_wanted(m.position)]
    rejected = [r for r in chosen.rejected if is_wanted(r.position)]
    kept: list[Member] = []
    size = 0
    loaded = _in_order(
        lambda m: m if m.load is None else _read_one(listing, m.path, m.position), records
    )
    for n_read, member in enumerate(loaded, start=1):
        if on_progress is not None and n_read % 500 == 0:
            on_progress(n_read / len(records), f"read {n_read} files")
        if member.reason:
            rejected.append(Rejected(member.position, member.reason, member.path))
            continue
        kept.append(member)
        size += len(member.data)
        if size > BATCH_BYTES:
            yield chosen.batch(kept)
            kept, size = [], 0
    yield replace(chosen.batch(kept), rejected=tuple(rejected), notes=chosen.notes)


def read_images(
    listing: Listing,
    source: Source,
    *,
    wanted_paths: Collection[str] | None,
    part: int,
    n_parts: int,
) -> Iterator[list[bytes]]:
    """Yield the loose files of a part that are images by their names, some together; labels stay unread."""
    named = (
        (path, position)
        for position, entry in enumerate(listing.entries, start=1)
        if is_image_name(path := shown_path(entry.path))
        and (wanted_paths is None or entry.path in wanted_paths)
        and not is_ignored(path)
        and wanted(path, source)
        and entry.etag != BROKEN_LINK
        and not _is_huge(entry, source)
    )
    own = islice(named, part, None, n_parts)
    members = _in_order(lambda item: _read_one(listing, *item), own)
    data = (m.data for m in members if not m.reason)
    while batch := list(islice(data, LOOSE_AT_ONCE)):
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
        return _read_one(listing, path, position)
    return Member(path, position, load=lambda: listing.store.read(entry.path))


def shown_path(path: str) -> str:
    """Return a path as valid Unicode."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _read_one(listing: Listing, path: str, position: int) -> Member:
    """Return a file with its content, or the reason why there is none."""
    entry = listing.entries[position - 1]
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
        raise changed(listing, entry.path)
    return Member(path, position, data)


def _is_huge(entry: Entry, source: Source) -> bool:
    return too_large(entry.n_bytes, source.max_megapixels)


def _is_unchanged(listing: Listing, entry: Entry) -> bool:
    """Check a local file again; objects are replaced as a whole, and another request for each would cost too much."""
    if not listing.store.is_local:
        return True
    status = Path(listing.store.full(entry.path)).stat()
    return f"{status.st_size}-{status.st_mtime_ns}" == entry.etag


def read_archive_records(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
    """Yield the records of one archive; images are spilled until its end, where labels may come."""
    limit = source.max_megapixels
    walk = read_archive(file, name=name, n_bytes=size_of(file), max_megapixels=limit)
    with Workspace() as workspace:
        images = workspace.spill()
        chosen = choose_records(
            list(_spilled(walk, images, source)), source, read_labels=read_labels
        )
        records = {m.position: m for m in chosen.records}
        for table in images:
            kept = [
                replace(records[place], data=data.as_py())
                for place, data in zip(table["position"].to_pylist(), table["data"], strict=True)
                if place in records
            ]
            if kept:
                yield chosen.batch(kept)
        # Annotations that are records all the same, because a layout says so.
        last = chosen.batch([m for m in chosen.records if m.data])
        yield replace(last, rejected=chosen.rejected, notes=chosen.notes)


def _spilled(walk: Iterator[Member], images: Spill, source: Source) -> Iterator[Member]:
    """Yield the members without their content, which is spilled; annotations keep theirs."""
    kept: list[Member] = []
    size = 0

    def flush() -> None:
        positions = pa.array([m.position for m in kept], pa.int64())
        data = pa.array([m.data for m in kept], pa.binary())
        images.append(pa.table({"position": positions, "data": data}))

    for member in walk:
        is_annotation = member.data and ending_of(member.path) in ANNOTATIONS
        if member.reason or is_annotation or is_ignored(member.path):
            yield member
            continue
        kept.append(member)  # an empty file too: it is rejected as a record
        size += len(member.data)
        if size > BATCH_BYTES:
            flush()
            kept, size = [], 0
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
