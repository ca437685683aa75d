"""Rolling back: a new version that points at the shards of an older one."""

import logging
from datetime import UTC, datetime
from functools import partial

from prefect_augment.errors import IntegrityError, ParameterError
from prefect_augment.report.card import refresh_card
from prefect_augment.schema import (
    ROLLED_BACK,
    SCHEMA_VERSION,
    Commit,
    Manifest,
    PublishedFile,
    ShardInfo,
)
from prefect_augment.storage import Store, commit, committed, lease, list_versions, read_manifest

logger = logging.getLogger(__name__)


def rollback(store: Store, to: int) -> Commit:
    """Publish version ``to`` again, as the newest one.

    Nothing is copied: the new manifest names the same immutable shards, quarantine and report, with the
    same recipe, counts and inputs. The version number and the split ledger continue from the newest
    version, so that later records keep their part when they come back. A run whose inputs were published
    before finds that version and does not undo the rollback.

    Raises ParameterError if there is no such version, IntegrityError if one of its objects is missing,
    TransientError if another run removes objects meanwhile, CommitConflictError if others keep publishing
    first. ``created`` of the commit is False if the newest version is equal already.
    """
    existing = list_versions(store)
    if to not in existing:
        listed = ", ".join(map(str, existing)) or "none"
        raise ParameterError(
            f"{store.uri} has no version {to} to roll back to; there is: {listed}."
        )
    with lease(store, "writing", f"rollback-{to}"):
        # Read under the lease, so nothing is removed before the new manifest names it.
        target = read_manifest(store, to)
        _check_there(store, target)

        def find() -> Commit | None:
            newest = read_manifest(store)
            is_equal = newest.content_digest == target.content_digest
            return committed(store, newest, created=False) if is_equal else None

        done = commit(store, partial(_again, target), find)
    refresh_card(store)
    outcome = "again" if done.created else "already"
    logger.info("Version %d of %s is version %d %s.", done.version, store.uri, to, outcome)
    return done


def _again(target: Manifest, version: int, parent: Manifest | None) -> Manifest:
    note = f"{ROLLED_BACK} version {target.version}: its shards, recipe and report."
    notes = [other for other in target.notes if not other.startswith(ROLLED_BACK)]
    return target.model_copy(
        update={
            "schema_version": SCHEMA_VERSION,  # fields are written under today's names
            "version": version,
            "parent": None if parent is None else parent.version,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "ledger": (parent and parent.ledger) or target.ledger,
            "notes": (note, *notes),
        }
    )


def _check_there(store: Store, manifest: Manifest) -> None:
    """Refuse to publish an incomplete version; compares sizes only, ``verify`` compares digests."""
    objects: list[ShardInfo | PublishedFile] = [*manifest.shards, *manifest.quarantine]
    objects += [*manifest.report_files, *([manifest.sources] if manifest.sources else [])]
    lost = [file.path for file in objects if not store.holds(file.path, file.n_bytes)]
    if lost:
        raise IntegrityError(
            f"version {manifest.version} of {store.uri} cannot come back: {len(lost)} of its objects are missing or "
            f"changed, e.g. {lost[0]}; restore them from a copy, or choose another version.",
            paths=lost,
        )
