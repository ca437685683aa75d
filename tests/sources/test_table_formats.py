"""Delta, Iceberg and Lance tables through the real ingest."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from prefect_augment.errors import InputError
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Source
from prefect_augment.schema import DatasetInfo, DatasetRef
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.sources.discovery import list_source
from prefect_augment.storage import open_store

PARTS = ("training", "validation", "holdout")


def table(n: int = 40, shift: float = 0.0) -> pa.Table:
    return pa.table(
        {
            "x": [shift + i / 8 for i in range(n)],
            "site": [("nord", "süd", None)[i % 3] for i in range(n)],
            "label": [("a", "b", "b")[i % 3] for i in range(n)],
        }
    )


def delta(folder: Path, *parts: pa.Table) -> str:
    deltalake = pytest.importorskip("deltalake")
    for part in parts:
        deltalake.write_deltalake(str(folder), part, mode="append")
    return str(folder)


def lance(folder: Path, *parts: pa.Table) -> str:
    module = pytest.importorskip("lance")
    for part in parts:
        module.write_dataset(part, str(folder), mode="append")
    return str(folder)


def iceberg(folder: Path, *parts: pa.Table) -> str:
    catalogs = pytest.importorskip("pyiceberg.catalog.sql")
    folder.mkdir(exist_ok=True)
    catalog = catalogs.SqlCatalog(
        "it", uri=f"sqlite:///{folder}/it.db", warehouse=f"file://{folder}"
    )
    catalog.create_namespace_if_not_exists("n")
    written = catalog.create_table_if_not_exists("n.t", parts[0].schema)
    for part in parts:
        written.append(part)
    return f"{folder}/n/t"


WRITERS = {"Delta": delta, "Lance": lance, "Iceberg": iceberg}


def ingested(uri: str, out: Path) -> tuple[DatasetRef, DatasetInfo, pa.Table]:
    store = open_store(str(out))
    reference = ingest(Source(uri=uri, label="label"), store=store, seed=0)
    info = load_info(reference, store)
    return reference, info, read_part(store, info, PARTS)


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Callable[..., str]:
    return WRITERS[request.param]


@pytest.mark.slow
def test_the_newest_snapshot_is_the_source(write: Callable[..., str], tmp_path: Path) -> None:
    uri = write(tmp_path / "in", table(), table(20, shift=100.0))
    first, info, records = ingested(uri, tmp_path / "out")
    assert sorted(records["x"].to_pylist()) == sorted(
        table()["x"].to_pylist() + table(20, shift=100.0)["x"].to_pylist()
    )
    assert [c.arrow_type.removeprefix("large_") for c in info.columns] == ["double", "string"]
    assert [f.n_records for f in info.sources] == [60]

    again, _, _ = ingested(uri, tmp_path / "out")
    assert again == first, "a snapshot that was read is not read again"
    write(tmp_path / "in", table(10, shift=200.0))
    newer, _, more = ingested(uri, tmp_path / "out")
    assert newer.key != first.key
    assert more.num_rows == 70


@pytest.mark.slow
def test_records_come_in_the_same_order_each_time(
    write: Callable[..., str], tmp_path: Path
) -> None:
    uri = write(tmp_path / "in", *(table(30, shift=100.0 * i) for i in range(5)))
    ids = [ingested(uri, tmp_path / f"out{i}")[2]["x"].to_pylist() for i in range(3)]
    assert ids[0] == ids[1] == ids[2]


@pytest.mark.slow
def test_an_older_snapshot_has_its_number(tmp_path: Path) -> None:
    uri = delta(tmp_path / "in", table(), table(20))
    assert ingested(f"{uri}#0", tmp_path / "out")[2].num_rows == 40
    with pytest.raises(InputError, match="cannot be read as a table of Delta"):
        list_source(f"{uri}#7", requested="auto", options=None)
    with pytest.raises(InputError, match="'new' is no snapshot"):
        list_source(f"{uri}#new", requested="auto", options=None)


@pytest.mark.slow
def test_a_damaged_log_is_refused_by_name(tmp_path: Path) -> None:
    uri = delta(tmp_path / "in", table())
    for log in (tmp_path / "in" / "_delta_log").glob("*.json"):
        log.write_bytes(b"{" + log.read_bytes())
    with pytest.raises(InputError, match=r"/in cannot be read as a table of Delta"):
        list_source(uri, requested="auto", options=None)


def test_a_folder_of_parquet_files_is_no_table_format(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "about.json").write_text("{}")
    pq.write_table(table(), tmp_path / "a.parquet")
    assert list_source(str(tmp_path), requested="auto", options=None).format == "parquet"
