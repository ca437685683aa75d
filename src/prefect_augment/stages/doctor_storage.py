"""What a run needs of its source and its destination, tried on the real thing.

What is written is removed. Options may hold secrets; they never appear in what is returned.
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import Any

from prefect_augment.errors import AugmentError
from prefect_augment.manifest import list_versions
from prefect_augment.stages.doctor import Check, Status
from prefect_augment.stages.listing import Listing, list_source
from prefect_augment.storage import Store, contains, open_store

__all__ = ["check_apart", "check_destination", "check_source", "needed_extras"]

IMAGE_FORMATS = ("folder", "archive")
MEND = "mend what it names; credentials come from the environment or a Prefect block (--block)."
# The protocol of a URL -> the extra with its driver.
DRIVERS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}


def check_source(
    uri: str, *, wished: str = "auto", options: dict[str, Any] | None = None
) -> list[Check]:
    """List a source and read the beginning of its first file.

    Parameters
    ----------
    uri : str
        As ``source.uri``.
    wished : str
        As ``source.format``.
    options : dict, optional
        fsspec storage options; they never appear in what is returned.
    """
    name = f"source {uri}"
    try:
        listing = list_source(uri, wished=wished, options=options)
        with listing.store.open(listing.entries[0].path) as file:
            file.read(1024)
    except FileNotFoundError:
        advice = "check the spelling; a worker sees its own disk, not yours."
        return [_check(name, "problem", "nothing is there", advice)]
    except Exception as exc:  # noqa: BLE001 - each driver of a store has errors of its own
        return [_check(name, "problem", _said(exc), MEND)]
    n_bytes = sum(entry.n_bytes for entry in listing.entries)
    found = f"{len(listing.entries)} files ({listing.format}), {n_bytes / 2**20:.1f} MiB, readable"
    return [_check(name, "ok", found), *_image_extras(listing)]


def check_destination(uri: str, *, options: dict[str, Any] | None = None) -> list[Check]:
    """Write, read and delete a probe below the destination, and see whether it keeps committers apart.

    Parameters
    ----------
    uri : str
        As ``destination.uri``.
    options : dict, optional
        fsspec storage options; they never appear in what is returned.
    """
    name = f"destination {uri}"
    try:
        store = open_store(uri, options=options)
        missing = _missing_folders(store)
        try:
            held = _probe(store)
        finally:
            for folder in missing:
                with contextlib.suppress(OSError):  # never made, or somebody else's by now
                    folder.rmdir()
        versions = list_versions(store)
    except Exception as exc:  # noqa: BLE001 - each driver of a store has errors of its own
        return [_check(name, "problem", _said(exc), MEND)]
    there = f"version {versions[-1]} is there" if versions else "nothing published yet"
    found = f"can be written, read and deleted; {there}"
    checks = [_check(name, "ok", found)]
    if held:
        text = "honoured: several runs may publish at the same time"
        return [*checks, _check("write only where none is", "ok", text)]
    text = "not honoured: the store overwrites"
    advice = "let only one run at a time publish here (the deployments' concurrency limit does)."
    return [*checks, _check("write only where none is", "warning", text, advice)]


def check_apart(source: str, dest: str) -> list[Check]:
    """Say so where source and destination lie inside one another: a run would read what it wrote."""
    for outer, inner in ((source, dest), (dest, source)):
        if contains(outer, inner):
            found = f"{inner} lies inside {outer}"
            return [_check("apart", "problem", found, "choose a folder beside the source.")]
    return []


def needed_extras(source: str, dest: str, checks: list[Check]) -> set[str]:
    """Return the extras that these locations need, by their protocol and by what the source holds."""
    schemes = [uri.partition("://")[0] for uri in (source, dest)]
    needed = {DRIVERS[scheme] for scheme in schemes if scheme in DRIVERS}
    return needed | ({"images", "torch"} if any(c.name == "kind" for c in checks) else set())


def _probe(store: Store) -> bool:
    """Return whether "put only if absent" is honoured; raise where the probe cannot be kept."""
    path = f"_staging/.probe-{uuid.uuid4().hex}"
    try:
        store.put_if_absent(path, b"first", look_first=False)
        held = not store.put_if_absent(path, b"second", look_first=False)
        if store.read(path) != (b"first" if held else b"second"):
            raise OSError("what was written is not what is read back")
    finally:
        store.delete(path)
    if store.exists(path):
        raise OSError("an object that was deleted is still there")
    return held


def _missing_folders(store: Store) -> list[Path]:
    """Local folders that the probe will make, innermost first."""
    if not store.is_local:
        return []
    staging = Path(store.full("_staging"))
    return [folder for folder in [staging, *staging.parents] if not folder.exists()]


def _image_extras(listing: Listing) -> list[Check]:
    if listing.format not in IMAGE_FORMATS:
        return []
    return [_check("kind", "ok", "images: the extras images and torch are needed")]


def _said(exc: Exception) -> str:
    return str(exc) if isinstance(exc, AugmentError) else f"{type(exc).__name__}: {exc}"


def _check(name: str, status: Status, found: str, advice: str = "") -> Check:
    return Check(area="storage", name=name, status=status, found=found, advice=advice)
