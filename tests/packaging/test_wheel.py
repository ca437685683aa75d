"""The wheel holds the whole package, although three of its rooms are links to the root."""

import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # the wheel is built


def package_files(repository: Path) -> set[str]:
    """Every module, template and marker of the package, seen through the links."""
    source = repository / "src"
    suffixes = {".py", ".typed", ".html", ".j2"}
    linked = (
        path
        # rglob does not follow links to folders on Python 3.13, so each room is walked by itself.
        for room in [source / "prefect_augment", *(source / "prefect_augment").iterdir()]
        if room.is_dir()
        for path in room.rglob("*")
    )
    return {
        path.relative_to(source).as_posix()
        for path in linked
        if path.is_file() and path.suffix in suffixes
    }


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile, repository: Path) -> None:
    expected = package_files(repository)
    # The three rooms behind the links are what a build loses silently.
    for room in ["flows", "tasks", "genmodels"]:
        assert f"prefect_augment/{room}/__init__.py" in expected
    assert expected - set(wheel.namelist()) == set()


def test_wheel_holds_nothing_beside_the_package(wheel: zipfile.ZipFile) -> None:
    """No top-level ``tasks`` or ``tests``: they would collide with those of other repositories."""
    roots = {name.split("/")[0] for name in wheel.namelist()}
    (metadata,) = (root for root in roots if root.endswith(".dist-info"))
    assert roots == {"prefect_augment", metadata}


def test_wheel_declares_the_command_and_the_prefect_collection(wheel: zipfile.ZipFile) -> None:
    (path,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    entry_points = ConfigParser()
    entry_points.read_string(wheel.read(path).decode())
    assert dict(entry_points["console_scripts"]) == {
        "prefect-augment": "prefect_augment.cli.app:main"
    }
    assert dict(entry_points["prefect.collections"]) == {"prefect_augment": "prefect_augment"}
