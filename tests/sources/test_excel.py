"""Workbooks as sources."""

import zipfile
from pathlib import Path
from typing import Any

import pytest

from prefect_augment.errors import InputError
from prefect_augment.params import Source
from prefect_augment.sources.discovery import list_source
from prefect_augment.sources.open import reader_of

openpyxl = pytest.importorskip("openpyxl")
pytest.importorskip("fastexcel", reason="the extra 'excel'")


def workbook(path: Path, **sheets: list[list[Any]]) -> str:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return str(path)


def read(uri: str) -> tuple[list[dict[str, Any]], list[str]]:
    listing = list_source(uri, requested="auto", options=None)
    rows, notes = [], []
    for entry in listing.entries:
        with listing.open(entry) as file:
            for batch in reader_of(listing)(file, name=entry.path, source=Source(uri=uri)):
                rows += batch.table.to_pylist()
                notes += batch.notes
    return rows, notes


HEAD = ["width", "kind"]


def test_types_go_by_all_cells(tmp_path: Path) -> None:
    rows = [HEAD, *([i, "a"] for i in range(1500)), [2.5, "b"], [None, "b"]]
    found, notes = read(workbook(tmp_path / "in.xlsx", one=rows))
    assert len(found) == 1502
    assert not notes
    assert found[-2:] == [{"width": 2.5, "kind": "b"}, {"width": None, "kind": "b"}]


def test_the_first_sheet_is_read_unless_one_is_named(tmp_path: Path) -> None:
    uri = workbook(tmp_path / "in.xlsx", north=[HEAD, [1, "a"]], south=[HEAD, [2, "b"]])
    found, notes = read(uri)
    assert found == [{"width": 1.0, "kind": "a"}]
    assert notes == ["sheet 'north' was read, not 'south'; name another behind a #"]
    assert read(f"{uri}#south") == ([{"width": 2.0, "kind": "b"}], [])
    with pytest.raises(InputError, match=r"in.xlsx has no sheet 'suoth'; did you mean 'south'"):
        read(f"{uri}#suoth")


def test_a_part_of_what_has_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a,kind\n1,x\n")
    with pytest.raises(InputError, match="CSV files, which have no parts; leave out the # and 'x'"):
        read(f"{tmp_path}/in.csv#x")
    (tmp_path / "odd#name.csv").write_text("a,kind\n1,x\n")
    assert read(f"{tmp_path}/odd#name.csv")[0] == [{"a": 1, "kind": "x"}]


def test_an_empty_sheet_and_a_bomb_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in\.xlsx"):
        read(workbook(tmp_path / "in.xlsx", one=[]))
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("xl/worksheets/sheet1.xml", b"")
        parts.filelist[0].file_size = (4 << 30) - 1
    with pytest.raises(InputError, match="decompression bombs"):
        read(str(tmp_path / "bomb.xlsx"))
