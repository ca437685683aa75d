"""What a run needs of this machine, checked without Prefect and without a run.

Each function gives :class:`Check` objects: what was found, whether that is enough, and what to do where
it is not. Nothing here raises because of what it finds. Storage is in :mod:`.doctor_storage`.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from prefect_augment.datatypes import Fact

__all__ = [
    "Check",
    "Status",
    "check_extras",
    "check_gpu",
    "check_libraries",
    "check_machine",
    "check_python",
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


class Check(Fact):
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
        facts = [torch.cuda.get_device_properties(i) for i in range(n)]
        found = ", ".join(f"{f.name} ({f.total_memory / GIB:.0f} GiB)" for f in facts)
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
