"""Leases: how runs that publish and runs that remove avoid each other on stores without locks.

A publishing run relies on objects of older versions and killed runs, which a removing one must not delete meanwhile.
Each puts a lease and then looks for the other kind's: of two that meet, at least one sees the other and backs off.
Ages are measured by the store's own clock.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from prefect_augment.errors import TransientError
from prefect_augment.storage.store import Store

FOLDER = "_staging/lease"

# A killed run's lease expires after this time. Writing shards and a manifest may take
# hours; a removal renews its lease every few minutes.
_SECONDS = {"writing": 24 * 3600.0, "removing": 3600.0}
_RENEW_SECONDS = 300.0


@contextmanager
def lease(
    store: Store, kind: Literal["writing", "removing"], name: str
) -> Iterator[Callable[[], None]]:
    """Hold a lease; yields a function that renews it.

    Writers share the destination with writers; a remover has it alone. ``name`` is the job's: the same job
    takes over the lease it held when it was killed. Raises TransientError if another run is in the way.
    """
    path = _path(kind, name)
    renewed = time.monotonic()

    def renew() -> None:
        nonlocal renewed
        if time.monotonic() - renewed > _RENEW_SECONDS:
            store.put(path, b"{}\n")
            renewed = time.monotonic()

    store.put(path, b"{}\n")
    try:
        _give_way(store, kind, path)
        yield renew
    finally:
        store.delete(path)


def drop_lease(store: Store, kind: Literal["writing", "removing"], name: str) -> None:
    """Remove the lease of a job that was killed after its work was done."""
    store.delete(_path(kind, name))


def _path(kind: str, name: str) -> str:
    return f"{FOLDER}/{kind}-{name}.json"


def _give_way(store: Store, kind: str, own: str) -> None:
    """Raise TransientError if a conflicting lease has not expired."""
    now = modified_at(store.info(own))
    for path in store.list(FOLDER):
        theirs = path.rsplit("/", 1)[-1].partition("-")[0]
        if path == own or theirs not in _SECONDS or (kind, theirs) == ("writing", "writing"):
            continue
        try:
            left = modified_at(store.info(path))
        except FileNotFoundError:
            continue  # done meanwhile
        age = None if now is None or left is None else now - left
        if age is None or age < _SECONDS[theirs]:
            doing = "publishes to" if theirs == "writing" else "removes objects from"
            raise TransientError(
                f"another run {doing} {store.uri} and has left {path}; nothing was changed. Run again when it is "
                "done. If it was killed, run it again, which takes the lease over, or delete that object.",
                path=path,
            )


def store_time(store: Store) -> float | None:
    """Return the time the store gives to an object written now, seconds since 1970; None if it gives none."""
    probe = f"_staging/.probe-{uuid.uuid4().hex}"
    store.put(probe, b"")
    try:
        return modified_at(store.info(probe))
    finally:
        store.delete(probe)


def modified_at(info: Mapping[str, Any]) -> float | None:
    """Return when an object was last written, seconds since 1970, from fsspec's info."""
    # Local, GCS; S3; Azure; GCS as it comes; memory.
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None
