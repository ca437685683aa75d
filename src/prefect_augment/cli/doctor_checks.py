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
from collections.abc import Callable, Collection, Iterator
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, ParamSpec

import httpx
import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from prefect import __version__ as prefect_version
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

from prefect_augment.errors import AugmentError, ParameterError
from prefect_augment.schema import Result
from prefect_augment.sources.discovery import list_source
from prefect_augment.storage import Store, contains, drivers, list_versions, open_store
from prefect_augment.tasks._blocks import storage_options

P = ParamSpec("P")
Status = Literal["ok", "warning", "problem"]
Row = tuple[str, Status, str, str]  # name, status, finding, advice

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


def _in_area(area: str) -> Callable[[Callable[P, Iterator[Row]]], Callable[P, list[Check]]]:
    """Make a function that yields rows return them as checks of an area."""

    def decorate(rows: Callable[P, Iterator[Row]]) -> Callable[P, list[Check]]:
        @wraps(rows)
        def checks(*args: P.args, **kwargs: P.kwargs) -> list[Check]:
            return [
                Check(area=area, name=name, status=status, finding=finding, advice=advice)
                for name, status, finding, advice in rows(*args, **kwargs)
            ]

        return checks

    return decorate


def worst(checks: list[Check]) -> Status:
    """Return the worst status; ``ok`` without checks."""
    order: tuple[Status, ...] = ("ok", "warning", "problem")
    return max((check.status for check in checks), key=order.index, default="ok")


def check_all(source: str, dest: str, block: str) -> list[Check]:
    """Run all checks; a source and a destination are checked if named."""
    options, loaded = load_block(block)
    can_look = worst(loaded) != "problem"
    storage: list[Check] = []
    if source and can_look:
        storage += check_source(source, options=options)
    if dest and can_look:
        storage += check_destination(dest, options=options)
    if source and dest:
        storage += check_apart(source, dest)
    needed = needed_extras(source, dest, storage)
    return [
        *check_python(), *check_libraries(), *check_extras(needed), *check_prefect(),
        *loaded, *check_gpu(), *check_machine(dest), *storage,
    ]  # fmt: skip


# --- what is installed ------------------------------------------------------------------------


@_in_area("installed")
def check_python(version: str = "") -> Iterator[Row]:
    """Compare Python's version, by default the running one's, with the package's declaration."""
    version, required = version or platform.python_version(), ""
    with contextlib.suppress(metadata.PackageNotFoundError):
        required = str(metadata.metadata(DISTRIBUTION)["Requires-Python"] or "")
    if SpecifierSet(required).contains(version, prereleases=True):
        yield "Python", "ok", version, ""
    else:
        yield "Python", "problem", version, f"make an environment with Python {required}."


@_in_area("installed")
def check_libraries() -> Iterator[Row]:
    """Compare this package and all that it requires with the declared ranges."""
    try:
        own = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        advice = "install it with pip, or the versions of its libraries cannot be checked."
        yield DISTRIBUTION, "warning", "imported from a folder, not installed", advice
        return
    requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    needed = {
        r.name: r.specifier
        for r in requirements
        if r.marker is None or r.marker.evaluate({"extra": ""})
    }
    always = ("prefect", "fastapi")  # their versions often conflict
    yield DISTRIBUTION, "ok", f"{own} in {Path(__file__).parents[1]}", ""
    yield from (_library(name, needed.pop(name, SpecifierSet())) for name in always)
    others = [_library(name, required) for name, required in needed.items()]
    bad = [row for row in others if row[1] != "ok"]
    yield from bad or [("libraries", "ok", f"{len(others)}, all in range", "")]


def _library(name: str, required: SpecifierSet) -> Row:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "not installed"
    if version != "not installed" and required.contains(version, prereleases=True):
        return name, "ok", version, ""
    return name, "problem", f"{version}; {required} is needed", f"pip install '{name}{required}'"


@_in_area("installed")
def check_extras(needed: Collection[str] = ()) -> Iterator[Row]:
    """Check which extras can be imported; a missing one of ``needed`` is a problem."""
    # Else the import of albumentations queries the package index.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    for extra, (modules, purpose) in EXTRAS.items():
        versions, missing, broken = [], [], []
        for name in modules:
            try:
                module = importlib.import_module(name)
                versions.append(f"{name} {getattr(module, '__version__', '')}".strip())
            except ModuleNotFoundError:
                missing.append(name)
            except (ImportError, OSError) as exc:  # a shared library is missing
                broken.append(f"{name} does not load: {exc}")
        name, install = f"extra {extra}", f"pip install '{DISTRIBUTION}[{extra}]'"
        text = f"{', '.join(missing)} not installed; needed for {purpose} only"
        if broken:
            advice = f"install what it names, or again: {install}"
            yield name, "problem", "; ".join(broken), advice
        elif not missing:
            yield name, "ok", ", ".join(versions), ""
        elif extra in needed:
            yield name, "problem", text, install
        else:
            yield name, "warning" if versions else "ok", text, install


# --- the machine ------------------------------------------------------------------------------


@_in_area("machine")
def check_machine(*folders: str) -> Iterator[Row]:
    """Check the usable memory, and the disks of the temporary folder and of local ``folders``."""
    free = min([int(psutil.virtual_memory().available), *_group_bytes()])
    advice = "stop other programs, or give the container or job more."
    yield _amount("memory", free, MEMORY_BYTES, advice)
    seen = set()
    local = [f for f in folders if f and "://" not in f]
    for folder in [tempfile.gettempdir(), *local]:
        path = Path(folder).expanduser().resolve()
        # A missing folder will be made on the disk of its nearest existing parent.
        path = next(p for p in [path, *path.parents] if p.is_dir())
        if path.stat().st_dev not in seen:
            seen.add(path.stat().st_dev)
            advice = "free some space, or choose another disk (TMPDIR for temporary files)."
            yield _amount(f"disk of {path}", shutil.disk_usage(path).free, DISK_BYTES, advice)


@_in_area("machine")
def check_gpu() -> Iterator[Row]:
    """Check whether PyTorch finds a GPU, or misses one whose driver is installed."""
    try:
        import torch
    except (ImportError, OSError):
        torch = None
    if torch is not None and torch.cuda.is_available():
        info = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        yield "GPU", "ok", ", ".join(f"{f.name} ({f.total_memory / GIB:.0f} GiB)" for f in info), ""
    elif Path("/proc/driver/nvidia/version").exists() and torch is not None:
        advice = "install the PyTorch build for this driver (pytorch.org/get-started)."
        text = f"a driver is installed, but PyTorch {torch.__version__} finds no GPU"
        yield "GPU", "warning", text, advice
    else:
        yield "GPU", "ok", "none; networks train on the CPU", ""


def _group_bytes() -> Iterator[int]:
    """Yield what a container's limit leaves; psutil sees the whole machine."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit.isdigit():
            yield max(0, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return


def _amount(name: str, n_bytes: int, limits: tuple[int, int], advice: str) -> Row:
    least, enough = limits
    status: Status = "problem" if n_bytes < least else "warning" if n_bytes < enough else "ok"
    return name, status, f"{n_bytes / GIB:.1f} GiB free", "" if status == "ok" else advice


# --- storage ----------------------------------------------------------------------------------

IMAGE_FORMATS = ("folder", "archive")
FIX = "fix what it names; credentials come from the environment or a Prefect block (--block)."


@_in_area("storage")
def check_source(uri: str, *, options: dict[str, Any] | None = None) -> Iterator[Row]:
    """List a source and read the beginning of its first file."""
    name = f"source {uri}"
    try:
        listing = list_source(uri, requested="auto", options=options)
        with listing.open(listing.entries[0]) as file:
            file.read(1024)
    except FileNotFoundError:
        advice = "check the spelling; a worker sees its own disk, not yours."
        yield name, "problem", "nothing is there", advice
    except Exception as exc:  # noqa: BLE001 - each driver of a store has errors of its own
        yield name, "problem", _message(exc), FIX
    else:
        size = f"{sum(entry.n_bytes for entry in listing.entries) / 2**20:.1f} MiB"
        n_files = len(listing.entries)
        text = f"{n_files} file{'s' * (n_files != 1)} ({listing.format}), {size}, readable"
        yield name, "ok", text, ""
        if listing.format in IMAGE_FORMATS:
            yield "kind", "ok", "images: the extras images and torch are needed", ""


@_in_area("storage")
def check_destination(uri: str, *, options: dict[str, Any] | None = None) -> Iterator[Row]:
    """Write, read and delete a probe, and test whether the store honours "put only if absent"."""
    name = f"destination {uri}"
    try:
        store = open_store(uri, options=options)
        held = _probe(store)
        versions = list_versions(store)
    except Exception as exc:  # noqa: BLE001 - each driver of a store has errors of its own
        yield name, "problem", _message(exc), FIX
        return
    newest = f"version {versions[-1]} is the newest" if versions else "nothing published yet"
    yield name, "ok", f"can be written, read and deleted; {newest}", ""
    name = "write only where none is"
    if held:
        yield name, "ok", "honoured: several runs may publish at the same time", ""
    else:
        advice = (
            "let only one run at a time publish here (the deployments' concurrency limit does)."
        )
        yield name, "warning", "not honoured: the store overwrites", advice


@_in_area("storage")
def check_apart(source: str, dest: str) -> Iterator[Row]:
    """Check that source and destination do not contain one another: a run would read its own output."""
    for outer, inner in ((source, dest), (dest, source)):
        if contains(outer, inner):
            text = f"{inner} lies inside {outer}"
            yield "apart", "problem", text, "choose a folder beside the source."
            return


def needed_extras(source: str, dest: str, checks: list[Check]) -> set[str]:
    """Return the extras that these locations need, by protocol and content."""
    schemes = [uri.partition("://")[0] for uri in (source, dest)]
    needed = {drivers.EXTRAS[scheme] for scheme in schemes if scheme in drivers.EXTRAS}
    return needed | ({"images", "torch"} if any(c.name == "kind" for c in checks) else set())


def _probe(store: Store) -> bool:
    """Return whether "put only if absent" is honoured; raise if the probe fails. It leaves no folder behind."""
    path = f"_staging/.probe-{uuid.uuid4().hex}"
    staging = Path(store.full("_staging"))
    new_folders = [p for p in (staging, *staging.parents) if store.is_local and not p.exists()]
    try:
        store.put_if_absent(path, b"first", look_first=False)
        held = not store.put_if_absent(path, b"second", look_first=False)
        if store.read(path) != (b"first" if held else b"second"):
            raise OSError("what was written is not what is read back")
    finally:
        try:
            store.delete(path)
        finally:
            for folder in new_folders:  # innermost first
                with contextlib.suppress(OSError):  # never made, or in use by others
                    folder.rmdir()
    if store.exists(path):
        raise OSError("an object that was deleted is still there")
    return held


def _message(exc: Exception) -> str:
    return str(exc) if isinstance(exc, AugmentError) else f"{type(exc).__name__}: {exc}"


# --- Prefect ----------------------------------------------------------------------------------

START = "start one with `prefect server start`, then `prefect config set PREFECT_API_URL=…/api`."
POOL = "local-process"


@_in_area("prefect")
def check_prefect() -> Iterator[Row]:
    """Check the API and, if one is set, its work pools and workers."""
    settings = get_current_settings()
    url = settings.api.url
    if not url and settings.server.ephemeral.enabled:
        text = "none set; each run starts one of its own and stops it at its end"
        yield "API", "warning", text, f"for schedules and the form, {START}"
        return
    if not url:
        yield "API", "problem", "none set, and none may be started", START
        return
    try:
        with get_client(sync_client=True) as client:
            refused = client.api_healthcheck()
            if refused is not None:
                raise refused
            rows = [_server(url, client.api_version()), *_work_pools(client)]
    except (httpx.HTTPError, PrefectHTTPStatusError, RuntimeError, OSError) as exc:
        text = f"{url} does not answer: {type(exc).__name__}: {exc}"
        rows = [("API", "problem", text, f"check PREFECT_API_URL, or {START}")]
    yield from rows


def load_block(name: str) -> tuple[dict[str, Any], list[Check]]:
    """Return the options of a storage block, which are never printed, and the check of it; none without a name."""
    if not name:
        return {}, []
    options: dict[str, Any] = {}
    status: Status = "problem"
    try:
        options = storage_options(name)
        status, finding, advice = "ok", "loaded", ""
    except ParameterError as exc:
        finding, advice = str(exc), "save it, or name another."
    except (httpx.HTTPError, PrefectHTTPStatusError, RuntimeError) as exc:
        finding, advice = f"cannot be looked up: {type(exc).__name__}", "fix the API first."
    check = Check(
        area="prefect", name=f"block {name}", status=status, finding=finding, advice=advice
    )
    return options, [check]


def _server(url: str, version: str) -> Row:
    text = f"{url} answers, version {version}"
    if version.split(".")[:2] == prefect_version.split(".")[:2]:
        return "API", "ok", text, ""
    advice = f"install the server's version here, or {prefect_version} there."
    return "API", "warning", f"{text}; {prefect_version} is installed here", advice


def _work_pools(client: SyncPrefectClient) -> Iterator[Row]:
    pools = [pool for pool in client.read_work_pools() if pool.type != "prefect:managed"]
    if not pools:
        advice = f"prefect work-pool create {POOL} --type process"
        yield "work pools", "warning", "none: deployments have nowhere to run", advice
    for pool in pools:
        workers = client.read_workers_for_work_pool(pool.name)
        n_online = sum(str(getattr(w.status, "value", w.status)) == "ONLINE" for w in workers)
        name = f"work pool {pool.name}"
        if pool.is_paused:
            yield name, "warning", f"{pool.type}, paused", f"prefect work-pool resume {pool.name}"
        elif not n_online:
            advice = f"prefect worker start --pool {pool.name}"
            yield name, "warning", f"{pool.type}, no worker is online", advice
        else:
            yield name, "ok", f"{pool.type}, {n_online} online", ""
