"""Rolling back: a new version that points at the shards of an older one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime

from prefect_augment.errors import IntegrityError, ParameterError
from prefect_augment.report.card import refresh_card
from prefect_augment.schema.base import Commit
from prefect_augment.schema.manifest import ROLLED_BACK, Manifest
from prefect_augment.storage.leases import lease
from prefect_augment.storage.manifests import commit_next, committed, list_versions, read_manifest
from prefect_augment.storage.store import Store

__all__ = ["rollback"]

logger = logging.getLogger(__name__)


def rollback(store: Store, to: int) -> Commit:
    """Publish version ``to`` again, as the newest one.

    Nothing is copied: the new manifest names the same immutable shards, quarantine and report, with the
    same recipe, counts and inputs. Two things go on from the newest version: the number, and the split
    ledger, so that records that came after ``to`` keep their part when they come back. A run of inputs
    that were published before finds that version and does not undo the rollback.

    Parameters
    ----------
    store : Store
        The dataset.
    to : int
        The version.

    Returns
    -------
    Commit
        ``created`` is False where the newest version holds the same already.

    Raises
    ------
    ParameterError
        If there is no such version.
    IntegrityError
        If an object of that version is missing, or a manifest is damaged.
    TransientError
        If another run removes objects meanwhile.
    CommitConflictError
        If other runs kept publishing first.
    """
    there = list_versions(store)
    if to not in there:
        listed = ", ".join(map(str, there)) or "none"
        raise ParameterError(
            f"{store.uri} has no version {to} to roll back to; there is: {listed}."
        )
    with lease(store, "writing", f"rollback-{to}"):
        # Read below the lease: what is there now is not removed before the new manifest names it.
        target = read_manifest(store, to)
        _check_there(store, target)

        def find() -> Commit | None:
            newest = read_manifest(store)
            if newest.content_digest == target.content_digest:
                return committed(store, newest, created=False)
            return None

        def build(version: int, parent: Manifest | None) -> Manifest:
            return _again(target, version, parent)

        done = commit_next(store, build, find)
    refresh_card(store)
    if done.created:
        logger.info("Version %d of %s is version %d again.", done.version, store.uri, to)
    else:
        logger.info("Version %d of %s is version %d already.", done.version, store.uri, to)
    return done


def _again(target: Manifest, version: int, parent: Manifest | None) -> Manifest:
    notes = [note for note in target.notes if not note.startswith(ROLLED_BACK)]
    return target.model_copy(
        update={
            "version": version,
            "parent": None if parent is None else parent.version,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "ledger": (parent and parent.ledger) or target.ledger,
            "notes": (
                f"{ROLLED_BACK} version {target.version}: its shards, recipe and report.",
                *notes,
            ),
        }
    )


def _check_there(store: Store, manifest: Manifest) -> None:
    """Refuse to publish again what is not whole any more; sizes only, ``verify`` checks digests."""
    lost = [path for path, n_bytes in _objects(manifest) if _size(store, path) != n_bytes]
    if lost:
        raise IntegrityError(
            f"version {manifest.version} of {store.uri} cannot come back: {len(lost)} of its objects are missing or "
            f"changed, e.g. {lost[0]}; restore them from a copy, or choose another version.",
            paths=lost,
        )


def _objects(manifest: Manifest) -> Iterator[tuple[str, int]]:
    for shard in (*manifest.shards, *manifest.quarantine):
        yield shard.path, shard.n_bytes
    for file in (*manifest.report_files, *([manifest.sources] if manifest.sources else ())):
        yield file.path, file.n_bytes


def _size(store: Store, path: str) -> int:
    try:
        return store.size(path)
    except FileNotFoundError:
        return -1
