"""Files beside a version's shards, copied from staging: ledger, report, quarantine.

Files that grow with the number of records are copied block by block.
"""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Uint64
from prefect_augment.errors import CommitConflictError, IntegrityError
from prefect_augment.schema import DatasetInfo, Manifest, PublishedFile, ReportRef, ShardInfo
from prefect_augment.shards.base import open_shard, put_once
from prefect_augment.shards.stream_writer import BATCH_BYTES, BATCH_RECORDS, drafted
from prefect_augment.split.ledger_io import part_codes, with_keys
from prefect_augment.storage import Store, sha256_hex
from prefect_augment.storage.keys import hash_ids

T = TypeVar("T")


def check_follows(store: Store, info: DatasetInfo, parent: Manifest | None) -> None:
    """Refuse a split that contradicts the parent's ledger for any record."""
    if parent is None or parent.ledger is None or not info.ledger:
        return
    if _sha256_of(store, info.ledger) == parent.ledger.sha256:
        return
    theirs, ours = (_entries(store, path) for path in (parent.ledger.path, info.ledger))
    if _sha256_of(store, parent.ledger.path) != parent.ledger.sha256:
        raise IntegrityError(
            f"{store.uri}/{parent.ledger.path} has other bytes than were published; restore it from a copy.",
            path=parent.ledger.path,
        )
    if theirs[0] == ours[0] and np.isin(theirs[1], ours[1]).all():
        return
    raise CommitConflictError(
        f"version {parent.version} of {store.uri} was published from other records while this run worked, and its "
        "split does not continue in this one. Nothing is lost: run again, and the new run inherits that split.",
        version=parent.version,
    )


def _entries(store: Store, path: str) -> tuple[list[str], Uint64]:
    """Return a ledger's columns, and a 64-bit hash of key, occurrence and part of each entry.

    The label is left out: correcting it moves no record.
    """
    hashes = [np.zeros(0, dtype=np.uint64)]
    with open_shard(store, path) as ledger:
        columns = [n for n in ("key", "occurrence", "part") if n in ledger.schema.names]
        for group in range(len(ledger.group_rows)):
            table = with_keys(store, ledger.read(columns, groups=[group]), opens=True)
            for batch in table.to_batches(max_chunksize=BATCH_RECORDS):
                batch = batch.set_column(columns.index("part"), "part", part_codes(batch["part"]))
                texts = [column.cast(pa.string()) for column in batch.columns]
                hashes.append(hash_ids(pc.binary_join_element_wise(*texts, "/")))
        return ledger.schema.names, np.concatenate(hashes)


def copy_quarantine(store: Store, info: DatasetInfo) -> tuple[ShardInfo, ...]:
    """Copy the unusable records to ``_quarantine``."""
    copied = []
    for i, shard in enumerate(info.quarantine):
        path = f"_quarantine/quarantine-{i:05d}-{shard.sha256[:12]}.parquet"
        _copy(store, shard.path, path)
        copied.append(shard.model_copy(update={"path": path}))
    return tuple(copied)


def _staged(store: Store, path: str, read: Callable[[str], T]) -> T:
    """Read, open or measure a staged file; IntegrityError if it is gone."""
    try:
        return read(path)
    except FileNotFoundError as exc:
        raise IntegrityError(
            f"{store.uri}/{path} is missing from staging; run again to make it anew.", path=path
        ) from exc


def _sha256_of(store: Store, path: str) -> str:
    with _staged(store, path, store.open) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def copy_ledger(store: Store, info: DatasetInfo, version: int) -> PublishedFile | None:
    """Copy the split ledger to ``_splits``, under a second name if another run took the first."""
    if not info.ledger:
        return None
    # A large ledger gets its digest in the name at once: claiming a name needs all of it in memory.
    if _staged(store, info.ledger, store.size) <= BATCH_BYTES:
        path, data = f"_splits/v{version:08d}.parquet", _staged(store, info.ledger, store.read)
        if _claim(store, path, data):
            return PublishedFile(path=path, n_bytes=len(data), sha256=sha256_hex(data))
    return _copied(store, info.ledger, version)


def copy_files(store: Store, info: DatasetInfo, version: int) -> PublishedFile | None:
    """Copy the list of source files beside the ledger, named by its digest."""
    return _copied(store, info.files, version) if info.files else None


def _copied(store: Store, staged: str, version: int) -> PublishedFile:
    n_bytes, sha256 = _staged(store, staged, store.size), _sha256_of(store, staged)
    path = f"_splits/v{version:08d}-{sha256[:12]}.parquet"
    _copy(store, staged, path)
    return PublishedFile(path=path, n_bytes=n_bytes, sha256=sha256)


def _copy(store: Store, staged: str, path: str) -> None:
    """Copy a staged file block by block, if it is not there yet."""
    folder = path.rpartition("/")[0]
    with _staged(store, staged, store.open) as file, drafted(store, folder, file) as (draft, _):
        put_once(store, path, draft)


def copy_report(store: Store, report: ReportRef | None, version: int) -> tuple[PublishedFile, ...]:
    """Copy the report's files to ``_reports/v…/``, or beside it if another run's are there.

    A killed run, or one that lost the race for this number, may have left files under the plain name; no
    object that a manifest may name is ever overwritten.
    """
    if report is None:
        return ()
    files = {
        name: _staged(store, f"{report.prefix}/{name}", store.read) for name in sorted(report.files)
    }
    folder = f"_reports/v{version:08d}"
    if not all(_claim(store, f"{folder}/{name}", data) for name, data in files.items()):
        digest = hashlib.sha256("".join(map(sha256_hex, files.values())).encode()).hexdigest()
        folder += f"-{digest[:12]}"
        for name, data in files.items():
            put_once(store, f"{folder}/{name}", data)
    return tuple(
        PublishedFile(path=f"{folder}/{name}", n_bytes=len(data), sha256=sha256_hex(data))
        for name, data in files.items()
    )


def _claim(store: Store, path: str, data: bytes) -> bool:
    """Put the object if there is none; return whether the stored one is equal."""
    return store.put_if_absent(path, data) or store.read(path) == data
