"""A record that is planted in any kind of file of a folder to share is found."""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import releases

from prefect_augment.publish.real_values import RealValues
from prefect_augment.publish.shareable import leaks_of
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store

REAL = pa.table(
    {
        "income": np.round(np.exp(np.linspace(8, 12, 60)) + 0.117, 3),
        "age": np.arange(60) * 7 % 97,
        "town": ["north", "south", "east"] * 19 + ["Saint-Émile", "Upper Lee", "x1"],
        "day": pa.array(np.arange(60) * 11 + 15_000, pa.int32()).cast(pa.date32()),
        "label": ["a", "a", "b"] * 20,
    }
)


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def arrow(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def archive(name: str, data: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, data)
    return sink.getvalue()


def npy(values: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, values)
    return sink.getvalue()


ROW = {
    name: column[17].as_py() for name, column in zip(REAL.column_names, REAL.columns, strict=True)
}
LINE = ",".join(map(str, ROW.values()))
OTHERS = pa.table({name: REAL[name].slice(0, 0) for name in REAL.column_names})
PLANTS: dict[str, bytes] = {
    "data/a.parquet": parquet(REAL.slice(17, 1)),
    "data/renamed.parquet": parquet(REAL.slice(17, 1).rename_columns([*"abcde"])),
    "data/dictionary.parquet": parquet(
        pa.table({"town": pa.DictionaryArray.from_arrays([0], ["north", "Upper Lee"])})
    ),
    "data/metadata.parquet": parquet(OTHERS.replace_schema_metadata({"note": LINE})),
    "b.arrow": arrow(REAL.slice(17, 1)),
    "c.csv": f"{','.join(ROW)}\n{LINE}\n".encode(),
    "d.csv.gz": gzip.compress(LINE.encode()),
    "e.json": json.dumps([{"rows": [ROW]}], default=str, indent=2).encode(),
    "f.jsonl": (json.dumps(ROW, default=str) + "\n").encode(),
    "level.json": json.dumps({"town": "Saint-Émile"}).encode(),
    "README.md": f"One of them earns {ROW['income']} a year.".encode(),
    "notes.txt": b"she moved from Upper Lee to here",
    "g.tar": archive("x.json", json.dumps(ROW, default=str).encode()),
    "h.zip": zipped("inside/x.csv", LINE.encode()),
    "i.zip": zipped("j.tar", archive("k.parquet", parquet(REAL.slice(17, 1)))),
    "l.npy": npy(np.array([1.0, ROW["income"]])),
    "m.bin": b"\x00\xff\x13" + np.float64(ROW["income"]).tobytes() + b"\x80",
    "income-46.pickle": b"\x80\x04\x95" + b"Upper Lee" + b"\x94.",
}  # fmt: skip


@pytest.fixture
def real(tmp_path: Path) -> RealValues:
    store = open_store(str(tmp_path / "workspace"))
    ref = releases.stage_dataset(store, REAL, label="label", key="k", shard_records=25)
    return RealValues.of(store, load_info(ref, store), min_records=5, known=["label"])


@pytest.fixture
def share(tmp_path: Path) -> Store:
    """What is innocent: other numbers, shared levels, the classes, a manifest's figures."""
    store = open_store(str(tmp_path / "share"))
    made = pa.table({"income": [1.5, 7000.25], "town": ["north", "east"], "label": ["a", "b"]})
    store.put("data/made.parquet", parquet(made))
    store.put("README.md", b"# 60 records of a and b, 33.3 %, in north and south\n")
    store.put("_manifests/v00000001.json", json.dumps({"auc": 0.8251, "n": [7, 14, 21]}).encode())
    return store


def test_nothing_is_found_in_what_is_synthetic(real: RealValues, share: Store) -> None:
    assert leaks_of(share, real, {"data/made.parquet"}) == ()


@pytest.mark.parametrize("path", PLANTS)
def test_a_planted_record_is_found(real: RealValues, share: Store, path: str) -> None:
    share.put(path, PLANTS[path])
    assert {leak.path.partition("/x")[0] for leak in leaks_of(share, real, set())} >= {path} or any(
        leak.path.startswith(path) for leak in leaks_of(share, real, set())
    )


@pytest.mark.parametrize("column", ["aug_id", "content_key"])
@pytest.mark.parametrize(
    "plant",
    [
        lambda key: ("keys.txt", f"id: {key}".encode()),
        lambda key: (f"data/{key}.txt", b""),
        lambda key: ("data/k.parquet", parquet(pa.table({"parent": [key]}))),
    ],
)
def test_hashes_of_real_records_are_found(
    real: RealValues, share: Store, column: str, plant: Callable[[str], tuple[str, bytes]]
) -> None:
    table = read_part(real.store, real.info, ["training", "validation", "holdout"])
    path, data = plant(table[column][3].as_py())
    share.put(path, data)
    assert {leak.kind for leak in leaks_of(share, real, set()) if leak.path == path} == {"oracle"}


def test_what_belongs_into_the_workspace_is_named(real: RealValues, share: Store) -> None:
    share.put("_staging/ingest/k/training-00000.parquet", b"")
    (leak,) = leaks_of(share, real, {"data/made.parquet"})
    assert (leak.path, leak.kind) == ("_staging/ingest/k/training-00000.parquet", "folder")


def test_equal_rows_of_few_values_count_beyond_chance(tmp_path: Path) -> None:
    """Of two columns of digits a draw equals one record or another; a copier takes those it has seen."""
    rng = np.random.default_rng(0)
    codes = rng.permutation(400)[:200]
    table = pa.table({"a": codes // 20 * 2, "b": codes % 20 * 2, "label": ["a", "b"] * 100})
    store = open_store(str(tmp_path / "workspace"))
    ref = releases.stage_dataset(store, table, label="label", key="k", shard_records=60)
    real = RealValues.of(store, load_info(ref, store), min_records=5)
    share = open_store(str(tmp_path / "share"))
    drawn = rng.permutation(400)[:120]
    share.put("data/s.parquet", parquet(pa.table({"a": drawn // 20 * 2, "b": drawn % 20 * 2})))
    assert leaks_of(share, real, {"data/s.parquet"}) == ()
    seen = read_part(store, real.info, ["training"], ["a", "b"]).slice(0, 60)
    share.put("data/s.parquet", parquet(seen))
    assert [leak.kind for leak in leaks_of(share, real, {"data/s.parquet"})] == ["record"]


def test_a_planted_picture_is_found(tmp_path: Path, messy_images: ModuleType) -> None:
    table = releases.image_table(messy_images, 10)
    store = open_store(str(tmp_path / "workspace"))
    ref = releases.stage_dataset(store, table, label="label", key="k", shard_records=5)
    real = RealValues.of(store, load_info(ref, store), min_records=5, known=["label"])
    share = open_store(str(tmp_path / "share"))
    share.put("own.png", messy_images.encode(messy_images.picture(99, mode="RGB"), "PNG"))
    assert leaks_of(share, real, set()) == ()
    picture = table["image"][3].as_py()["bytes"]
    share.put("a.png", picture)
    share.put("b.tar", archive("c.png", picture))
    share.put("d.parquet", parquet(pa.table({"picture": [picture]})))
    share.put("e.parquet", parquet(table.select(["image"]).slice(3, 1)))
    shown = {leak.path for leak in leaks_of(share, real, set()) if leak.kind == "record"}
    assert shown == {"a.png", "b.tar/c.png", "d.parquet", "e.parquet"}
