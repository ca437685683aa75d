"""Imports stay light and point one way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "albumentations", "cv2"}
NOT_FOR_THE_FORM = HEAVY | {"prefect", "pandas", "sklearn", "imblearn", "scipy", "matplotlib"}

FLOWS = [
    "prefect_augment.flows.rebalance",
    "prefect_augment.flows.evaluate",
    "prefect_augment.flows.latents",
]

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "prefect_augment"
FOLDERS = sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))
LIBRARY = [name for name in FOLDERS if name not in {"cli", "flows", "tasks"}]


def loaded_by(module: str) -> set[str]:
    """Top-level packages in memory once ``module`` is imported into a new interpreter."""
    return loaded_after(f"import {module}")


def loaded_after(statements: str) -> set[str]:
    code = (
        f"{statements}\nimport sys, json\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    return set(json.loads(printed_by(code).splitlines()[-1]))


def printed_by(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["prefect_augment", "prefect_augment.params"])
def test_package_and_parameters_load_no_heavy_library(module: str) -> None:
    """A form is built, and a YAML file checked, on a machine that could not run the job."""
    assert loaded_by(module) & NOT_FOR_THE_FORM == set()


def loaded_one_after_another(steps: dict[str, str]) -> dict[str, set[str]]:
    """What is in memory after each of these statements, in one new interpreter."""
    shown = "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    code = "\n".join(f"{step}\nimport sys, json\n{shown}" for step in steps.values())
    lines = printed_by(code).splitlines()[-len(steps) :]
    return {name: set(json.loads(line)) for name, line in zip(steps, lines, strict=True)}


@pytest.mark.slow
def test_flows_load_neither_torch_nor_albumentations() -> None:
    loaded = loaded_by(", ".join(FLOWS))
    assert "prefect" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.slow
def test_a_run_over_a_table_loads_no_torch(tmp_path: Path) -> None:
    """It costs two seconds and 200 MB, and neither trees nor the comparison of a table use it."""
    loaded = loaded_after(
        "from prefect_augment.flows.rebalance import rebalance\n"
        "from prefect_augment.params import Budget, Destination, TreesModel\n"
        f"to = Destination(uri={str(tmp_path)!r})\n"
        "rebalance.fn(destination=to, model=TreesModel(), budget=Budget(steps=20))"
    )
    assert "sklearn" in loaded
    assert loaded & HEAVY == set()


@pytest.fixture(scope="module")
def loaded_by_folder() -> dict[str, set[str]]:
    """What is in memory once every module of a folder, and of those before it, is imported."""
    steps = {}
    for folder in LIBRARY:
        files = sorted((PACKAGE / folder).rglob("[a-z]*.py"))
        modules = [".".join(f.relative_to(PACKAGE).with_suffix("").parts) for f in files]
        # A module that needs an extra is left out where the extra is not installed.
        steps[folder] = "\n".join(
            f"try:\n import prefect_augment.{module}\n"
            f"except ModuleNotFoundError as exc:\n assert exc.name in {HEAVY}, exc\n"
            for module in [folder, *modules]
        )
    return loaded_one_after_another(steps)


@pytest.mark.slow
@pytest.mark.parametrize("folder", LIBRARY)
def test_library_below_the_tasks_does_not_load_prefect(
    folder: str, loaded_by_folder: dict[str, set[str]]
) -> None:
    """Every step works in a notebook or under another orchestrator."""
    assert "prefect" not in loaded_by_folder[folder]


def test_help_of_the_command_loads_no_heavy_library() -> None:
    """Nor what its commands need: help is there at once."""
    statements = (
        "import contextlib, sys\n"
        "from prefect_augment.cli.app import main\n"
        "sys.argv = ['prefect-augment', '--help']\n"
        "with contextlib.suppress(SystemExit):\n main()"
    )
    assert loaded_after(statements) & (NOT_FOR_THE_FORM | {"pyarrow"}) == set()


def test_imports_point_to_lower_layers_and_prefect_stays_on_top(repository: Path) -> None:
    """The contracts stand in pyproject.toml."""
    # import-linter's command by its function, so that no script has to be on the path.
    command = "from importlinter.cli import lint_imports_command as command; command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(repository / "src"), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
