"""The folders stay such that a newcomer finds things: few modules in each, none a slice of another."""

import ast
import importlib
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "prefect_augment"
MOST_MODULES, MOST_AT_THE_ROOT, LEAST_LINES = 15, 6, 60


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def modules() -> dict[str, Path]:
    """Every module of the package; flows, tasks and genmodels come by their links."""
    files = [
        path
        for folder in [PACKAGE, *(p for p in PACKAGE.iterdir() if p.is_symlink())]
        for path in folder.rglob("*.py")
    ]
    return {module_name(path): path for path in files}


def test_a_folder_has_few_modules(modules: dict[str, Path]) -> None:
    counts = Counter(str(p.parent) for p in modules.values() if p.name != "__init__.py")
    root = counts.pop(str(PACKAGE))
    assert root <= MOST_AT_THE_ROOT
    assert {folder: n for folder, n in counts.items() if n > MOST_MODULES} == {}


@pytest.mark.slow
def test_no_small_module_is_a_slice_of_the_only_one_that_imports_it(
    modules: dict[str, Path],
) -> None:
    importers = defaultdict(set)
    for importer, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names)):
                    importers[name].add(importer)
    slices = {
        name
        for name, path in modules.items()
        if path.name != "__init__.py"
        and len(importers[name]) == 1
        and len(path.read_text().splitlines()) < LEAST_LINES
    }
    assert slices == set()


@pytest.mark.slow
def test_what_benchmarks_and_examples_import_is_there() -> None:
    root, package = PACKAGE.parents[1], "prefect_augment"
    for path in (*root.glob("benchmarks/*.py"), *root.glob("examples/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(package):
                for name in node.names:
                    there = hasattr(importlib.import_module(str(node.module)), name.name)
                    assert there, f"{path}:{node.lineno}: {name.name}"


def test_every_folder_has_its_line_in_the_layers(modules: dict[str, Path]) -> None:
    settings = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]
    known = {name.strip() for line in layers["layers"] for name in line.split("|")}
    there = {name.split(".")[1] for name in modules if name.count(".")}
    assert layers["exhaustive"]
    assert there == known
