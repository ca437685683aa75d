"""What stands beside a version's shards, copied from staging: ledger, report, quarantine.

Of objects that grow with the records no more than a block is in memory at once.
"""

from __future__ import annotations

import hashlib
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.errors import CommitConflictError, IntegrityError
from prefect_augment.schema.base import DatasetInfo, ReportRef, ShardInfo
from prefect_augment.schema.manifest import Manifest, PublishedFile
from prefect_augment.shards.base import open_shard, put_once
from prefect_augment.shards.stream_writer import BATCH_BYTES, BATCH_RECORDS, drafted
from prefect_augment.split.ledger_io import part_codes
from prefect_augment.storage.keys import fold_ids
from prefect_augment.storage.store import Store, sha256_hex

__all__ = ["check_follows", "copy_files", "copy_ledger", "copy_quarantine", "copy_report"]


def check_follows(store: Store, info: DatasetInfo, parent: Manifest | None) -> None:
    """Refuse to publish a split that takes back what the parent's ledger says of any record."""
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
        "split does not go on in this one. Nothing is lost: run again, and the new run inherits that split.",
        version=parent.version,
    )


def _entries(store: Store, path: str) -> tuple[list[str], NDArray[np.uint64]]:
    """Return a ledger's columns, and eight bytes for the key, occurrence and part of each of its entries.

    A label may have been corrected since; that moves no record.
    """
    folded = [np.zeros(0, dtype=np.uint64)]
    with open_shard(store, path) as ledger:
        columns = [n for n in ("key", "occurrence", "part") if n in ledger.schema.names]
        for group in range(len(ledger.group_rows)):
            table = ledger.read(columns, groups=[group])
            for batch in table.to_batches(max_chunksize=BATCH_RECORDS):
                batch = batch.set_column(columns.index("part"), "part", part_codes(batch["part"]))
                texts = [column.cast(pa.string()) for column in batch.columns]
                folded.append(fold_ids(pc.binary_join_element_wise(*texts, "/")))
        return ledger.schema.names, np.concatenate(folded)


def copy_quarantine(store: Store, info: DatasetInfo) -> tuple[ShardInfo, ...]:
    """Copy what could not be used to ``_quarantine``."""
    copied = []
    for i, shard in enumerate(info.quarantine):
        path = f"_quarantine/quarantine-{i:05d}-{shard.sha256[:12]}.parquet"
        _copy(store, shard.path, path)
        copied.append(shard.model_copy(update={"path": path}))
    return tuple(copied)


def _open_staged(store: Store, path: str) -> IO[bytes]:
    try:
        return store.open(path)
    except FileNotFoundError as exc:
        raise _gone(store, path) from exc


def _size_of(store: Store, path: str) -> int:
    try:
        return store.size(path)
    except FileNotFoundError as exc:
        raise _gone(store, path) from exc


def _sha256_of(store: Store, path: str) -> str:
    with _open_staged(store, path) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def copy_ledger(store: Store, info: DatasetInfo, version: int) -> PublishedFile | None:
    """Copy the split ledger to ``_splits``, beside that of another run where one has taken the number."""
    if not info.ledger:
        return None
    path = f"_splits/v{version:08d}.parquet"
    n_bytes, sha256 = _size_of(store, info.ledger), _sha256_of(store, info.ledger)
    # A large one has its digest in its name at once: to claim a name takes all of it in memory.
    if n_bytes > BATCH_BYTES or not _claim(store, path, _read_staged(store, info.ledger)):
        path = f"_splits/v{version:08d}-{sha256[:12]}.parquet"
        _copy(store, info.ledger, path)
    return PublishedFile(path=path, n_bytes=n_bytes, sha256=sha256)


def copy_files(store: Store, info: DatasetInfo, version: int) -> PublishedFile | None:
    """Copy the list of source files beside the ledger, under a name of its content's."""
    if not info.files:
        return None
    sha256 = _sha256_of(store, info.files)
    path = f"_splits/v{version:08d}-{sha256[:12]}.parquet"
    _copy(store, info.files, path)
    return PublishedFile(path=path, n_bytes=_size_of(store, info.files), sha256=sha256)


def _copy(store: Store, staged: str, path: str) -> None:
    """Copy what is staged block by block, where it is not there yet."""
    folder = path.rpartition("/")[0]
    with _open_staged(store, staged) as file, drafted(store, folder, file) as (draft, _):
        put_once(store, path, draft)


def copy_report(store: Store, report: ReportRef | None, version: int) -> tuple[PublishedFile, ...]:
    """Copy the report's files to ``_reports/v…/``, or beside it where another run's are there.

    A run that was killed, or lost the race for this number, may have left files of its own under the
    plain name; no object that a manifest may name is ever overwritten.
    """
    if report is None:
        return ()
    found = {name: _read_staged(store, f"{report.prefix}/{name}") for name in sorted(report.files)}
    folder = f"_reports/v{version:08d}"
    if not all(_claim(store, f"{folder}/{name}", data) for name, data in found.items()):
        digest = hashlib.sha256("".join(map(sha256_hex, found.values())).encode()).hexdigest()
        folder += f"-{digest[:12]}"
        for name, data in found.items():
            put_once(store, f"{folder}/{name}", data)
    return tuple(_published(f"{folder}/{name}", data) for name, data in found.items())


def _claim(store: Store, path: str, data: bytes) -> bool:
    """Put the object where there is none; return whether what is there now is this one."""
    return store.put_if_absent(path, data) or store.read(path) == data


def _read_staged(store: Store, path: str) -> bytes:
    try:
        return store.read(path)
    except FileNotFoundError as exc:
        raise _gone(store, path) from exc


def _gone(store: Store, path: str) -> IntegrityError:
    return IntegrityError(
        f"{store.uri}/{path} is gone from staging; run again, it is made anew.", path=path
    )


def _published(path: str, data: bytes) -> PublishedFile:
    return PublishedFile(path=path, n_bytes=len(data), sha256=sha256_hex(data))
