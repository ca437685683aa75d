"""Exports: one version as a plain tree of files, for engines that read by glob.

``<split>/part-….parquet``, a README, a copy of the manifest, and ``_SUCCESS``, written last.
"""

import contextlib
import ctypes
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from prefect_augment.errors import IntegrityError, ParameterError
from prefect_augment.schema import Manifest, Origin, Result, ShardInfo
from prefect_augment.shards.stream_writer import drafted
from prefect_augment.storage import (
    Draft,
    Store,
    contains,
    latest_version,
    open_store,
    read_manifest,
)
from prefect_augment.text import markdown_text

logger = logging.getLogger(__name__)

SUCCESS = "_SUCCESS"
MANIFEST = "manifest.json"
README = "README.md"
_PART = re.compile(r"[^/]+/part-\d{5}-[0-9a-f]{12}(\.[a-z0-9]+)+")
_LEFTOVER_SECONDS = 86_400.0


class ExportReport(Result):
    """Result of :func:`export`."""

    folder: str
    version: int
    n_records: dict[str, int]  # split -> records
    n_files: int
    n_bytes: int
    created: bool  # False if the same export existed


def export(
    store: Store,
    folder: Store | str,
    *,
    version: int | None = None,
    splits: Sequence[str] = (),
    origins: Sequence[Origin] = (),
    options: dict[str, Any] | None = None,
) -> ExportReport:
    """Write one version as a tree of files; only some ``splits`` and ``origins`` where named.

    On a local disk the tree appears at once and replaces an earlier export. An object store has no rename: there
    ``_SUCCESS`` is removed first and written last, and a reader that checks for it sees one version. Every shard's
    digest is checked. ``version`` is the newest by default; ``options`` are fsspec's, of a ``folder`` that is a string.

    Raises ParameterError if ``folder`` holds other files than an earlier export, lies in the dataset or around it, or
    nothing is chosen; IntegrityError if there is no such version, or a shard is missing or damaged; StorageError if
    ``folder`` cannot be written.
    """
    target = folder if isinstance(folder, Store) else open_store(folder, options=options)
    check_export(store, target)
    manifest = read_manifest(store, version)
    shards = chosen_shards(manifest, splits, origins)
    parts = [_part(i, shard) for i, shard in enumerate(shards)]
    # Equal seals, equal trees.
    fields = {
        "version": manifest.version,
        "content_digest": manifest.content_digest,
        "files": parts,
    }
    seal = json.dumps(fields, indent=1).encode() + b"\n"
    n_records = Counter[str]()
    for shard in shards:
        n_records[shard.split] += shard.n_records
    is_new = target.read_if_there(SUCCESS) != seal or not set(parts) <= set(target.list())
    if is_new and target.is_local:
        with swapped(Path(target.root)) as temporary:
            _write(store, open_store(temporary), manifest, shards, seal)
    elif is_new:
        # Without the seal the tree is incomplete; a rerun still recognises it by the manifest.
        target.delete(SUCCESS)
        _write(store, target, manifest, shards, seal)
    logger.info("Version %d of %s is exported to %s.", manifest.version, store.uri, target.uri)
    return ExportReport(
        folder=target.uri,
        version=manifest.version,
        n_records=n_records,
        n_files=len(shards),
        n_bytes=sum(s.n_bytes for s in shards),
        created=is_new,
    )


def export_newest(store: Store, uri: str) -> ExportReport:
    """Export the newest version beside the dataset; again if another run publishes meanwhile.

    The folder is opened with the dataset's credentials if it is on the same kind of store.
    """
    target = _beside(store, uri)
    while True:
        result = export(store, target)
        if latest_version(store) in (result.version, None):
            return result


def _beside(store: Store, uri: str) -> Store:
    protocols = [store.fs.protocol] if isinstance(store.fs.protocol, str) else store.fs.protocol
    if store.is_local or "://" not in uri or uri.split("://")[0] not in protocols:
        return open_store(uri)
    return Store(uri=uri, fs=store.fs, root=str(store.fs._strip_protocol(uri)).rstrip("/"))


def check_export(store: Store, folder: Store | str) -> None:
    """Raise ParameterError for a folder in or around the dataset, a file, or a folder of other files."""
    target = folder if isinstance(folder, Store) else _beside(store, folder)
    check_beside(store, target)
    if target.is_local and Path(target.root).is_file():
        raise ParameterError(f"the export {target.uri} is a file; choose a folder.")
    existing = target.list()
    is_ours = not existing or _is_manifest(target.read_if_there(MANIFEST) or b"")
    unknown = [
        p for p in existing if p not in (SUCCESS, MANIFEST, README) and not _PART.fullmatch(p)
    ]
    if not is_ours or unknown:
        named = ", ".join((unknown or existing)[:3])
        raise ParameterError(
            f"the export {target.uri} holds files that are not of an export, e.g. {named}; choose an empty folder, "
            "or move them away."
        )


def check_beside(store: Store, target: Store) -> None:
    """Raise ParameterError for a folder in or around the dataset."""
    if contains(store.uri, target.uri) or contains(target.uri, store.uri):
        raise ParameterError(
            f"the export {target.uri} lies inside the dataset {store.uri} or around it; choose a folder beside it."
        )


def _is_manifest(data: bytes) -> bool:
    try:
        fields = json.loads(data)
    except ValueError:
        return False
    return isinstance(fields, dict) and {"schema_version", "content_digest"} <= fields.keys()


def chosen_shards(
    manifest: Manifest, splits: Sequence[str], origins: Sequence[str]
) -> tuple[ShardInfo, ...]:
    """Return a version's shards of some splits and origins, all by default; ParameterError if it has none."""
    there = {s.split for s in manifest.shards}
    unknown = sorted(set(splits) - there)
    if unknown:
        raise ParameterError(
            f"version {manifest.version} has no split {', '.join(unknown)}; there is: {', '.join(sorted(there))}."
        )
    shards = tuple(
        s
        for s in manifest.shards
        if (not splits or s.split in splits) and (not origins or s.origin in origins)
    )
    if not shards:
        existing = ", ".join(sorted({s.origin for s in manifest.shards}))
        raise ParameterError(
            f"version {manifest.version} has no records of origin {', '.join(origins)} there; it has: {existing}."
        )
    return shards


def _part(i: int, shard: ShardInfo) -> str:
    ending = "".join(PurePosixPath(shard.path).suffixes)
    return f"{shard.split}/part-{i:05d}-{shard.sha256[:12]}{ending}"


def _write(
    store: Store, target: Store, manifest: Manifest, shards: Sequence[ShardInfo], seal: bytes
) -> None:
    """Write the tree, the seal last; remove files of an earlier export before that."""
    target.put(MANIFEST, manifest.to_json())
    names = set()
    for i, shard in enumerate(shards):
        path = _part(i, shard)
        names.add(path)
        with _checked(store, shard, target, path.rpartition("/")[0]) as draft:
            target.put(path, draft)
    target.put(README, _readme(manifest, shards).encode())
    for path in target.list():
        if _PART.fullmatch(path) and path not in names:
            target.delete(path)
    target.put(SUCCESS, seal)


@contextlib.contextmanager
def _checked(store: Store, shard: ShardInfo, target: Store, folder: str) -> Iterator[Draft]:
    """Yield a shard as a draft for a folder of the target, if its digest is right."""
    where = f"{store.uri}/{shard.path}"
    try:
        file = store.open(shard.path)
    except FileNotFoundError as exc:
        raise IntegrityError(
            f"{where} is missing; restore it from a copy.", path=shard.path
        ) from exc
    with file, drafted(target, folder, file) as (draft, sha256):
        if sha256 != shard.sha256:
            raise IntegrityError(
                f"{where} was changed after it was published; restore it from a copy.",
                path=shard.path,
            )
        yield draft


def _readme(manifest: Manifest, shards: Sequence[ShardInfo]) -> str:
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in sorted({s.split for s in shards}):
        endings = {"".join(PurePosixPath(s.path).suffixes) for s in shards if s.split == split}
        paths = [f"    - {split}/*{ending}" for ending in sorted(endings)]
        lines += [f"  - split: {split}", "    path:", *paths]
    origins = sorted({s.origin for s in shards})
    lines += [
        "---",
        f"# Version {manifest.version} of a balanced dataset",
        "",
        f"Records of origin {', '.join(origins)}, exported by prefect-augment; see `{MANIFEST}`.",
        f"The class is in column {markdown_text(manifest.label)}; `aug_weight` is the sample weight.",
        "",
        markdown_text(manifest.recipe.sentence),
        "",
    ]
    return "\n".join(lines)


# --- the swap of a local folder ---------------------------------------------------------------


@contextlib.contextmanager
def swapped(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside this one, which replaces it at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    temporary = folder.with_name(f".tmp-export-{uuid.uuid4().hex}-{folder.name}")
    try:
        temporary.mkdir()
        yield temporary
        _put_in_place(temporary, folder)
    finally:
        # The earlier export, or an unfinished one.
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove leftovers of killed exports of this folder that are older than a day."""
    left = re.compile(rf"\.tmp-export-[0-9a-f]{{32}}-{re.escape(folder.name)}")
    for other in folder.parent.iterdir():
        if left.fullmatch(other.name) and time.time() - other.stat().st_mtime > _LEFTOVER_SECONDS:
            shutil.rmtree(other, ignore_errors=True)


def _put_in_place(new: Path, folder: Path) -> None:
    """Replace the old folder by the new one, atomically where the system can exchange two names."""
    if not folder.exists() or not any(folder.iterdir()):
        new.rename(folder)  # onto nothing, or onto an empty folder
    elif not _exchange(new, folder):
        old = new.with_name(f"{new.name}-old")
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names atomically; return whether this system and disk can."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2  # Linux 3.15, glibc 2.28
    except (AttributeError, OSError, TypeError):
        return False
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(call(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0)
