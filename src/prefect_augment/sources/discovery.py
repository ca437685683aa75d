"""The files at a source's URI: one object, a folder, a glob, one of our datasets, or ``denoise`` output.

Tables are objects of one registered format, or one table of a database or table format. Image files are listed one
by one, archives as a whole.
"""

import errno
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import fsspec
from pydantic import ValidationError

from prefect_augment.errors import InputError, SourceChangedError, StorageError
from prefect_augment.params import Source
from prefect_augment.registry import FORMATS
from prefect_augment.schema import INDEX, LatentInfo, Manifest, ShardInfo
from prefect_augment.sources.archives import ARCHIVE_ENDINGS
from prefect_augment.sources.base import StoredTable, untrusted
from prefect_augment.sources.hf_layout import CARD, choose_files
from prefect_augment.sources.images.files import is_ignored, is_image_name, match_segments
from prefect_augment.sources.other_formats import name_others
from prefect_augment.sources.tables import SCHEMES, database_kind, find_table, query_table
from prefect_augment.storage import Store, latest_version, open_store, read_manifest

Format = Literal["parquet", "csv", "jsonl", "arrow", "excel", "folder", "archive", "table"]
# Values of source.format that say how image files get their labels.
LAYOUTS = ("folder", "webdataset", "coco", "voc", "yolo")

ENDINGS: dict[str, Format] = {
    **{ending: cast(Format, kind) for kind, entry in FORMATS.items() for ending in entry.endings},
    **dict.fromkeys(ARCHIVE_ENDINGS, "archive"),
}
MAGIC = "*?["
#: Etag of a name that links to nothing.
BROKEN_LINK = "broken link"


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a source as it was listed."""

    path: str
    n_bytes: int
    etag: str


@dataclass(frozen=True)
class Listing:
    """The objects of a source, sorted by path."""

    store: Store  # their folder
    entries: tuple[Entry, ...]  # paths relative to the store's root
    format: Format  # one for all; folder for image files
    manifest: Manifest | None = None  # of a dataset that we published
    n_ignored: int = 0  # objects of other formats
    n_loops: int = 0  # links to a folder above them; not followed
    notes: tuple[str, ...] = ()  # how the files were chosen
    denoised: tuple[ShardInfo, ...] = ()  # what denoise left
    table: StoredTable | None = None  # of a database, or of Delta, Iceberg or Lance
    part: str = ""  # what the URI names behind a #: the sheet of a workbook

    def open(self, entry: Entry) -> AbstractContextManager[IO[bytes]]:
        """Open an object of the listing; a table is opened by its reader."""
        return self.store.open(entry.path) if self.table is None else io.BytesIO()

    def is_unchanged(self, entry: Entry) -> bool:
        """Tell whether an object is still as it was listed; FileNotFoundError if it is gone."""
        return self.table is not None or entry_of(self.store, entry.path) == entry

    @property
    def identity(self) -> list[list[Any]]:
        """What identifies the content without reading it: paths, sizes, etags (digests for our own files)."""
        ours = self.manifest.shards if self.manifest else self.denoised
        sha256 = {s.path: s.sha256 for s in ours}
        return [[e.path, e.n_bytes, sha256.get(e.path, e.etag)] for e in self.entries]


def list_source(uri: str, *, requested: str, options: dict[str, Any] | None) -> Listing:
    """Return the objects at ``uri``: one object, all below a folder, or the matches of a glob.

    Hidden names (for tables, also ones with an underscore) and files of other formats are skipped; ``auto``
    takes the format of most files. A folder with our manifest is read as its newest version, one left by
    ``denoise`` through its index. Raises InputError if there is nothing, or formats are mixed.
    """
    uri, part = _split(uri, options)
    if database := database_kind(uri):
        nowhere = Store(uri=uri, fs=fsspec.filesystem("memory"), root="")
        return _one_table(nowhere, query_table(uri, database, part))
    objects = _find(uri, options)
    store, paths = objects.store, list(objects.entries)
    if requested == "auto" and not objects.is_exact and not objects.is_glob:
        table = find_table(store, paths, part, options or {})
        if table is not None:
            return _one_table(store, table)
    if not objects.is_exact and (ours := _ours(store)) is not None:
        return ours
    notes: tuple[str, ...] = ()
    if not objects.is_exact and not objects.is_glob:
        with untrusted(f"{uri}/{CARD}", "a dataset card"):
            if (chosen := choose_files(paths, store)) is not None:
                paths, notes = chosen
    source_format = _chosen_format(paths, requested, is_exact=objects.is_exact)
    if source_format == "folder":
        return _image_files(objects)
    if not objects.is_exact:
        hidden = "." if source_format == "archive" else "._"
        paths = [p for p in paths if not any(segment[0] in hidden for segment in p.split("/"))]
    matching = paths
    if not (objects.is_exact and requested in FORMATS):
        matching = [
            p
            for p in paths
            if _family(p) == source_format and requested in ("auto", *LAYOUTS, _format(p))
        ]
    if not matching:
        raise InputError(_nothing(uri, requested, paths), uri=uri)
    # One format for all.
    formats = Counter(requested if requested in FORMATS else _format(p) or "" for p in matching)
    if len(formats) > 1:
        held = [f"{formats[kind]} {FORMATS[kind].title}" for kind in FORMATS if formats[kind]]
        raise InputError(
            f"{uri} holds {' and '.join(held)} files; a source has one format. "
            "Say which with source.format, or give a glob such as *.parquet.",
            uri=uri,
        )
    entries = tuple(entry_of(store, p) for p in sorted(matching))
    one = cast(Format, next(iter(formats)))
    if part and one != "excel":
        raise InputError(
            f"{uri} holds {FORMATS[one].title} files, which have no parts; leave out the # and {part!r}.",
            uri=uri,
        )
    return Listing(store, entries, one, None, len(paths) - len(matching), notes=notes, part=part)


def _split(uri: str, options: dict[str, Any] | None) -> tuple[str, str]:
    """Return a location, and what it names behind a #: a table, a query, a sheet, a snapshot."""
    base, sign, part = uri.partition("#")
    if not sign or uri.partition("://")[0] in SCHEMES:
        return base, part
    whole, before = open_store(uri, options=options), open_store(base, options=options)
    # Files may have a # in their names.
    is_split = not whole.root_type() and before.root_type()
    return (base, part) if is_split else (uri, "")


def _one_table(store: Store, table: StoredTable) -> Listing:
    entry = Entry(table.name, table.n_bytes, table.identity)
    return Listing(store, (entry,), "table", table=table)


def changed(listing: Listing, path: str) -> SourceChangedError:
    """Return the error for an object that is not as it was listed."""
    return SourceChangedError(
        f"{path} changed while it was read; run again when nothing writes to {listing.store.uri}.",
        path=path,
    )


def notes_of_files(notes: Iterable[tuple[str, str, int]]) -> list[str]:
    """Return distinct notes of (note, file, number of files), each with the first file; no file stands for all."""
    of: dict[str, tuple[str, int]] = {}
    for note, path, n in notes:
        first, count = of.get(note, (path, 0))
        of[note] = (first, count + n)
    return [
        f"{path}{f' and {n - 1} more' if n > 1 else ''}: {note}" if path else note
        for note, (path, n) in of.items()
    ]


def listing_notes(listing: Listing) -> list[str]:
    """Return the notes on a listing itself."""
    notes = [*listing.notes]
    if listing.n_loops:
        notes.append(
            f"{listing.n_loops} links that lead back into a folder above them were not followed"
        )
    if listing.n_ignored:
        notes.append(f"{listing.n_ignored} files of other formats were skipped")
    if listing.manifest is not None:
        notes.append(
            f"the source is version {listing.manifest.version} of a dataset published by this tool: only its real "
            "records are read, with its split"
        )
    if listing.denoised:
        notes.append(
            "the source was denoised by this tool: its real records are read, with their hold-out"
        )
    return notes


def _chosen_format(paths: list[str], requested: str, *, is_exact: bool) -> str:
    """Return ``table``, ``archive`` or ``folder``: the requested one, or that of most files."""
    if requested in FORMATS:
        return "table"
    count = Counter(_family(p) for p in paths if is_exact or not is_ignored(p))
    if requested in LAYOUTS:
        return "archive" if count["archive"] > count["folder"] else "folder"
    return max(("table", "archive", "folder"), key=lambda family: count[family])


def _family(path: str) -> str:
    kind = _format(path)
    if kind is None:
        return "folder" if is_image_name(path) else "other"
    return "archive" if kind == "archive" else "table"


def _nothing(uri: str, requested: str, paths: list[str]) -> str:
    endings = [entry.endings[0] for entry in FORMATS.values()]
    wanted = f"{', '.join(endings[:-1])} or {endings[-1]}" if requested == "auto" else requested
    images = ", and no images," if requested == "auto" else ""
    what = name_others(paths)
    if not what:
        advice = ", or say source.format" if paths and requested == "auto" else ""
        other = f"{len(paths)} other file{'s' * (len(paths) > 1)}" if paths else "nothing"
        what = f"{other}. Check the location{advice}"
    return f"no {wanted} file{images} at {uri}: found {what}."


def _image_files(objects: "_Objects") -> Listing:
    """List image files and possible annotations, without hidden files."""
    entries = [e for e in objects.entries.values() if objects.is_exact or not is_ignored(e.path)]
    if not any(is_image_name(e.path) for e in entries):
        other = name_others(e.path for e in entries) or f"{len(entries) or 'no'} other files"
        raise InputError(
            f"no image file at {objects.store.uri}: found {other}. Check the location; a "
            "folder of images has a folder per class, or annotations beside the images.",
            uri=objects.store.uri,
        )
    entries.sort(key=lambda e: e.path)
    return Listing(objects.store, tuple(entries), "folder", n_loops=objects.n_loops)


@dataclass(frozen=True)
class _Objects:
    store: Store
    entries: dict[str, Entry]
    is_exact: bool = False
    is_glob: bool = False
    n_loops: int = 0


def _find(uri: str, options: dict[str, Any] | None) -> _Objects:
    """Return everything that ``uri`` names, and whether it names one object."""
    store = open_store(uri, options=options)
    if store.root_type() == "file":
        uri, _, name = store.uri.rpartition("/")
        uri = f"{uri}/" if uri.endswith(":/") else uri
        folder = Store(uri=uri, fs=store.fs, root=store.root.rpartition("/")[0])
        return _Objects(folder, {name: entry_of(folder, name)}, is_exact=True)
    if not any(sign in uri for sign in MAGIC) or store.root_type() == "directory":
        return _walk(store)
    fixed, pattern = _cut_at_magic(store.uri)
    objects = _walk(open_store(fixed, options=options))
    matching = {p: e for p, e in objects.entries.items() if match_segments(p, pattern)}
    return _Objects(objects.store, matching, is_glob=True, n_loops=objects.n_loops)


def _walk(store: Store) -> _Objects:
    if store.is_local:
        loops: list[str] = []
        entries = {e.path: e for e in _walk_folder(store.root, "", frozenset(), loops)}
        return _Objects(store, dict(sorted(entries.items())), n_loops=len(loops))
    entries = {
        path: Entry(path, int(info["size"]), _etag(store, path, info))
        for path, info in store.infos().items()
    }
    return _Objects(store, entries)


def _walk_folder(
    folder: str, prefix: str, above: frozenset[tuple[int, int]], loops: list[str]
) -> Iterator[Entry]:
    """Yield the files below a local folder; links are followed, except into a folder above them."""
    try:
        status = Path(folder).stat()
        items = sorted(os.scandir(folder), key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError as exc:
        raise StorageError(f"no permission to list {folder}; grant it or leave it out.") from exc
    above = above | {(status.st_dev, status.st_ino)}
    for item in items:
        path = f"{prefix}{item.name}"
        try:
            status = item.stat()
        except FileNotFoundError:
            yield Entry(path, -1, BROKEN_LINK)
            continue
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            loops.append(path)
            continue
        if item.is_dir():
            if (status.st_dev, status.st_ino) in above:
                loops.append(path)
            else:
                yield from _walk_folder(item.path, f"{path}/", above, loops)
        elif item.is_file() and not item.name.startswith(".tmp-"):  # ours, not yet in place
            yield Entry(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _cut_at_magic(uri: str) -> tuple[str, str]:
    """Split a glob into the folder before its first pattern and the rest."""
    segments = uri.split("/")
    first = next(i for i, segment in enumerate(segments) if any(sign in segment for sign in MAGIC))
    folder = "/".join(segments[:first])
    return (folder + "/" if folder.endswith(":/") or not folder else folder), "/".join(
        segments[first:]
    )


def _ours(store: Store) -> Listing | None:
    """Return the real shards of a folder of ours, by its manifest or index; None for any other folder."""
    if store.exists("_manifests") and latest_version(store) is not None:
        manifest = read_manifest(store)
        paths = sorted(s.path for s in manifest.shards if s.origin == "real")
        is_tar = bool(paths) and all(_format(p) == "archive" for p in paths)
        kind: Format = "archive" if is_tar else "parquet"
        return Listing(store, tuple(entry_of(store, p) for p in paths), kind, manifest)
    if denoised := _denoised_shards(store):
        entries = tuple(entry_of(store, shard.path) for shard in denoised)
        return Listing(store, entries, "parquet", denoised=denoised)
    return None


def _format(path: str) -> Format | None:
    return next((kind for ending, kind in ENDINGS.items() if path.lower().endswith(ending)), None)


def entry_of(store: Store, path: str) -> Entry:
    """Return the object's size and etag: the store's own, or size and modification time."""
    info = store.info(path)
    return Entry(path, int(info["size"]), _etag(store, path, info))


def _etag(store: Store, path: str, info: dict[str, Any]) -> str:
    def first(*names: str) -> Any:
        return next((info[name] for name in names if info.get(name)), None)

    etag = first("ETag", "etag", "md5Hash", "content_md5", "crc32c")
    if etag is None:
        changed_at = first("mtime_ns", "mtime", "LastModified", "last_modified", "updated")
        etag = f"{info['size']}-{changed_at or _modified(store, path)}"
    return str(etag).strip('"')


def _modified(store: Store, path: str) -> str:
    try:
        return str(store.fs.modified(store.full(path)).isoformat())
    except NotImplementedError:
        return "unknown"  # then the size alone tells a change


PART = "aug_split"  # the column that says which part a record is of


def _denoised_shards(store: Store) -> tuple[ShardInfo, ...]:
    """Return the real shards that ``denoise`` wrote to the folder; none of any other folder."""
    if not store.exists(INDEX):
        return ()
    try:
        info = LatentInfo.model_validate_json(store.read(INDEX))
    except ValidationError:  # another tool's file of that name
        return ()
    return tuple(s for s in info.shards if s.origin == "real" and info.use == "denoised")


def with_its_holdout(source: Source, shards: tuple[ShardInfo, ...]) -> Source:
    """Return the source with the denoised hold-out, which no model was trained on, unless it names another."""
    parts = {shard.split for shard in shards}
    is_divided = "holdout" in parts and len(parts) > 1
    if source.holdout_column or source.holdout_uri or not is_divided:
        return source
    return source.model_copy(update={"holdout_column": PART})
