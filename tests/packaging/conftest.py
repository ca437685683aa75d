"""The built wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built the way a release is: a source distribution, then the wheel out of that."""
    source = tmp_path_factory.mktemp("source") / "repository"
    source.mkdir()
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(repository / name, source)
    for name in ["src", "flows", "tasks", "genmodels"]:
        # Links stay links: whether setuptools follows them is the question.
        shutil.copytree(
            repository / name,
            source / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"],
        cwd=source,
        check=True,
        capture_output=True,
        text=True,
    )
    (path,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(path)
