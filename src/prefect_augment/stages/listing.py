"""What lies at a source's URI: one object, a folder, what a glob matches, or a dataset of ours."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from prefect_augment.errors import InputError
from prefect_augment.manifest import Manifest, latest_version, read_manifest
from prefect_augment.storage import Store, open_store

__all__ = ["MAGIC", "Entry", "Listing", "entry_of", "list_source"]

Format = Literal["parquet", "csv"]

ENDINGS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".csv.gz": "csv",
    ".tsv.gz": "csv",
}
MAGIC = "*?["


@dataclass(frozen=True)
class Entry:
    """One object of a source as it was listed."""

    path: str
    n_bytes: int
    etag: str


@dataclass(frozen=True)
class Listing:
    """The objects of a source, sorted by path.

    Parameters
    ----------
    store : Store
        Their folder.
    entries : tuple of Entry
        Paths are relative to the store's root.
    format : str
        One for all.
    manifest : Manifest, optional
        Where the source is a dataset that we published.
    n_ignored : int
        Objects in the folder that are neither Parquet nor CSV.
    """

    store: Store
    entries: tuple[Entry, ...]
    format: Format
    manifest: Manifest | None = None
    n_ignored: int = 0

    @property
    def identity(self) -> list[list[Any]]:
        """What names the content without reading it: paths, sizes, etags (digests where we wrote it)."""
        sha256 = {s.path: s.sha256 for s in self.manifest.shards} if self.manifest else {}
        return [[e.path, e.n_bytes, sha256.get(e.path, e.etag)] for e in self.entries]


def list_source(uri: str, *, wished: str, options: dict[str, Any] | None) -> Listing:
    """Return what lies at ``uri``: one object, all below a folder, or what a glob matches.

    Names that start with a dot or an underscore are passed over, as are other formats' files in a
    folder. A folder that carries our manifest is its newest version, read through the manifest alone.

    Parameters
    ----------
    uri : str
        Local path or fsspec URL.
    wished : str
        ``auto``, ``parquet`` or ``csv``.
    options : dict, optional
        fsspec storage options.

    Raises
    ------
    InputError
        If nothing is there, or Parquet and CSV are mixed.
    """
    store, paths, exact = _find(uri, options)
    if not exact:
        manifest = _manifest_of(store)
        if manifest is not None:
            ours = sorted(s.path for s in manifest.shards if s.origin == "real")
            return Listing(store, tuple(entry_of(store, p) for p in ours), "parquet", manifest)
        paths = [p for p in paths if not any(segment[0] in "._" for segment in p.split("/"))]
    usable = (
        paths
        if exact and wished != "auto"
        else [p for p in paths if _format(p) and wished in ("auto", _format(p))]
    )
    if not usable:
        wanted = ".parquet, .csv or .tsv (also .csv.gz)" if wished == "auto" else wished
        found = f"{len(paths)} other files" if paths else "nothing"
        raise InputError(
            f"no {wanted} file at {uri}: found {found}. Check the location"
            + (", or say source.format." if paths and wished == "auto" else "."),
            uri=uri,
        )
    formats = {wished if wished != "auto" else _format(p) for p in usable}
    if len(formats) > 1:
        n_parquet = sum(_format(p) == "parquet" for p in usable)
        raise InputError(
            f"{uri} holds {n_parquet} Parquet and {len(usable) - n_parquet} CSV files; a source has one format. "
            "Say which with source.format, or give a glob such as *.parquet.",
            uri=uri,
        )
    entries = tuple(entry_of(store, p) for p in sorted(usable))
    return Listing(
        store, entries, "parquet" if "parquet" in formats else "csv", None, len(paths) - len(usable)
    )


def _find(uri: str, options: dict[str, Any] | None) -> tuple[Store, list[str], bool]:
    """Return a store, the relative paths that ``uri`` names, and whether it names one object."""
    store = open_store(uri, options=options)
    if store.fs.isfile(store.root):
        folder, name = _parent(store)
        return folder, [name], True
    if not any(sign in uri for sign in MAGIC) or store.fs.isdir(store.root):
        return store, store.list(), False
    fixed, pattern = _cut_at_magic(store.uri)
    folder = open_store(fixed, options=options)
    return folder, [p for p in folder.list() if _matches(p, pattern)], False


def _parent(store: Store) -> tuple[Store, str]:
    uri, _, name = store.uri.rpartition("/")
    root = store.root.rpartition("/")[0]
    return Store(uri=uri if not uri.endswith(":/") else uri + "/", fs=store.fs, root=root), name


def _cut_at_magic(uri: str) -> tuple[str, str]:
    """Split a glob into the folder before its first pattern and the rest."""
    segments = uri.split("/")
    first = next(i for i, segment in enumerate(segments) if any(sign in segment for sign in MAGIC))
    folder = "/".join(segments[:first])
    return (folder + "/" if folder.endswith(":/") or not folder else folder), "/".join(
        segments[first:]
    )


def _matches(path: str, pattern: str) -> bool:
    """Glob by segments: ``*`` stays within one, ``**`` spans any number."""
    return _match_segments(path.split("/"), pattern.split("/"))


def _match_segments(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_match_segments(path[i:], pattern[1:]) for i in range(len(path) + 1))
    return (
        bool(path) and fnmatchcase(path[0], pattern[0]) and _match_segments(path[1:], pattern[1:])
    )


def _manifest_of(store: Store) -> Manifest | None:
    """The newest manifest, where the folder is a dataset that we published."""
    if not store.exists("_manifests") or latest_version(store) is None:
        return None
    return read_manifest(store)


def _format(path: str) -> Format | None:
    return next((kind for ending, kind in ENDINGS.items() if path.lower().endswith(ending)), None)


def entry_of(store: Store, path: str) -> Entry:
    """Return the object's size and etag: the store's own, or size and modification time."""
    info = store.fs.info(store.full(path))
    etag = next(
        (str(info[k]) for k in ("ETag", "etag", "md5Hash", "content_md5", "crc32c") if info.get(k)),
        "",
    )
    if not etag:
        times = [
            info[k]
            for k in ("mtime_ns", "mtime", "LastModified", "last_modified", "updated")
            if info.get(k)
        ]
        changed = times[0] if times else _modified(store, path)
        etag = f"{info['size']}-{changed}"
    return Entry(path, int(info["size"]), etag.strip('"'))


def _modified(store: Store, path: str) -> str:
    try:
        return str(store.fs.modified(store.full(path)).isoformat())
    except NotImplementedError:
        return "unknown"  # then the size alone tells a change
