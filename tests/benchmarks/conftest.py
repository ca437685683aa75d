"""Helpers of benchmarks, which are scripts beside the package and not on the import path."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def disentanglement(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """MIG and DCI: `benchmarks/_disentanglement.py`."""
    return _helper("_disentanglement", repository, monkeypatch)


@pytest.fixture
def quality_cases(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Generators with a known fault: `benchmarks/_quality_cases.py`."""
    return _helper("_quality_cases", repository, monkeypatch)


@pytest.fixture
def shapes(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Pictures of shapes and their oracle: `benchmarks/_shapes.py`."""
    pytest.importorskip("PIL", reason="needs the images extra")
    return _helper("_shapes", repository, monkeypatch)


@pytest.fixture
def image_latents(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Strips between images: `benchmarks/_image_latents.py`."""
    pytest.importorskip("PIL", reason="needs the images extra")
    pytest.importorskip("torch", reason="needs the torch extra")
    return _helper("_image_latents", repository, monkeypatch)


@pytest.fixture
def evidence(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Many looks at one hold-out: `benchmarks/_evidence_looks.py`."""
    return _helper("_evidence_looks", repository, monkeypatch)


@pytest.fixture
def intervals(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Intervals where the truth is known: `benchmarks/evidence.py`."""
    return _helper("evidence", repository, monkeypatch)


def _helper(name: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return importlib.import_module(name)
