"""Records of other tools as they come: types lost, columns more or fewer, spelt otherwise, or broken."""

import io
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import InputError, SchemaError
from prefect_augment.ingest.external import class_codes, import_candidates, read_as
from prefect_augment.ingest.ingest import ingest
from prefect_augment.ingest.quarantine import by_reason
from prefect_augment.params import Balance, NoModel, RunParams, Source
from prefect_augment.plan.plan import plan
from prefect_augment.schema import BalancePlan, DatasetInfo, DatasetRef
from prefect_augment.shards.staged import load_info, read_shards
from prefect_augment.storage import Store, open_store

MakeTable = Callable[..., pa.Table]


class Real(NamedTuple):
    store: Store
    dataset: DatasetRef
    plan: BalancePlan


class Imported(NamedTuple):
    ref: DatasetRef
    info: DatasetInfo
    table: pa.Table
    reasons: Counter[str]


def ingested(folder: Path, source: Source, **balance: Any) -> Real:
    store = open_store(str(folder / "out"))
    dataset = ingest(source, store=store, seed=0)
    wanted = plan(
        dataset, RunParams(balance=Balance(**balance), model=NoModel()), store, compares=False
    )
    return Real(store, dataset, wanted)


@pytest.fixture(scope="module")
def real(make_table: MakeTable, tmp_path_factory: pytest.TempPathFactory) -> Real:
    folder = tmp_path_factory.mktemp("real")
    pq.write_table(make_table(), folder / "real.parquet")
    return ingested(folder, Source(uri=str(folder / "real.parquet"), label="state"))


def imported(real: Real, uri: Path) -> Imported:
    ref = import_candidates(real.dataset, str(uri), plan=real.plan, store=real.store)
    info = load_info(ref, real.store)
    assert ref.n_quarantined == info.n_quarantined
    table = read_shards(real.store, info.shards)
    assert table.num_rows == ref.n_records == sum(ref.class_counts.values())
    found = read_shards(real.store, info.quarantine) if info.quarantine else None
    reasons = by_reason(found) if found is not None else Counter[str]()
    assert reasons.total() == info.n_quarantined
    return Imported(ref, info, table, reasons)


def changed(table: pa.Table, **columns: Any) -> pa.Table:
    for name, values in columns.items():
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        place = table.schema.get_field_index(name)
        table = (
            table.append_column(name, array) if place < 0 else table.set_column(place, name, array)
        )
    return table


def test_what_csv_loses_is_found_again(real: Real, make_table: MakeTable, tmp_path: Path) -> None:
    """Whole numbers as floats, dates, booleans and nulls as text: the values are the same."""
    table = make_table(seed=4, counts={"worn": 30, "cracked": 10})
    loose = changed(
        table, cycles=table["cycles"].cast(pa.float64()), site=table["site"].cast(pa.string())
    )
    pa_csv.write_csv(loose, tmp_path / "made.csv")
    found = imported(real, tmp_path / "made.csv")
    assert not found.reasons
    names = ["load", "cycles", "loud", "since", "state"]
    for name in names:
        assert found.table[name].to_pylist() == table[name].to_pylist()
        assert found.table.schema.field(name).type == table.schema.field(name).type


def test_each_record_that_cannot_be_compared_is_counted_with_its_reason(
    real: Real, make_table: MakeTable, tmp_path: Path
) -> None:
    table = make_table(seed=4, counts={"worn": 8})
    states = ["worn", "molten", None, " ", "worn", "worn", "worn", "worn"]
    loads = ["1.5", "2", "3", "4", "heavy", "", "7", "8"]
    sites = ["north"] * 6 + ["moon", "south"]
    pq.write_table(changed(table, state=states, load=loads, site=sites), tmp_path / "made.parquet")
    found = imported(real, tmp_path / "made.parquet")
    assert found.reasons == {
        "class 'molten' is none of the real records'": 1,
        "no label": 2,
        "column 'load' holds 'heavy', which is no double": 1,
        "column 'site' holds 'moon', which no real record has": 1,
    }
    assert found.table["load"].to_pylist() == [1.5, None, 8.0]
    assert any("5 of 8 external records are invalid" in note for note in found.info.notes)


def test_interpolated_whole_numbers_are_rounded_and_it_is_said(
    real: Real, make_table: MakeTable, tmp_path: Path
) -> None:
    table = make_table(seed=4, counts={"worn": 20})
    cycles = pa.array(table["cycles"].to_numpy() + np.r_[np.zeros(15), np.full(5, 0.3)])
    pq.write_table(changed(table, cycles=cycles), tmp_path / "made.parquet")
    found = imported(real, tmp_path / "made.parquet")
    assert found.table["cycles"].to_pylist() == table["cycles"].to_pylist()
    assert any("'cycles'" in note and "5 of 20" in note for note in found.info.notes)


def test_columns_may_be_more_but_not_fewer(
    real: Real, make_table: MakeTable, tmp_path: Path
) -> None:
    table = make_table(seed=4, counts={"worn": 5})
    more = changed(table.drop_columns(["serial"]), weight=np.ones(5))
    pq.write_table(more, tmp_path / "more.parquet")
    found = imported(real, tmp_path / "more.parquet")
    assert "weight" not in found.table.column_names
    assert any("left out: 'weight'" in note for note in found.info.notes)
    fewer = table.rename_columns([n.replace("load", "Load") for n in table.column_names])
    pq.write_table(fewer, tmp_path / "fewer.parquet")
    with pytest.raises(SchemaError, match=r"lacks the column 'load'.*'Load'"):
        imported(real, tmp_path / "fewer.parquet")
    pq.write_table(table.drop_columns(["state"]), tmp_path / "no_label.parquet")
    with pytest.raises(SchemaError, match="'state'"):
        imported(real, tmp_path / "no_label.parquet")


def test_nothing_that_can_be_compared_is_an_error_that_says_why(
    real: Real, make_table: MakeTable, tmp_path: Path
) -> None:
    table = changed(make_table(seed=4, counts={"worn": 3}), state=["a", "a", "b"])
    pq.write_table(table, tmp_path / "made.parquet")
    with pytest.raises(InputError, match=r"none of the 3 records .* class 'a' .*\(2\); class 'b'"):
        imported(real, tmp_path / "made.parquet")


def test_rows_with_our_lineage_columns_are_taken_but_for_the_real_ones(
    real: Real, make_table: MakeTable, tmp_path: Path
) -> None:
    table = make_table(seed=4, counts={"worn": 6})
    origins = ["synthetic"] * 4 + ["real"] * 2
    lineage = changed(table, aug_id=[f"{i}" for i in range(6)], aug_origin=origins)
    pa_csv.write_csv(changed(lineage, site=table["site"].cast(pa.string())), tmp_path / "made.csv")
    found = imported(real, tmp_path / "made.csv")
    assert found.reasons == {"aug_origin says that it is a real record": 2}
    assert found.ref.n_records == 4


def test_a_published_dataset_is_refused(
    publish_as_is: Callable[..., None], real: Real, tmp_path: Path, make_table: MakeTable
) -> None:
    """Its real records would be compared."""
    pq.write_table(make_table(), tmp_path / "source.parquet")
    store = open_store(str(tmp_path / "published"))
    source = Source(uri=str(tmp_path / "source.parquet"), label="state")
    publish_as_is(store, ingest(source, store=store, seed=0))
    with pytest.raises(InputError, match="this tool has published"):
        imported(real, tmp_path / "published")


def test_the_same_file_is_imported_once(real: Real, make_table: MakeTable, tmp_path: Path) -> None:
    pq.write_table(make_table(seed=4, counts={"worn": 5}), tmp_path / "made.parquet")
    first, again = (imported(real, tmp_path / "made.parquet") for _ in range(2))
    assert first.ref == again.ref


def test_combinations_that_no_real_record_has_are_set_aside(
    make_table: MakeTable, tmp_path: Path
) -> None:
    table = make_table()
    keep = [not (s == "cracked" and p == "south") for s, p in
            zip(table["state"].to_pylist(), table["site"].to_pylist(), strict=True)]  # fmt: skip
    pq.write_table(table.filter(pa.array(keep)), tmp_path / "real.parquet")
    real = ingested(
        tmp_path, Source(uri=str(tmp_path / "real.parquet"), label="state"), by=["site"]
    )
    made = changed(make_table(seed=4, counts={"cracked": 4}), site=["south", "north"] * 2)
    pq.write_table(made, tmp_path / "made.parquet")
    found = imported(real, tmp_path / "made.parquet")
    assert found.reasons == {"no real record is of 'cracked | site=south'": 2}


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (pa.array([1, 0, None]), ("0", "1")),
        (pa.array([1.0, 0.0, float("nan")]), ("0", "1")),
        (pa.array(["1", "0.0", ""]), ("0", "1")),
        (pa.array([True, False, None]), ("false", "true")),
        (pa.array(["True", "False", None]), ("false", "true")),
        (pa.array(["yes ", "no", " "]), ("no", "yes")),
        (pa.array(["b", "a", None]).dictionary_encode(), ("a", "b")),
    ],
)
def test_a_class_is_known_whatever_its_type(labels: pa.Array, classes: tuple[str, ...]) -> None:
    assert class_codes(labels, classes).tolist() == [1, 0, -2]


def test_case_of_a_class_says_something() -> None:
    assert class_codes(pa.array(["Yes", "yes"]), ("yes",)).tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (pa.array([300.0, -1.0, 2.0]), pa.uint8(), [None, None, 2]),
        (pa.array(["1", "2.6", "x"]), pa.int64(), [1, 3, None]),
        (pa.array([2**60]), pa.float64(), [float(2**60)]),
        (pa.array([1, 0, 2]), pa.bool_(), [True, False, None]),
        (pa.array([1.5, 2.0]), pa.string(), ["1.5", "2"]),
    ],
)
def test_values_that_do_not_fit_are_none_and_named(
    values: pa.Array, kind: pa.DataType, expected: list[Any]
) -> None:
    read = read_as(values, kind, None)
    assert read.values.to_pylist() == expected
    assert sorted(read.unfit) == [i for i, value in enumerate(expected) if value is None]


# --- images ---


@pytest.fixture(scope="module")
def pictures(messy_images: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Real:
    """A Parquet file of small pictures, whose image column is called otherwise than a folder's."""
    folder = tmp_path_factory.mktemp("pictures")
    names = ["ring"] * 24 + ["square"] * 12
    data = [png(seed) for seed in range(len(names))]
    images = pa.array([{"bytes": b, "path": None} for b in data])
    table = pa.table({"picture": images, "kind": names})
    pq.write_table(table, folder / "real.parquet")
    return ingested(folder, Source(uri=str(folder / "real.parquet"), label="kind"))


def png(seed: int, side: int = 12, kind: str = "PNG") -> bytes:
    image_module = pytest.importorskip("PIL.Image", reason="needs the images extra")
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    image_module.fromarray(pixels).save(out, kind)
    return out.getvalue()


def test_a_folder_of_images_by_class_is_taken(pictures: Real, tmp_path: Path) -> None:
    """Of another size and format; what is broken or of no class is counted."""
    for name in ("ring", "square", "hat"):
        (tmp_path / "made" / name).mkdir(parents=True)
    (tmp_path / "made/ring/1.png").write_bytes(png(100, side=30))
    (tmp_path / "made/square/2.jpg").write_bytes(png(101, side=20, kind="JPEG"))
    (tmp_path / "made/square/3.png").write_bytes(png(102)[:60])
    (tmp_path / "made/hat/4.png").write_bytes(png(103))
    found = imported(pictures, tmp_path / "made")
    assert found.ref.class_counts == {"ring": 1, "square": 1}
    assert found.reasons["class 'hat' is none of the real records'"] == 1
    assert found.info.n_quarantined == 2
    assert found.table.column_names[:2] == ["picture", "kind"]


def test_a_webdataset_tar_is_taken(pictures: Real, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "made.tar", "w") as tar:
        for i, name in enumerate(["ring", "square", "square"]):
            for ending, data in (("png", png(200 + i)), ("cls", name.encode())):
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    found = imported(pictures, tmp_path / "made.tar")
    assert found.ref.class_counts == {"ring": 1, "square": 2}
    assert not found.reasons


def test_records_without_an_image_are_refused(pictures: Real, tmp_path: Path) -> None:
    pq.write_table(pa.table({"kind": ["ring"], "x": [1.0]}), tmp_path / "made.parquet")
    with pytest.raises(SchemaError, match="no image column"):
        imported(pictures, tmp_path / "made.parquet")
