"""Checks of ``doctor``: installation, machine, storage and Prefect.

Each function returns :class:`Check` objects: the finding, whether it suffices, and what to do otherwise; none raises.
Probes that are written are removed. Options may hold secrets; they never appear in a check.
"""

import contextlib
import importlib
import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
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
from prefect_augment.schema import Result
from prefect_augment.sources.discovery import Listing, list_source
from prefect_augment.storage import Store, contains, list_versions, open_store
from prefect_augment.tasks._blocks import storage_options

Status = Literal["ok", "warning", "problem"]

DISTRIBUTION = "prefect-augment"
GIB = 2**30
# Below the first any run is likely to fail, below the second a larger one.
MEMORY_BYTES = (GIB // 2, 2 * GIB)
DISK_BYTES = (GIB // 4, 2 * GIB)
# Extra -> modules that it brings, and what it is for.
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "torch": (("torch",), "image data and neural networks"),
    "images": (("albumentations", "cv2", "PIL"), "image data"),
    "encoder": (("onnx", "onnxruntime"), "a pretrained encoder of images"),
    "s3": (("s3fs",), "s3:// locations"),
    "gcs": (("gcsfs",), "gs:// locations"),
    "azure": (("adlfs",), "az:// and abfs:// locations"),
}


class Check(Result):
    """The result of one check."""

    area: str
    name: str
    status: Status
    finding: str
    advice: str = ""


def worst(checks: list[Check]) -> Status:
    """Return the worst status; ``ok`` without checks."""
    order: tuple[Status, ...] = ("ok", "warning", "problem")
    return max((check.status for check in checks), key=order.index, default="ok")


def check_all(source: str, dest: str, block: str) -> list[Check]:
    """Run all checks; a source and a destination are checked if named."""
    loaded = load_block(block)
    storage: list[Check] = []
    if source and not loaded.failed:
        storage += check_source(source, options=loaded.options)
    if dest and not loaded.failed:
        storage += check_destination(dest, options=loaded.options)
    if source and dest:
        storage += check_apart(source, dest)
    needed = needed_extras(source, dest, storage)
    return [
        *check_python(), *check_libraries(), *check_extras(needed), *check_prefect(),
        *loaded.checks, *check_gpu(), *check_machine(dest), *storage,
    ]  # fmt: skip


# --- what is installed ------------------------------------------------------------------------


def check_python(version: str = "") -> list[Check]:
    """Compare Python's version, by default the running one's, with the package's declaration."""
    version = version or platform.python_version()
    required = _declared("Requires-Python")
    if not required or SpecifierSet(required).contains(version, prereleases=True):
        return [_check("installed", "Python", "ok", version)]
    advice = f"make an environment with Python {required}."
    return [_check("installed", "Python", "problem", version, advice)]


def check_libraries() -> list[Check]:
    """Compare this package and all that it requires with the declared ranges."""
    try:
        own = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        advice = "install it with pip, or the versions of its libraries cannot be checked."
        text = "imported from a folder, not installed"
        return [_check("installed", DISTRIBUTION, "warning", text, advice)]
    always = ("prefect", "fastapi")  # their versions often conflict
    others = [_library(r.name) for r in _requirements() if r.name not in always]
    bad = [check for check in others if check.status != "ok"]
    text = f"{own} in {Path(__file__).parents[1]}"
    return [
        _check("installed", DISTRIBUTION, "ok", text),
        *(_library(name) for name in always),
        *(bad or [_check("installed", "libraries", "ok", f"{len(others)}, all in range")]),
    ]


def check_extras(needed: set[str] | None = None) -> list[Check]:
    """Check which extras can be imported; a missing one of ``needed`` is a problem."""
    return [_extra(extra, needed=extra in (needed or set())) for extra in EXTRAS]


def _declared(field: str) -> str:
    try:
        return str(metadata.metadata(DISTRIBUTION)[field] or "")
    except metadata.PackageNotFoundError:
        return ""


def _requirements() -> list[Requirement]:
    requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    return [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]


def _library(name: str) -> Check:
    required = next((r.specifier for r in _requirements() if r.name == name), SpecifierSet())
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "not installed"
    if version != "not installed" and required.contains(version, prereleases=True):
        return _check("installed", name, "ok", version)
    text = f"{version}; {required} is needed"
    return _check("installed", name, "problem", text, f"pip install '{name}{required}'")


def _extra(extra: str, *, needed: bool) -> Check:
    modules, purpose = EXTRAS[extra]
    # Else the import of albumentations queries the package index.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    missing, broken = [], []
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            missing.append(name)
        except (ImportError, OSError) as exc:  # a shared library is missing
            broken.append(f"{name} does not load: {exc}")
    name = f"extra {extra}"
    install = f"pip install '{DISTRIBUTION}[{extra}]'"
    if broken:
        advice = f"install what it names, or again: {install}"
        return _check("installed", name, "problem", "; ".join(broken), advice)
    if not missing:
        versions = ", ".join(f"{m} {_module_version(m)}".strip() for m in modules)
        return _check("installed", name, "ok", versions)
    is_partial = len(missing) < len(modules)
    status: Status = "problem" if needed else "warning" if is_partial else "ok"
    text = f"{', '.join(missing)} not installed; needed for {purpose} only"
    return _check("installed", name, status, text, install)


def _module_version(module: str) -> str:
    return str(getattr(importlib.import_module(module), "__version__", ""))


# --- the machine ------------------------------------------------------------------------------


def check_machine(*folders: str) -> list[Check]:
    """Check the usable memory, and the disks of the temporary folder and of local ``folders``."""
    checks = [_memory()]
    seen = set()
    local = [f for f in folders if f and "://" not in f]
    for folder in [tempfile.gettempdir(), *local]:
        path = Path(folder).expanduser().resolve()
        # A missing folder will be made on the disk of its nearest existing parent.
        path = next(p for p in [path, *path.parents] if p.is_dir())
        device = path.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(path).free
        advice = "free some space, or choose another disk (TMPDIR for temporary files)."
        checks.append(_amount(f"disk of {path}", free, DISK_BYTES, advice))
    return checks


def check_gpu() -> list[Check]:
    """Check whether PyTorch finds a GPU, or misses one whose driver is installed."""
    try:
        import torch
    except (ImportError, OSError):
        torch = None
    if torch is not None and torch.cuda.is_available():
        n = torch.cuda.device_count()
        info = [torch.cuda.get_device_properties(i) for i in range(n)]
        text = ", ".join(f"{f.name} ({f.total_memory / GIB:.0f} GiB)" for f in info)
        return [_check("machine", "GPU", "ok", text)]
    if Path("/proc/driver/nvidia/version").exists() and torch is not None:
        advice = "install the PyTorch build for this driver (pytorch.org/get-started)."
        text = f"a driver is installed, but PyTorch {torch.__version__} finds no GPU"
        return [_check("machine", "GPU", "warning", text, advice)]
    return [_check("machine", "GPU", "ok", "none; networks train on the CPU")]


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    free = min([int(memory.available), *_group_bytes()])
    advice = "stop other programs, or give the container or job more."
    return _amount("memory", free, MEMORY_BYTES, advice)


def _group_bytes() -> Iterator[int]:
    """Yield what a container's limit leaves; psutil sees the whole machine."""
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
    text = f"{n_bytes / GIB:.1f} GiB free"
    return _check("machine", name, status, text, "" if status == "ok" else advice)


def _check(area: str, name: str, status: Status, finding: str, advice: str = "") -> Check:
    return Check(area=area, name=name, status=status, finding=finding, advice=advice)


# --- storage ----------------------------------------------------------------------------------

IMAGE_FORMATS = ("folder", "archive")
FIX = "fix what it names; credentials come from the environment or a Prefect block (--block)."
# The protocol of a URL -> the extra with its driver.
DRIVERS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
DRIVERS |= {"az": "azure", "abfs": "azure", "abfss": "azure"}


def check_source(uri: str, *, options: dict[str, Any] | None = None) -> list[Check]:
    """List a source and read the beginning of its first file."""
    name = f"source {uri}"
    try:
        listing = list_source(uri, requested="auto", options=options)
        with listing.open(listing.entries[0]) as file:
            file.read(1024)
    except FileNotFoundError:
        advice = "check the spelling; a worker sees its own disk, not yours."
        return [_storage_check(name, "problem", "nothing is there", advice)]
    except Exception as exc:  # noqa: BLE001 - each driver of a store has errors of its own
        return [_storage_check(name, "problem", _message(exc), FIX)]
    n_bytes = sum(entry.n_bytes for entry in listing.entries)
    n_files = len(listing.entries)
    text = f"{n_files} file{'s' * (n_files != 1)} ({listing.format}), {n_bytes / 2**20:.1f} MiB, readable"
    return [_storage_check(name, "ok", text), *_image_extras(listing)]


def check_destination(uri: str, *, options: dict[str, Any] | None = None) -> list[Check]:
    """Write, read and delete a probe, and test whether the store honours "put only if absent"."""
    name = f"destination {uri}"
    try:
        store = open_store(uri, options=options)
        missing = _missing_folders(store)
        try:
            held = _probe(store)
        finally:
            for folder in missing:
                with contextlib.suppress(OSError):  # never made, or in use by others
                    folder.rmdir()
        versions = list_versions(store)
    except Exception as exc:  # noqa: BLE001 - each driver of a store has errors of its own
        return [_storage_check(name, "problem", _message(exc), FIX)]
    newest = f"version {versions[-1]} is the newest" if versions else "nothing published yet"
    text = f"can be written, read and deleted; {newest}"
    checks = [_storage_check(name, "ok", text)]
    if held:
        text = "honoured: several runs may publish at the same time"
        return [*checks, _storage_check("write only where none is", "ok", text)]
    text = "not honoured: the store overwrites"
    advice = "let only one run at a time publish here (the deployments' concurrency limit does)."
    return [*checks, _storage_check("write only where none is", "warning", text, advice)]


def check_apart(source: str, dest: str) -> list[Check]:
    """Check that source and destination do not contain one another: a run would read its own output."""
    for outer, inner in ((source, dest), (dest, source)):
        if contains(outer, inner):
            text = f"{inner} lies inside {outer}"
            return [_storage_check("apart", "problem", text, "choose a folder beside the source.")]
    return []


def needed_extras(source: str, dest: str, checks: list[Check]) -> set[str]:
    """Return the extras that these locations need, by protocol and content."""
    schemes = [uri.partition("://")[0] for uri in (source, dest)]
    needed = {DRIVERS[scheme] for scheme in schemes if scheme in DRIVERS}
    return needed | ({"images", "torch"} if any(c.name == "kind" for c in checks) else set())


def _probe(store: Store) -> bool:
    """Return whether "put only if absent" is honoured; raise if the probe fails."""
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
    """Return local folders that the probe will make, innermost first."""
    if not store.is_local:
        return []
    staging = Path(store.full("_staging"))
    return [folder for folder in [staging, *staging.parents] if not folder.exists()]


def _image_extras(listing: Listing) -> list[Check]:
    if listing.format not in IMAGE_FORMATS:
        return []
    return [_storage_check("kind", "ok", "images: the extras images and torch are needed")]


def _message(exc: Exception) -> str:
    return str(exc) if isinstance(exc, AugmentError) else f"{type(exc).__name__}: {exc}"


_storage_check = partial(_check, "storage")


# --- Prefect ----------------------------------------------------------------------------------

START = "start one with `prefect server start`, then `prefect config set PREFECT_API_URL=…/api`."
POOL = "local-process"


@dataclass
class Block:
    """The options of a storage block, which are never printed, and the check of it."""

    options: dict[str, Any] = field(default_factory=dict, repr=False)
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether it cannot be used."""
        return any(check.status == "problem" for check in self.checks)


def check_prefect() -> list[Check]:
    """Check the API and, if one is set, its work pools and workers."""
    settings = get_current_settings()
    url = settings.api.url
    if not url:
        if settings.server.ephemeral.enabled:
            text = "none set; each run starts one of its own and stops it at its end"
            return [_prefect_check("API", "warning", text, f"for schedules and the form, {START}")]
        return [_prefect_check("API", "problem", "none set, and none may be started", START)]
    try:
        with get_client(sync_client=True) as client:
            refused = client.api_healthcheck()
            if refused is not None:
                raise refused
            version = client.api_version()
            return [_server(url, version), *_work_pools(client)]
    except (httpx.HTTPError, PrefectHTTPStatusError, RuntimeError, OSError) as exc:
        text = f"{url} does not answer: {type(exc).__name__}: {exc}"
        advice = f"check PREFECT_API_URL, or {START}"
        return [_prefect_check("API", "problem", text, advice)]


def load_block(name: str) -> Block:
    """Load the storage block; empty without a name."""
    if not name:
        return Block()
    check = partial(_prefect_check, f"block {name}")
    try:
        return Block(storage_options(name), [check("ok", "loaded")])
    except ParameterError as exc:
        return Block(checks=[check("problem", str(exc), "save it, or name another.")])
    except (httpx.HTTPError, PrefectHTTPStatusError, RuntimeError) as exc:
        text = f"cannot be looked up: {type(exc).__name__}"
        return Block(checks=[check("problem", text, "fix the API first.")])


def _server(url: str, version: str) -> Check:
    text = f"{url} answers, version {version}"
    if version.split(".")[:2] == prefect_version.split(".")[:2]:
        return _prefect_check("API", "ok", text)
    advice = f"install the server's version here, or {prefect_version} there."
    return _prefect_check("API", "warning", f"{text}; {prefect_version} is installed here", advice)


def _work_pools(client: SyncPrefectClient) -> list[Check]:
    pools = [pool for pool in client.read_work_pools() if pool.type != "prefect:managed"]
    if not pools:
        text = "none: deployments have nowhere to run"
        advice = f"prefect work-pool create {POOL} --type process"
        return [_prefect_check("work pools", "warning", text, advice)]
    return [_work_pool(client, pool.name, pool.type, pool.is_paused) for pool in pools]


def _work_pool(client: SyncPrefectClient, name: str, kind: str, paused: bool) -> Check:
    workers = client.read_workers_for_work_pool(name)
    n_online = sum(str(getattr(w.status, "value", w.status)) == "ONLINE" for w in workers)
    check = partial(_prefect_check, f"work pool {name}")
    if paused:
        return check("warning", f"{kind}, paused", f"prefect work-pool resume {name}")
    if not n_online:
        advice = f"prefect worker start --pool {name}"
        return check("warning", f"{kind}, no worker is online", advice)
    return check("ok", f"{kind}, {n_online} online")


_prefect_check = partial(_check, "prefect")
