"""Every source that cannot be used is an error that says what was expected, found, and to be done."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import (
    InputError,
    LabelError,
    ParameterError,
    SchemaError,
    SourceChangedError,
    StorageError,
)
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import ColumnOverride, Source
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import open_store

N = 60


def make_table(**columns: Any) -> pa.Table:
    plain = {"x": np.random.default_rng(0).normal(size=N), "label": ["a", "b", "b"] * (N // 3)}
    return pa.table({**plain, **columns})


def put(folder: Path, table: pa.Table, name: str = "in.parquet") -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name)
    return Source(uri=str(folder), label="label")


def refuse(tmp_path: Path, source: Source, error: type[Exception], says: str) -> Exception:
    with pytest.raises(error, match=says) as caught:
        ingest(source, store=open_store(str(tmp_path / "out")), seed=0)
    assert (
        not list((tmp_path / "out").rglob("outcome.json")) if (tmp_path / "out").exists() else True
    )
    return caught.value


def changed(source: Source, **changes: Any) -> Source:
    return Source(**{**source.model_dump(), **changes})


# --- what is there ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("none", "no .parquet, .csv, .jsonl, .arrow or .xlsx file.*found nothing"),
        ("in", "found 1 other file.*source.format"),
        ("in/*.csv", "found nothing"),
    ],
)
def test_a_place_without_data(tmp_path: Path, place: str, says: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.md").write_text("x")
    refuse(tmp_path, Source(uri=str(tmp_path / place), label="y"), InputError, says)


LINEAGE = ("aug_id", "aug_weight", "AUG_Origin", "content_key", "aug_stratum")


@pytest.mark.parametrize(
    ("table", "error", "says"),
    [
        (make_table().slice(0, 0), InputError, "holds no usable record in 1 files"),
        (
            make_table(row=range(N), same=["s"] * N).drop_columns(["x"]),
            InputError,
            "no column to learn from.*'row' is identifier, 'same' is constant",
        ),
        *(
            (make_table(**{name: [1] * N}), SchemaError, f"lineage columns: '{name}'")
            for name in LINEAGE
        ),
    ],
    ids=["no records", "nothing to learn from", *LINEAGE],
)
def test_a_table_that_cannot_be_learnt_from(
    tmp_path: Path, table: pa.Table, error: type[Exception], says: str
) -> None:
    refuse(tmp_path, put(tmp_path / "in", table), error, says)


def test_formats_are_not_mixed(tmp_path: Path) -> None:
    source = put(tmp_path / "in", make_table())
    (tmp_path / "in" / "more.csv").write_text("x,label\n1,a\n")
    refuse(tmp_path, source, InputError, "holds 1 Parquet and 1 CSV files; a source has one format")
    assert (
        ingest(
            changed(source, format="parquet"), store=open_store(str(tmp_path / "out")), seed=0
        ).n_records
        == N
    )


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    source = put(tmp_path / "in", make_table())
    file = tmp_path / "in" / "in.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    refuse(tmp_path, source, InputError, "in.parquet cannot be read as Parquet")


@pytest.mark.parametrize("kind", ["append", "delete", "replace"])
def test_a_source_that_changes_while_it_is_read(tmp_path: Path, kind: str) -> None:
    """The second file changes after the listing, while the first is being read."""
    source = put(tmp_path / "in", make_table(), "1.parquet")
    put(tmp_path / "in", make_table(), "2.parquet")
    second = tmp_path / "in" / "2.parquet"

    def change(fraction: float, text: str) -> None:
        if text != "read 1.parquet":
            return
        if kind == "append":
            put(tmp_path / "in", pa.concat_tables([make_table(), make_table()]), "2.parquet")
        elif kind == "delete":
            second.unlink()
        else:
            later = second.stat().st_mtime + 5
            os.utime(second, (later, later))

    with pytest.raises(
        SourceChangedError, match=r"2\.parquet changed while it was read; run again"
    ):
        ingest(source, store=open_store(str(tmp_path / "out")), seed=0, on_progress=change)


def test_files_with_other_columns_or_types(tmp_path: Path) -> None:
    source = put(tmp_path / "in", make_table(), "1.parquet")
    put(tmp_path / "in", make_table(x=pa.array(["t"] * N)), "2.parquet")
    error = refuse(
        tmp_path,
        source,
        SchemaError,
        r"column 'x' is string in 2\.parquet and double in 1\.parquet",
    )
    assert (error.column, error.expected, error.found) == ("x", "double", "string")  # type: ignore[attr-defined]
    put(tmp_path / "in", make_table(extra=[1] * N), "2.parquet")
    refuse(
        tmp_path, source, SchemaError, r"2\.parquet has column 'extra', which 1\.parquet has not"
    )
    put(tmp_path / "in", make_table().drop_columns(["x"]), "2.parquet")
    refuse(tmp_path, source, SchemaError, r"2\.parquet lacks column 'x', which 1\.parquet has")


@pytest.mark.parametrize("inner", ["", "/sub", "/_staging/x"])
def test_a_destination_inside_the_source(tmp_path: Path, inner: str) -> None:
    source = put(tmp_path / "in", make_table())
    with pytest.raises(InputError, match="lies inside the source"):
        ingest(source, store=open_store(f"{tmp_path}/in{inner}"), seed=0)


def test_a_destination_beside_the_source_with_its_name_in_front(tmp_path: Path) -> None:
    source = put(tmp_path / "in", make_table())
    assert ingest(source, store=open_store(f"{tmp_path}/in-balanced"), seed=0).n_records == N


def test_a_source_inside_the_destination(tmp_path: Path) -> None:
    source = put(tmp_path / "out" / "raw", make_table())
    with pytest.raises(InputError, match="lies inside the destination"):
        ingest(source, store=open_store(str(tmp_path / "out")), seed=0)
    with pytest.raises(InputError, match="lies inside the destination"):
        ingest(
            changed(source, uri=f"{source.uri}/in.parquet"),
            store=open_store(str(tmp_path / "out")),
            seed=0,
        )


# --- columns ----------------------------------------------------------------------------------


def test_duplicate_column_names(tmp_path: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array([1, 2]), pa.array([3, 4]), pa.array(["a", "b"])], names=["x", "x", "label"]
    )
    refuse(tmp_path, put(tmp_path / "in", table), SchemaError, "more than one column named 'x'")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (
            {"holdout_column": "tset"},
            SchemaError,
            "holdout_column 'tset' is not a column.*did you mean 'test'",
        ),
        ({"group_column": "groop"}, SchemaError, "group_column 'groop' is not a column"),
        ({"group_column": "label"}, ParameterError, "'label' is the label"),
        ({"holdout_column": "label"}, ParameterError, "'label' is the label"),
        (
            {"holdout_column": "test"},
            InputError,
            "holdout_column 'test' holds 'maybe'; expected true, 1",
        ),
        ({"holdout_column": "never"}, InputError, "'never' marks no record as hold-out"),
        (
            {"columns": [ColumnOverride(name="z", kind="drop")]},
            ParameterError,
            "'z', which is not a column",
        ),
        (
            {"group_column": "test", "columns": [ColumnOverride(name="test", kind="drop")]},
            ParameterError,
            "cannot be dropped",
        ),
    ],
)
def test_parameters_that_name_the_wrong_column(
    tmp_path: Path, changes: dict[str, Any], error: type, says: str
) -> None:
    source = put(tmp_path / "in", make_table(test=["maybe", "test"] * (N // 2), never=[False] * N))
    refuse(tmp_path, changed(source, **changes), error, says)


# --- the label --------------------------------------------------------------------------------


def test_a_missing_label_column(tmp_path: Path) -> None:
    source = changed(put(tmp_path / "in", make_table()), label="labels")
    refuse(
        tmp_path,
        source,
        LabelError,
        r"'labels' is not in the source \(did you mean 'label'\?\).*'x', 'label'",
    )


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["a"] * N, "only the class 'a'"),
        ([None] * N, "has no value|no value in 0 records|no value"),
        ([f"id{i}" for i in range(N)], "looks like an identifier"),
        (list(np.random.default_rng(0).normal(size=N)), "looks like a continuous value"),
        (["Yes", "yes ", "no"] * (N // 3), "'Yes' and 'yes '.*one spelling"),
        ([[1], [2]] * (N // 2), "holds list"),
    ],
    ids=["one class", "none", "identifier", "continuous", "spellings", "nested"],
)
def test_a_label_that_cannot_be_one(tmp_path: Path, labels: list[Any], says: str) -> None:
    refuse(tmp_path, put(tmp_path / "in", make_table(label=pa.array(labels))), LabelError, says)


# --- the hold-out -----------------------------------------------------------------------------


def held(tmp_path: Path, table: pa.Table, **changes: Any) -> Source:
    source = put(tmp_path / "in", make_table())
    put(tmp_path / "held", table)
    return changed(source, holdout_uri=str(tmp_path / "held"), **changes)


def other(**columns: Any) -> pa.Table:
    return make_table(**{"x": np.random.default_rng(1).normal(size=N), **columns})


def test_a_destination_inside_the_holdout(tmp_path: Path) -> None:
    source = held(tmp_path, other())
    with pytest.raises(InputError, match="lies inside the hold-out"):
        ingest(source, store=open_store(str(tmp_path / "held" / "out")), seed=0)


@pytest.mark.parametrize(
    ("columns", "holdout_column", "error", "says"),
    [
        ({"site": [[1]] * N}, "", ParameterError, "'site' holds list"),
        (
            {"site": ["s"] * N, "test": [True, False] * (N // 2)},
            "test",
            InputError,
            "inside and outside",
        ),
    ],
)
def test_a_group_that_cannot_be_compared_or_is_cut_through(
    tmp_path: Path, columns: dict[str, Any], holdout_column: str, error: type, says: str
) -> None:
    source = put(tmp_path / "in", make_table(**columns))
    asked = changed(source, group_column="site", holdout_column=holdout_column)
    refuse(tmp_path, asked, error, says)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["a", "B", "b"], r"has the class 'B', which the source lacks \(did you mean 'b'\?\)"),
        (["a"] * 3, "no record of class 'b', of which the source has 40"),
    ],
)
def test_a_holdout_of_other_classes(tmp_path: Path, labels: list[str], says: str) -> None:
    refuse(tmp_path, held(tmp_path, other(label=labels * (N // 3))), LabelError, says)


def test_a_holdout_may_lack_a_class_that_is_too_small_to_compare(tmp_path: Path) -> None:
    source = held(tmp_path, other())
    put(tmp_path / "in", make_table(label=["rare"] * 3 + ["a", "b", "b"] * ((N - 3) // 3)))
    assert ingest(source, store=open_store(str(tmp_path / "out")), seed=0).class_counts["rare"] == 3


def test_a_holdout_of_other_columns_or_types(tmp_path: Path) -> None:
    refuse(
        tmp_path,
        held(tmp_path, other(more=[1] * N)),
        SchemaError,
        "has column 'more', which the source has not",
    )
    refuse(tmp_path, held(tmp_path, other().drop_columns(["x"])), SchemaError, "lacks column 'x'")
    source = held(tmp_path, other(x=["t"] * N))
    refuse(
        tmp_path,
        source,
        SchemaError,
        "column 'x' is string in the hold-out .* and double in the source",
    )


def test_a_holdout_that_overlaps_the_source(tmp_path: Path) -> None:
    table = pa.concat_tables([other(), make_table().slice(0, 4)])
    source = held(tmp_path, table, on_overlap="error")
    error = refuse(
        tmp_path,
        source,
        InputError,
        "4 of the source's 60 records are also in the hold-out.*on_overlap",
    )
    assert error.n_overlap == 4  # type: ignore[attr-defined]


def test_a_holdout_that_holds_the_whole_source(tmp_path: Path) -> None:
    source = held(tmp_path, make_table(), on_overlap="drop")
    refuse(tmp_path, source, InputError, "every record of the source is also in the hold-out")


def test_a_holdout_that_shares_a_group_with_the_source(tmp_path: Path) -> None:
    source = held(
        tmp_path,
        other(site=[f"h{i // 2}" for i in range(N - 2)] + ["s0", "s1"]),
        group_column="site",
        on_overlap="error",
    )
    put(tmp_path / "in", make_table(site=[f"s{i // 3}" for i in range(N)]))
    refuse(tmp_path, source, InputError, "6 of the source's 60 records are also in the hold-out")


def test_a_destination_that_cannot_be_written_is_said_before_anything_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("a file where a folder would have to be")
    store = open_store(str(tmp_path / "file" / "out"))
    read = []
    with pytest.raises(StorageError, match="choose another location"):
        ingest(
            put(tmp_path / "in", make_table()),
            store=store,
            seed=0,
            on_progress=lambda fraction, text: read.append(text),
        )
    assert not read


# --- a night without records ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "empty"),
    [("d2.csv", b"x,label\n"), ("d2.csv", b""), ("d2.jsonl", b""), ("d2.parquet", b"")],
    ids=["header", "csv", "jsonl", "parquet"],
)
def test_a_file_without_records_among_others_is_passed_over_and_said(
    tmp_path: Path, name: str, empty: bytes
) -> None:
    folder, table = tmp_path / "in", make_table()
    folder.mkdir()
    if name.endswith("csv"):
        pa.csv.write_csv(table, folder / "d1.csv")
    elif name.endswith("jsonl"):
        lines = [json.dumps(row) for row in table.to_pylist()]
        (folder / "d1.jsonl").write_text("\n".join(lines))
    else:
        pq.write_table(table, folder / "d1.parquet")
    (folder / name).write_bytes(empty)
    store = open_store(str(tmp_path / "out"))
    source = Source(uri=str(folder), label="label")
    found = ingest(source, store=store, seed=0)
    assert found.n_records == N
    notes = load_info(found, store).notes
    assert any(name in note and "no records" in note for note in notes), notes
    # Alone it is an error: there is nothing to go on with.
    next(folder.glob("d1.*")).unlink()
    with pytest.raises(InputError):
        ingest(source, store=open_store(str(tmp_path / "other")), seed=0)
