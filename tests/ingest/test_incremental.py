"""Of a source that grew only what is new is read, and what comes out is what reading all would give."""

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from prefect_augment.ingest.ingest import ingest
from prefect_augment.maintenance.gc import collect_garbage
from prefect_augment.params import Source
from prefect_augment.schema import DatasetInfo
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Store, open_store, read_manifest

Publish = Callable[..., None]
Publisher = Callable[..., Any]


def make_table(n: int, start: int = 0, seed: int = 0) -> pa.Table:
    """Records with twins, nulls, NaN beside null, categories; every label in every piece."""
    rng = np.random.default_rng([seed, start])
    x = rng.normal(size=n)
    x[::11] = np.nan
    k = rng.integers(0, 3, n)
    return pa.table(
        {
            "x": pa.array([None if i % 13 == 0 else v for i, v in enumerate(x)], pa.float64()),
            "k": pa.array(k),
            "site": pa.array([f"s{(i + start) // 9 % 7}" for i in range(n)]).dictionary_encode(),
            "flat": pa.array(np.zeros(n)),
            "held": pa.array([i % 6 == 0 for i in range(n)]),
            "label": pa.array([("tail" if i % 5 == 0 else "head") for i in range(n)]),
        }
    )


def twins(n: int) -> pa.Table:
    """Records of which many are equal, or equal but for NaN and null."""
    x = pa.array([[None, float("nan"), 0.0, -0.0, 1.0][i % 5] for i in range(n)])
    columns = {
        "x": x,
        "k": [i % 2 for i in range(n)],
        "label": ["ab"[i % 3 == 0] for i in range(n)],
    }
    return pa.table(columns)


def put(folder: Path, table: pa.Table, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".csv"):
        pa.csv.write_csv(table, folder / name)
    else:
        pq.write_table(table, folder / name, row_group_size=37)
    return folder


def staged(store: Store, info: DatasetInfo) -> list[tuple[str, str]]:
    """Name and digest of each staged shard, in order."""
    return [(s.path.rpartition("/")[2], s.sha256) for s in info.shards]


def no_ways(info: DatasetInfo) -> dict[str, Any]:
    """What the info says but for how many files were read, and under whose folder shards lie."""
    dump = info.model_dump(exclude={"notes", "shards", "quarantine", "files", "ledger", "batches"})
    dump["shards"] = [s.sha256 for s in info.shards]
    dump["quarantine"] = [s.sha256 for s in info.quarantine]
    dump["objects"] = [p.rpartition("/")[2] for p in (info.files, info.ledger)]
    dump["batches"] = [
        {**b.model_dump(), "index": b.index.rpartition("/")[2]} for b in info.batches
    ]
    dump["notes"] = [note for note in info.notes if "source files" not in note]
    return dump


@contextmanager
def opened(monkeypatch: pytest.MonkeyPatch, source: Path) -> Iterator[list[str]]:
    """The names of a source's files that are opened or read."""
    found: list[str] = []
    open_, read = Store.open, Store.read

    def note(self: Store, path: str) -> None:
        if Path(self.root) == source:
            found.append(path)

    def new_open(self: Store, path: str) -> IO[bytes]:
        note(self, path)
        return open_(self, path)

    def new_read(self: Store, path: str) -> bytes:
        note(self, path)
        return read(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "open", new_open)
        patch.setattr(Store, "read", new_read)
        yield found


@pytest.fixture
def publish(store: Store, publish_as_is: Publisher) -> Publish:
    """Publish what is in a folder as the next version."""

    def version(folder: Path, label: str = "label", **options: Any) -> None:
        source = Source(uri=str(folder), label=label, **options)
        publish_as_is(store, ingest(source, store=store, seed=0))

    return version


def copied(store: Store, copy: Path) -> Store:
    """The destination as it is, but for what is staged."""
    shutil.copytree(store.root, copy)
    shutil.rmtree(copy / "_staging")
    return open_store(str(copy))


def run(store: Store, folder: Path, **options: Any) -> DatasetInfo:
    source = Source(uri=str(folder), label="label", **options)
    return load_info(ingest(source, store=store, seed=0), store)


def both_ways(store: Store, folder: Path, **options: Any) -> tuple[DatasetInfo, DatasetInfo]:
    """Info with the earlier batches used again, and with everything read anew."""
    copy = copied(store, Path(f"{store.root}-copy"))
    return run(store, folder, **options), run(copy, folder, **options)


CASES: dict[str, tuple[list[pa.Table], dict[str, Any]]] = {
    "plain": ([make_table(130), make_table(60, 200), make_table(40, 300)], {}),
    "twins": ([twins(60), twins(45), twins(30)], {}),
    "groups": ([make_table(130), make_table(90, 63), make_table(63, 40)], {"group_column": "site"}),
    "marks": ([make_table(130), make_table(60), make_table(60, 5)], {"holdout_column": "held"}),
    "new class": (
        [
            make_table(130),
            make_table(40, 9).set_column(5, "label", pa.array(["new"] * 40)),
            make_table(30, 300),
        ],
        {},
    ),
    "nothing usable": (
        [
            make_table(90),
            make_table(40, 9).set_column(5, "label", pa.nulls(40, pa.string())),
            make_table(30, 300).slice(0, 0),
        ],
        {},
    ),
    "missing labels": (
        [
            make_table(90),
            make_table(40, 9).set_column(5, "label", pa.array([None, "head"] * 20)),
            make_table(30, 300),
        ],
        {},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_reading_new_files_alone_stages_what_reading_all_would(
    tmp_path: Path,
    publish_as_is: Publisher,
    publish: Publish,
    case: str,
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
) -> None:
    tables, options = CASES[case]
    folder = put(tmp_path / "in", tables[0], "m.parquet")
    publish(folder, **options)
    for version, (table, name) in enumerate(zip(tables[1:], ("a", "z"), strict=True), start=2):
        put(folder, table, f"{name}.parquet")
        with opened(monkeypatch, folder) as read:
            info = run(store, folder, **options)
        assert set(read) == {f"{name}.parquet"}
        anew = run(copied(store, tmp_path / f"copy{version}"), folder, **options)
        assert staged(store, info) == staged(store, anew)
        assert no_ways(info) == no_ways(anew)
        assert {f.path: f.batch for f in info.sources}[f"{name}.parquet"] == version
        ref = ingest(Source(uri=str(folder), label="label", **options), store=store, seed=0)
        assert ref.key == info.key
        publish_as_is(store, ref)


def test_the_hold_out_of_its_own_stands_beside_files_that_are_not_read(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    folder = put(tmp_path / "in", make_table(130), "m.parquet")
    held = put(
        tmp_path / "held",
        pa.concat_tables([make_table(60, 900), make_table(130).slice(1, 5)]),
        "h.parquet",
    )
    options = {"holdout_uri": str(held), "on_overlap": "drop"}
    publish(folder, **options)
    put(folder, make_table(60, 300), "n.parquet")
    copy = copied(store, tmp_path / "copy")
    with opened(monkeypatch, folder) as read:
        info = run(store, folder, **options)
    assert set(read) == {"n.parquet"}
    assert no_ways(info) == no_ways(run(copy, folder, **options))
    assert info.n_quarantined >= 5
    assert sum(info.part_counts["holdout"].values()) == 65


def test_what_was_staged_of_known_files_stays_byte_for_byte(
    tmp_path: Path, publish: Publish, store: Store
) -> None:
    folder = put(tmp_path / "in", make_table(130), "m.parquet")
    publish(folder)
    first = run(store, folder)
    put(folder, make_table(90, 500), "n.parquet")
    second = run(store, folder)
    assert {s.path for s in first.shards} < {s.path for s in second.shards}
    assert [b.index for b in second.batches][:1] == [b.index for b in first.batches]
    assert any("1 of 2 source files are new and were read" in note for note in second.notes)


def test_quarantine_of_known_files_is_carried_on(
    tmp_path: Path, publish: Publish, store: Store
) -> None:
    lines = [f"{i / 7},{'ab'[i % 5 == 0]}\n" for i in range(200)]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_text("x,label\n" + "".join(lines) + "1\n2.5,\n")
    publish(folder)
    (folder / "b.csv").write_text("x,label\n" + "".join(lines[:50]) + "1,2,3\n")
    info, anew = both_ways(store, folder)
    assert no_ways(info) == no_ways(anew)
    assert info.n_quarantined == 3
    assert sum(f.n_records + f.n_quarantined for f in info.sources) == 253
    bad = pq.read_table(io.BytesIO(store.read(info.quarantine[0].path)))
    assert bad["file"].to_pylist() == ["a.csv", "a.csv", "b.csv"]


def test_a_column_that_becomes_wider_has_everything_read(
    tmp_path: Path, publish: Publish, store: Store
) -> None:
    whole = pa.table({"x": [i * i % 59 for i in range(60)], "label": ["a", "b"] * 30})
    folder = put(tmp_path / "in", whole, "a.csv")
    publish(folder)
    put(folder, whole.set_column(0, "x", pa.array(np.arange(60) / 7)), "b.csv")
    info = run(store, folder)
    assert any("the new files make the type of a column wider" in note for note in info.notes)
    assert {f.path: f.batch for f in info.sources} == {"a.csv": 1, "b.csv": 2}


def test_a_narrower_type_of_new_files_is_brought_into_the_known_one(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    wide = pa.table({"x": np.arange(60) / 7, "label": ["a", "b"] * 30})
    folder = put(tmp_path / "in", wide, "a.csv")
    publish(folder)
    put(folder, wide.set_column(0, "x", pa.array(range(60))), "b.csv")
    with opened(monkeypatch, folder) as read:
        run(store, folder)
    assert set(read) == {"b.csv"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("replace", "of 2 known files 1 have changed"),
        ("remove", "of 2 known files 1 are gone"),
        ("stage", "were removed"),
        ("parameters", "read with other parameters"),
    ],
)
def test_where_more_than_new_files_matters_everything_is_read_and_the_reason_said(
    tmp_path: Path, publish: Publish, change: str, says: str, store: Store
) -> None:
    folder = put(tmp_path / "in", make_table(130), "m.parquet")
    put(folder, make_table(60, 700), "n.parquet")
    publish(folder)
    put(folder, make_table(60, 900), "o.parquet")
    if change == "replace":
        put(folder, make_table(70, 800), "n.parquet")
    elif change == "remove":
        (folder / "n.parquet").unlink()
    elif change == "stage":
        shutil.rmtree(tmp_path / "out" / "_staging")
    info = run(store, folder, **({"validation_fraction": 0.3} if change == "parameters" else {}))
    assert any(says in note for note in info.notes), info.notes
    batch = {f.path: f.batch for f in info.sources}
    assert batch["m.parquet"] == 1
    assert batch["o.parquet"] == 2
    assert batch.get("n.parquet") == {"replace": 2, "remove": None}.get(change, 1)


def test_garbage_collection_keeps_what_the_next_run_goes_on_from(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    folder = put(tmp_path / "in", make_table(130), "m.parquet")
    for version in (1, 2, 3):
        publish(folder)
        put(folder, make_table(60, 100 * version), f"{version}.parquet")
    collect_garbage(store, older_than_days=0)
    with opened(monkeypatch, folder) as read:
        run(store, folder)
    assert set(read) == {"3.parquet"}
    kept = {p.split("/")[2] for p in store.list("_staging/ingest")}
    assert len(kept) == 4  # of every batch that the newest version has, and the run that followed
    assert read_manifest(store).ingest.split("/")[2] in kept


@pytest.mark.slow
def test_a_batch_of_loose_images_is_what_one_run_saw_first(
    tmp_path: Path,
    publish: Publish,
    messy_images: Any,
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
) -> None:
    folder = tmp_path / "in"

    def add(n: int, start: int, only: str = "") -> None:
        for i in range(start, start + n):
            path = folder / (only or ("tail" if i % 3 == 0 else "head")) / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            messy_images.picture(i, (40, 40)).save(path)

    add(60, 0)
    publish(folder, label="")
    (folder / "head" / "first.png").write_bytes(b"no image")
    only_bad = load_info(ingest(Source(uri=str(folder)), store=store, seed=0), store)
    assert (only_bad.n_quarantined, len(only_bad.shards)) == (1, 3)
    add(20, 100, only="tail")
    messy_images.picture(3, (40, 40)).resize((30, 30)).save(folder / "tail" / "near.png")
    (folder / "head" / "bad.png").write_bytes(b"no image")
    anew_store = copied(store, tmp_path / "copy")
    with opened(monkeypatch, folder) as read:
        ref = ingest(Source(uri=str(folder)), store=store, seed=0)
    assert len(read) == 23
    info = load_info(ref, store)
    anew = load_info(ingest(Source(uri=str(folder)), store=anew_store, seed=0), anew_store)
    assert staged(store, info) == staged(anew_store, anew)
    assert no_ways(info) == no_ways(anew)
    assert [b.batch for b in info.batches] == [1, 2]
    assert len(info.sources) == 2
    assert info.image is not None
    assert info.image.n_clusters == 1
