"""Manifests in a destination: the versions that exist, and the commit of the next one."""

import json
import re
import uuid
import warnings
from collections.abc import Callable

from pydantic import ValidationError

from prefect_augment.errors import CommitConflictError, IntegrityError, SchemaError
from prefect_augment.schema import SCHEMA_VERSION, Commit, Manifest, content_digest
from prefect_augment.storage.store import Store

# 300 bytes per shard: a million shards. Larger ones are made to fill the memory of who reads them.
MAX_BYTES = 256 << 20


# Ten other runs that commit while one is on its last step would be a queue, not a race.
_MAX_ATTEMPTS = 10


def manifest_path(version: int) -> str:
    """Return where the manifest of ``version`` lies."""
    return f"_manifests/v{version:08d}.json"


def list_versions(store: Store) -> tuple[int, ...]:
    """Return the published versions, oldest first; empty where there is no dataset."""
    matches = (
        re.fullmatch(r"_manifests/v(\d{8})\.json", path) for path in store.list("_manifests")
    )
    return tuple(sorted(int(match[1]) for match in matches if match))


def latest_version(store: Store) -> int | None:
    """Return the newest published version, or None where there is no dataset."""
    versions = list_versions(store)
    return versions[-1] if versions else None


def read_manifest(store: Store, version: int | None = None) -> Manifest:
    """Return the manifest of a version, the newest by default.

    Raises IntegrityError for a missing version or damaged manifest, SchemaError for one of a newer release.
    """
    if version is None:
        version = latest_version(store)
        if version is None:
            raise IntegrityError(
                f"{store.uri} holds no published dataset (no _manifests/v….json); "
                "check the location, or publish one with `prefect-augment rebalance`."
            )
    path = manifest_path(version)
    try:
        n_bytes = store.size(path)
        if n_bytes > MAX_BYTES:
            raise IntegrityError(
                f"{store.uri}/{path} has {n_bytes:,} bytes, and a manifest has at most {MAX_BYTES:,}: it is none of "
                "ours; refused.",
                path=path,
            )
        data = store.read(path)
    except FileNotFoundError as exc:
        there = ", ".join(map(str, list_versions(store))) or "none"
        raise IntegrityError(
            f"{store.uri} has no version {version}; there is: {there}.", version=version
        ) from exc
    return _parse(data, version, f"{store.uri}/{path}")


def _parse(data: bytes, version: int, where: str) -> Manifest:
    restore = (
        "restore it from a copy, or move it away, and the run that made it publishes it again; older versions stay "
        "readable with version=N"
    )
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise IntegrityError(
            f"{where} is not whole JSON ({len(data)} bytes: {exc}); {restore}.", path=where
        ) from exc
    if not isinstance(fields, dict) or not isinstance(fields.get("schema_version"), int):
        raise IntegrityError(
            f"{where} is no manifest of prefect-augment (it has no schema_version); something else wrote into "
            "this folder. Choose another destination, or move that file away.",
            path=where,
        )
    if fields["schema_version"] > SCHEMA_VERSION:
        raise SchemaError(
            f"{where} has schema version {fields['schema_version']}, and this release reads up to "
            f"{SCHEMA_VERSION}; upgrade prefect-augment.",
            path=where,
        )
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as exc:
        first = exc.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise IntegrityError(
            f"{where} is not valid at {field}: {first['msg']}; {restore}.", path=where
        ) from exc
    if manifest.version != version or manifest.content_digest != content_digest(fields):
        raise IntegrityError(
            f"{where} was changed after it was written (its version or content digest does not fit); {restore}.",
            path=where,
        )
    return manifest


def find_commit(store: Store, dataset_key: str) -> Commit | None:
    """Return the newest version made from the inputs that ``dataset_key`` names, or None."""
    for version in reversed(_versions_now(store)):
        manifest = read_manifest(store, version)
        if manifest.dataset_key == dataset_key:
            return committed(store, manifest, created=False)
    return None


def commit(
    store: Store,
    build: Callable[[int, Manifest | None], Manifest],
    find: Callable[[], Commit | None],
) -> Commit:
    """Make a version visible, once; ``find`` returns the version if it exists.

    ``build(version, parent)`` returns the manifest after writing everything it names. If another run commits
    first it is called again with the next number and the new parent; it raises CommitConflictError itself
    if its content does not follow from that parent. After too many attempts CommitConflictError is raised
    here; what was built stays in staging.
    """
    for _ in range(_MAX_ATTEMPTS):
        existing = find()
        if existing is not None:
            return existing
        latest = max(_versions_now(store), default=None)
        parent = None if latest is None else read_manifest(store, latest)
        manifest = build((latest or 0) + 1, parent).sealed()
        data = manifest.to_json()
        created = store.put_if_absent(manifest_path(manifest.version), data)
        # What stands there now counts, not the answer: a store that only pretends to look first may have
        # told two committers that their manifest is the version.
        other = read_manifest(store, manifest.version)
        if other.content_digest == manifest.content_digest:
            return committed(store, other, created=created)
    raise CommitConflictError(
        f"other runs published to {store.uri} first, {_MAX_ATTEMPTS} times in a row; run again when they are done. "
        "The work is kept in _staging, so the rerun only commits."
    )


def _versions_now(store: Store) -> tuple[int, ...]:
    """Return the published versions, including those that a stale listing lacks."""
    versions = list(list_versions(store))
    while store.exists(manifest_path((versions[-1] if versions else 0) + 1)):
        versions.append((versions[-1] if versions else 0) + 1)
    return tuple(versions)


def committed(store: Store, manifest: Manifest, *, created: bool) -> Commit:
    """Return the reference to a version that is visible."""
    return Commit(
        root=store.uri,
        version=manifest.version,
        manifest=manifest_path(manifest.version),
        content_digest=manifest.content_digest,
        created=created,
    )


def probe_exclusive(store: Store) -> bool:
    """Tell whether the store honours "put only if absent", which separates two committers.

    Some S3-compatible servers accept the condition and overwrite; then only one run at a time may publish,
    and a warning says so. A store that checks and then writes is not detected.
    """
    probe = f"_manifests/.probe-{uuid.uuid4().hex}"
    store.put_if_absent(probe, b"first", look_first=False)
    held = not store.put_if_absent(probe, b"second", look_first=False)
    store.delete(probe)
    if not held:
        warnings.warn(
            f"{store.uri} overwrites objects although told to write only where none is; "
            "publish to it from one run at a time.",
            RuntimeWarning,
            stacklevel=2,
        )
    return held
