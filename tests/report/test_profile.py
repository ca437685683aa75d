"""A profile says what is there, also where ingest would refuse it, and writes nothing."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import InputError
from prefect_augment.examples import IMBALANCE_RATIO, example_source, example_table
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Source
from prefect_augment.report.profile import profile
from prefect_augment.storage import open_store

LABELS = {
    "adult_income": "income",
    "mammography": "calcification",
    "hypothyroid": "diagnosis",
    "ecoli": "site",
    "german_credit": "credit_risk",
    "predictive_maintenance": "machine_failure",
}


def put(folder: Path) -> Source:
    folder.mkdir()
    labels = ["head"] * 50 + ["tail"] * 5 + [None] * 3
    table = pa.table({"x": np.arange(58) / 7, "id": range(58), "label": labels})
    pq.write_table(table, folder / "in.parquet")
    return Source(uri=str(folder), label="label")


def test_a_profile_says_columns_classes_and_troubles(tmp_path: Path) -> None:
    found = profile(put(tmp_path / "in"))
    assert found.is_valid
    assert [(c.name, c.kind) for c in found.columns] == [("x", "numeric"), ("id", "identifier")]
    assert found.class_counts == {"head": 50, "tail": 5}
    assert (found.n_records, found.n_files, found.imbalance_ratio) == (55, 1, 10.0)
    assert found.quarantine == {"no label": 3}
    assert "not compared: 'tail'" in found.notes[0]


def test_a_profile_writes_nothing(tmp_path: Path) -> None:
    source = put(tmp_path / "in")
    before = sorted(tmp_path.rglob("*"))
    profile(source)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("label", ["labl", "x", ""])
def test_a_source_that_ingest_refuses_is_shown_with_the_reason(tmp_path: Path, label: str) -> None:
    changes = {"label": label, "group_column": "" if label else "none"}
    source = put(tmp_path / "in").model_copy(update=changes)
    found = profile(source)
    with pytest.raises(InputError) as refused:
        ingest(source, store=open_store(str(tmp_path / "out")), seed=0)
    assert not found.is_valid
    assert found.notes[0] == str(refused.value)
    assert "id" in [c.name for c in found.columns]


def test_a_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found nothing"):
        profile(Source(uri=str(tmp_path / "none")))


def test_the_example_is_thinned_and_left_alone_where_it_is_the_same(tmp_path: Path) -> None:
    source = example_source(str(tmp_path))
    found = profile(source)
    assert found.imbalance_ratio == IMBALANCE_RATIO
    assert {c.kind for c in found.columns} == {"numeric", "category"}
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    assert example_source(str(tmp_path)) == source
    assert file.stat().st_mtime_ns == written


def test_the_example_depends_on_the_seed_alone() -> None:
    assert example_table(3) == example_table(3)
    assert example_table(3) != example_table(4)


@pytest.mark.slow
@pytest.mark.parametrize("name", LABELS)
def test_real_tables_are_usable_and_keep_every_record(shared_data: Path, name: str) -> None:
    source = Source(uri=str(shared_data / "tabular" / f"{name}.parquet"), label=LABELS[name])
    found = profile(source)
    assert found.is_valid
    assert found.n_quarantined == 0
    ref = ingest(source, store=open_store(f"memory://profile-{name}"), seed=0)
    assert ref.n_records == found.n_records == pq.read_metadata(source.uri).num_rows


def test_identifiers_and_empty_columns_of_real_tables_are_found(shared_data: Path) -> None:
    def kinds(name: str) -> dict[str, str]:
        source = Source(uri=f"{shared_data}/tabular/{name}.parquet", label=LABELS[name])
        return {c.name: c.kind for c in profile(source).columns}

    found = kinds("predictive_maintenance")
    assert [k for k, v in found.items() if v == "identifier"] == ["udi", "product_id"]
    found = kinds("hypothyroid")
    assert (found["tbg"], found["tbg_measured"]) == ("empty", "constant")
