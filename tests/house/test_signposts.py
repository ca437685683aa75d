"""The picture of the folders and the table "where is …?" say what is there."""

import re
import runpy
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_picture_of_the_folders_is_drawn_from_the_imports_as_they_are(repository: Path) -> None:
    draw = runpy.run_path(str(repository / "docs" / "draw_folders.py"))["draw"]
    assert (repository / "docs" / "folders.svg").read_text() == draw(), "run make schema"


def test_what_the_table_of_places_names_is_there(repository: Path) -> None:
    page = (repository / "docs" / "architecture.md").read_text()
    table = page[page.index("## Where is") : page.index("## What travels")].splitlines()
    rows = [line for line in table if line.startswith("|")][2:]
    assert len(rows) == 15
    for row in rows:
        folder = ""
        for name in re.findall(r"`([\w/]+(?:/|\.py))`", row):
            package = repository / "src" / "prefect_augment"
            # A file without a folder lies in the one that was named before it.
            places = [repository / name, package / name, package / folder / name]
            assert any(place.exists() for place in places), name
            folder = name.rpartition("/")[0] or folder
