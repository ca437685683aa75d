"""What a run needs of this machine, checked without Prefect and without a run.

Each function gives :class:`Check` objects: what was found, whether that is enough, and what to do where
it is not. Nothing here raises because of what it finds. Storage is in :mod:`.doctor_storage`.

What a run needs of its source and its destination, tried on the real thing.

What is written is removed. Options may hold secrets; they never appear in what is returned.

What ``doctor`` asks of Prefect: its API, work pools and workers, and a storage block.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import httpx
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from prefect import __version__ as prefect_version
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

from prefect_augment.errors import AugmentError, ParameterError
from prefect_augment.schema.base import Result
from prefect_augment.sources.discovery import Listing, list_source
from prefect_augment.storage.manifests import list_versions
from prefect_augment.storage.store import Store, contains, open_store
from prefect_augment.tasks._runtime import storage_options

__all__ = [
    "Block",
    "Check",
    "Status",
    "check_apart",
    "check_destination",
    "check_extras",
    "check_gpu",
    "check_libraries",
    "check_machine",
    "check_prefect",
    "check_python",
    "check_source",
    "load_block",
    "needed_extras",
    "worst",
]

Status = Literal["ok", "warning", "problem"]

DISTRIBUTION = "prefect-augment"
GIB = 2**30
# Below the first a run is likely to fail, below the second a larger one is.
MEMORY_BYTES = (GIB // 2, 2 * GIB)
DISK_BYTES = (GIB // 4, 2 * GIB)
# Extra -> modules that it brings, and what it is for.
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "torch": (("torch",), "image data and neural networks"),
    "images": (("albumentations", "cv2", "PIL"), "image data"),
    "s3": (("s3fs",), "s3:// locations"),
    "gcs": (("gcsfs",), "gs:// locations"),
    "azure": (("adlfs",), "az:// and abfs:// locations"),
}


class Check(Result):
    """One thing that was looked at."""

    area: str
    name: str
    status: Status
    found: str
    advice: str = ""


def worst(checks: list[Check]) -> Status:
    """Return the worst status among the checks; ``ok`` where there is none."""
    order: tuple[Status, ...] = ("ok", "warning", "problem")
    return max((check.status for check in checks), key=order.index, default="ok")


# --- what is installed ------------------------------------------------------------------------


def check_python(version: str = "") -> list[Check]:
    """Compare Python's version with what the package declares.

    Parameters
    ----------
    version : str
        The running interpreter's by default.
    """
    version = version or platform.python_version()
    wanted = _declared("Requires-Python")
    good = not wanted or SpecifierSet(wanted).contains(version, prereleases=True)
    return [
        Check(
            area="installed",
            name="Python",
            status="ok" if good else "problem",
            found=version,
            advice="" if good else f"make an environment with Python {wanted}.",
        )
    ]


def check_libraries() -> list[Check]:
    """Compare this package and all that it requires with the ranges it declares; Prefect is one of them."""
    try:
        own = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return [
            Check(
                area="installed",
                name=DISTRIBUTION,
                status="warning",
                found="imported from a folder, not installed",
                advice="install it with pip, or the versions of its libraries cannot be checked.",
            )
        ]
    place = Path(__file__).parents[1]
    checks = [
        Check(area="installed", name=DISTRIBUTION, status="ok", found=f"{own} in {place}"),
        *(
            _library(name)
            for name in ("prefect", "fastapi")  # the two that break one another, always shown
        ),
    ]
    others = [_library(r.name) for r in _requirements() if r.name not in ("prefect", "fastapi")]
    wrong = [check for check in others if check.status != "ok"]
    if not wrong:
        n = len(others)
        wrong = [Check(area="installed", name="libraries", status="ok", found=f"{n}, all in range")]
    return [*checks, *wrong]


def check_extras(needed: set[str] | None = None) -> list[Check]:
    """Say which extras are there and can be imported.

    Parameters
    ----------
    needed : set of str, optional
        Extras that the source or destination at hand needs: a missing one of these is a problem.
    """
    return [_extra(extra, needed=extra in (needed or set())) for extra in EXTRAS]


def _declared(field: str) -> str:
    try:
        return str(metadata.metadata(DISTRIBUTION)[field] or "")
    except metadata.PackageNotFoundError:
        return ""


def _requirements() -> list[Requirement]:
    found = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def _library(name: str) -> Check:
    wanted = next((r.specifier for r in _requirements() if r.name == name), SpecifierSet())
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "not installed"
    good = version != "not installed" and wanted.contains(version, prereleases=True)
    return Check(
        area="installed",
        name=name,
        status="ok" if good else "problem",
        found=version if good else f"{version}; {wanted} is needed",
        advice="" if good else f"pip install '{name}{wanted}'",
    )


def _extra(extra: str, *, needed: bool) -> Check:
    modules, purpose = EXTRAS[extra]
    # albumentations looks for a newer release of itself on import unless told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    missing, broken = [], []
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            missing.append(name)
        except (ImportError, OSError) as exc:  # a library that it links to is not on the machine
            broken.append(f"{name} does not load: {exc}")
    name = f"extra {extra}"
    install = f"pip install '{DISTRIBUTION}[{extra}]'"
    if broken:
        advice = f"install what it names, or again: {install}"
        return _check("installed", name, "problem", "; ".join(broken), advice)
    if not missing:
        versions = ", ".join(f"{m} {_module_version(m)}".strip() for m in modules)
        return _check("installed", name, "ok", versions)
    partial = len(missing) < len(modules)
    status: Status = "problem" if needed else "warning" if partial else "ok"
    found = f"{', '.join(missing)} not installed; needed for {purpose} only"
    return _check("installed", name, status, found, install)


def _module_version(module: str) -> str:
    return str(getattr(importlib.import_module(module), "__version__", ""))


# --- the machine ------------------------------------------------------------------------------


def check_machine(*folders: str) -> list[Check]:
    """Look at the memory that may be used, and at the disks of the temporary and the given folders.

    Parameters
    ----------
    *folders : str
        Local folders that a run will write to; others are passed over.
    """
    checks = [_memory()]
    seen = set()
    local = [f for f in folders if f and "://" not in f]
    for folder in [tempfile.gettempdir(), *local]:
        there = Path(folder).expanduser().resolve()
        # What is not there yet will be made on the disk of the nearest folder that is.
        there = next(p for p in [there, *there.parents] if p.is_dir())
        device = there.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(there).free
        advice = "free some space, or choose another disk (TMPDIR for temporary files)."
        checks.append(_amount(f"disk of {there}", free, DISK_BYTES, advice))
    return checks


def check_gpu() -> list[Check]:
    """Say whether PyTorch finds a GPU, and whether one is there that it does not find."""
    try:
        import torch
    except (ImportError, OSError):
        torch = None
    if torch is not None and torch.cuda.is_available():
        n = torch.cuda.device_count()
        info = [torch.cuda.get_device_properties(i) for i in range(n)]
        found = ", ".join(f"{f.name} ({f.total_memory / GIB:.0f} GiB)" for f in info)
        return [_check("machine", "GPU", "ok", found)]
    if Path("/proc/driver/nvidia/version").exists() and torch is not None:
        advice = "install the PyTorch build for this driver (pytorch.org/get-started)."
        found = f"a driver is there, but PyTorch {torch.__version__} finds no GPU"
        return [_check("machine", "GPU", "warning", found, advice)]
    return [_check("machine", "GPU", "ok", "none; networks train on the CPU")]


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    free = min([int(memory.available), *_group_bytes()])
    return _amount(
        "memory", free, MEMORY_BYTES, "stop other programs, or give the container or job more."
    )


def _group_bytes() -> Iterator[int]:
    """What a container's limit leaves; psutil sees the whole machine."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit.isdigit():
            yield max(0, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return


def _amount(name: str, n_bytes: int, limits: tuple[int, int], advice: str) -> Check:
    least, enough = limits
    status: Status = "problem" if n_bytes < least else "warning" if n_bytes < enough else "ok"
    found = f"{n_bytes / GIB:.1f} GiB free"
    return _check("machine", name, status, found, "" if status == "ok" else advice)


def _check(area: str, name: str, status: Status, found: str, advice: str = "") -> Check:
    return Check(area=area, name=name, status=status, found=found, advice=advice)


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
        listing = list_source(uri, requested=wished, options=options)
        with listing.store.open(listing.entries[0].path) as file:
            file.read(1024)
    except FileNotFoundError:
        advice = "check the spelling; a worker sees its own disk, not yours."
        return [_storage_check(name, "problem", "nothing is there", advice)]
    except Exception as exc:  # noqa: BLE001 - each driver of a store has errors of its own
        return [_storage_check(name, "problem", _said(exc), MEND)]
    n_bytes = sum(entry.n_bytes for entry in listing.entries)
    found = f"{len(listing.entries)} files ({listing.format}), {n_bytes / 2**20:.1f} MiB, readable"
    return [_storage_check(name, "ok", found), *_image_extras(listing)]


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
        return [_storage_check(name, "problem", _said(exc), MEND)]
    there = f"version {versions[-1]} is there" if versions else "nothing published yet"
    found = f"can be written, read and deleted; {there}"
    checks = [_storage_check(name, "ok", found)]
    if held:
        text = "honoured: several runs may publish at the same time"
        return [*checks, _storage_check("write only where none is", "ok", text)]
    text = "not honoured: the store overwrites"
    advice = "let only one run at a time publish here (the deployments' concurrency limit does)."
    return [*checks, _storage_check("write only where none is", "warning", text, advice)]


def check_apart(source: str, dest: str) -> list[Check]:
    """Say so where source and destination lie inside one another: a run would read what it wrote."""
    for outer, inner in ((source, dest), (dest, source)):
        if contains(outer, inner):
            found = f"{inner} lies inside {outer}"
            return [_storage_check("apart", "problem", found, "choose a folder beside the source.")]
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
    return [_storage_check("kind", "ok", "images: the extras images and torch are needed")]


def _said(exc: Exception) -> str:
    return str(exc) if isinstance(exc, AugmentError) else f"{type(exc).__name__}: {exc}"


def _storage_check(name: str, status: Status, found: str, advice: str = "") -> Check:
    return Check(area="storage", name=name, status=status, found=found, advice=advice)


START = "start one with `prefect server start`, then `prefect config set PREFECT_API_URL=…/api`."
POOL = "local-process"


@dataclass
class Block:
    """A storage block that was looked for, and what it holds; never printed."""

    options: dict[str, Any] = field(default_factory=dict, repr=False)
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether it was asked for and cannot be used."""
        return any(check.status == "problem" for check in self.checks)


def check_prefect() -> list[Check]:
    """Look at the API, and where one is set at its work pools and workers."""
    settings = get_current_settings()
    url = settings.api.url
    if not url:
        if settings.server.ephemeral.enabled:
            found = "none set; each run starts one of its own and stops it at its end"
            return [_prefect_check("API", "warning", found, f"for schedules and the form, {START}")]
        return [_prefect_check("API", "problem", "none set, and none may be started", START)]
    try:
        with get_client(sync_client=True) as client:
            refused = client.api_healthcheck()
            if refused is not None:
                raise refused
            version = client.api_version()
            return [_server(url, version), *_work_pools(client)]
    except (httpx.HTTPError, PrefectHTTPStatusError, RuntimeError, OSError) as exc:
        found = f"{url} does not answer: {type(exc).__name__}: {exc}"
        advice = f"check PREFECT_API_URL, or {START}"
        return [_prefect_check("API", "problem", found, advice)]


def load_block(name: str) -> Block:
    """Load the storage block; none where no name is given."""
    if not name:
        return Block()
    try:
        return Block(storage_options(name), [_prefect_check(f"block {name}", "ok", "loaded")])
    except ParameterError as exc:
        return Block(
            checks=[
                _prefect_check(f"block {name}", "problem", str(exc), "save it, or name another.")
            ]
        )
    except (httpx.HTTPError, PrefectHTTPStatusError, RuntimeError) as exc:
        found = f"cannot be looked up: {type(exc).__name__}"
        return Block(
            checks=[_prefect_check(f"block {name}", "problem", found, "mend the API first.")]
        )


def _server(url: str, version: str) -> Check:
    found = f"{url} answers, version {version}"
    if version.split(".")[:2] == prefect_version.split(".")[:2]:
        return _prefect_check("API", "ok", found)
    advice = f"install the server's version here, or {prefect_version} there."
    return _prefect_check("API", "warning", f"{found}; {prefect_version} is installed here", advice)


def _work_pools(client: SyncPrefectClient) -> list[Check]:
    pools = [pool for pool in client.read_work_pools() if pool.type != "prefect:managed"]
    if not pools:
        advice = f"prefect work-pool create {POOL} --type process"
        return [
            _prefect_check("work pools", "warning", "none: deployments have nowhere to run", advice)
        ]
    return [_work_pool(client, pool.name, pool.type, pool.is_paused) for pool in pools]


def _work_pool(client: SyncPrefectClient, name: str, kind: str, paused: bool) -> Check:
    workers = client.read_workers_for_work_pool(name)
    n_online = sum(str(getattr(w.status, "value", w.status)) == "ONLINE" for w in workers)
    if paused:
        advice = f"prefect work-pool resume {name}"
        return _prefect_check(f"work pool {name}", "warning", f"{kind}, paused", advice)
    if not n_online:
        advice = f"prefect worker start --pool {name}"
        return _prefect_check(
            f"work pool {name}", "warning", f"{kind}, no worker is online", advice
        )
    return _prefect_check(f"work pool {name}", "ok", f"{kind}, {n_online} online")


def _prefect_check(name: str, status: Status, found: str, advice: str = "") -> Check:
    return Check(area="prefect", name=name, status=status, found=found, advice=advice)
