import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import releases
from support.releases import publish_as_is
from support.steps import publish_parts

from prefect_augment.errors import IntegrityError, ParameterError
from prefect_augment.ingest.ingest import ingest
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.rollback import rollback
from prefect_augment.params import Publish, Source
from prefect_augment.publish import export as module
from prefect_augment.publish.export import check_export, export
from prefect_augment.schema import Manifest
from prefect_augment.storage import Store, list_versions, open_store, read_manifest


@pytest.fixture
def folder(two: Store, tmp_path: Path) -> Any:
    """A place for the export on the same kind of store as the dataset."""
    if two.is_local:
        yield open_store(str(tmp_path / "tree"))
        return
    opened = open_store(f"memory://{uuid4().hex}")
    yield opened
    if opened.fs.exists(opened.root):
        opened.fs.rm(opened.root, recursive=True)


def ids(target: Store, split: str = "train") -> list[str]:
    """What an engine that reads by glob finds."""
    parts = [p for p in target.list() if p.startswith(f"{split}/part-") and p.endswith(".parquet")]
    tables = [pq.read_table(pa.BufferReader(target.read(p))) for p in parts]
    return sorted(pa.concat_tables(tables)["aug_id"].to_pylist())


def test_a_glob_reads_one_version(two: Store, folder: Store) -> None:
    done = export(two, folder)
    dataset = open_dataset(two.uri)
    assert (done.version, done.created, done.n_records) == (2, True, {"train": 52, "holdout": 12})
    for split in ("train", "holdout"):
        assert ids(folder, split) == sorted(dataset.to_table(split)["aug_id"].to_pylist())
    assert {p for p in folder.list() if "/" not in p} == {"README.md", "manifest.json", "_SUCCESS"}
    assert Manifest.model_validate_json(folder.read("manifest.json")) == read_manifest(two)


def test_formulas_of_a_csv_file_are_data_to_the_end(tmp_path: Path) -> None:
    """They run where a spreadsheet opens a CSV file; an export has none, and changes no value."""
    texts = ["=cmd|' /C calc'!A0", "@SUM(1+1)", "+1+1|x", "-2+3|x", "\t=1+1"]
    rows = [f'{i},"{texts[i % 5]}",{"ab"[i % 2]}' for i in range(60)]
    (tmp_path / "in.csv").write_text("\n".join(["n,site,label", *rows]))
    store = open_store(str(tmp_path / "out"))
    source = Source(uri=str(tmp_path / "in.csv"), label="label")
    publish_as_is(store, ingest(source, store=store, seed=0))
    folder = open_store(str(tmp_path / "tree"))
    export(store, folder)
    assert not [path for path in folder.list() if path.endswith((".csv", ".tsv"))]
    parts = [p for p in folder.list() if p.endswith(".parquet")]
    tables = [pq.read_table(pa.BufferReader(folder.read(p))) for p in parts]
    found = {text for table in tables for text in table["site"].to_pylist()}
    assert found == set(texts)


def test_another_version_replaces_an_earlier_export(two: Store, folder: Store) -> None:
    export(two, folder)
    done = export(two, folder, version=1)
    assert (done.version, done.created) == (1, True)
    assert ids(folder) == sorted(open_dataset(two.uri, 1).to_table()["aug_id"].to_pylist())
    assert b"version 1" in folder.read("README.md").lower()


def test_splits_and_origins_may_be_chosen(two: Store, folder: Store) -> None:
    export(two, folder)
    export(two, folder, splits=["train"], origins=["synthetic"])
    want = open_dataset(two.uri).to_table(origins=["synthetic"])["aug_id"].to_pylist()
    assert ids(folder) == sorted(want)
    assert not any(path.startswith("holdout") for path in folder.list())
    with pytest.raises(ParameterError, match=r"no split validation; there is: holdout, train"):
        export(two, folder, splits=["validation"])
    with pytest.raises(ParameterError, match="no records of origin copy there; it has: classic"):
        export(two, folder, origins=["copy"])


def test_the_same_export_writes_nothing(two: Store, folder: Store) -> None:
    export(two, folder)
    before = folder.infos()
    assert not export(two, folder).created
    assert folder.infos() == before
    part = next(path for path in folder.list() if path.startswith("train/"))
    folder.delete(part)
    assert export(two, folder).created
    assert folder.exists(part)


def test_a_folder_with_anything_else_is_refused(two: Store, folder: Store) -> None:
    folder.put("mine.txt", b"mine")
    with pytest.raises(ParameterError, match=r"holds files that are not of an export, e\.g\. mine"):
        export(two, folder)
    folder.delete("mine.txt")
    export(two, folder)
    folder.put("train/mine.txt", b"mine")
    with pytest.raises(ParameterError, match=r"train/mine\.txt"):
        export(two, folder, version=1)
    assert folder.read("train/mine.txt") == b"mine"


def test_parts_without_our_manifest_are_no_earlier_export(two: Store, folder: Store) -> None:
    folder.put("train/part-00000-0123456789ab.parquet", b"of somebody else")
    with pytest.raises(ParameterError, match="not of an export"):
        export(two, folder)


def test_inside_or_around_the_dataset_is_no_place(tmp_path: Path, two: Store) -> None:
    around = [str(tmp_path)] if two.is_local else []
    for uri in (f"{two.uri}/tree", two.uri, *around):
        with pytest.raises(ParameterError, match="inside the dataset"):
            check_export(two, uri)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ParameterError, match="is a file"):
        check_export(two, str(tmp_path / "file"))


def test_a_shard_that_was_changed_is_not_exported(two: Store, folder: Store) -> None:
    shard = read_manifest(two).shards[0]
    data = two.read(shard.path)
    two.put(shard.path, data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(IntegrityError, match="was changed after it was published"):
        export(two, folder)
    assert not folder.exists("_SUCCESS")
    two.put(shard.path, data)
    assert export(two, folder).created
    assert len(ids(folder)) == 52


def test_duckdb_reads_the_tree_and_the_card_names_it_by_glob(
    two_versions: Path, tmp_path: Path
) -> None:
    duckdb = pytest.importorskip("duckdb")
    export(open_store(str(two_versions)), str(tmp_path / "tree"))
    found = duckdb.sql(f"select count(*) from '{tmp_path}/tree/train/*.parquet'").fetchall()
    assert found == [(52,)]
    card = (tmp_path / "tree" / "README.md").read_text()
    assert "  - split: train\n    path:\n    - train/*.parquet\n" in card


class DyingReads(Store):
    """A store below a process that is killed after so many reads."""

    def __init__(self, store: Store, n_left: int) -> None:
        super().__init__(uri=store.uri, fs=store.fs, root=store.root)
        self.n_left = n_left

    def read(self, path: str) -> bytes:
        self._count()
        return super().read(path)

    def open(self, path: str) -> IO[bytes]:
        self._count()
        return super().open(path)

    def _count(self) -> None:
        self.n_left -= 1
        if self.n_left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("swap", ["exchange", "renames"])
def test_a_local_export_that_is_stopped_leaves_the_earlier_one(
    two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    if swap == "renames":  # as where the system cannot exchange two names
        monkeypatch.setattr(module, "_exchange", lambda a, b: False)
    store, tree = open_store(str(two_versions)), tmp_path / "tree"
    export(store, str(tree), version=1)
    old = sorted(open_dataset(two_versions, 1).to_table()["aug_id"].to_pylist())
    new = sorted(open_dataset(two_versions, 2).to_table()["aug_id"].to_pylist())
    n = 0
    while True:
        try:
            export(DyingReads(store, n), str(tree), version=2)
            break
        except KeyboardInterrupt:
            assert ids(open_store(tree)) == old
            assert [p.name for p in tmp_path.iterdir()] == ["tree"]
        n += 1
    assert n >= 5
    assert ids(open_store(tree)) == new
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]


@pytest.mark.slow
def test_an_object_store_s_export_is_one_version_wherever_it_is_sealed(
    two_versions: Path, dying: Callable[[Store, int], Store], killed: type[BaseException]
) -> None:
    store = open_store(str(two_versions))
    wanted = {
        v: sorted(open_dataset(two_versions, v).to_table()["aug_id"].to_pylist()) for v in (1, 2)
    }
    n, sealed = 0, []
    while True:
        n += 1
        target = open_store(f"memory://{uuid4().hex}")
        export(store, target, version=1)
        try:
            export(store, dying(target, n), version=2)
            finished = True
        except killed:
            finished = False
        if target.exists("_SUCCESS"):
            version = 2 if b'"version": 2' in target.read("_SUCCESS") else 1
            sealed.append(version)
            assert ids(target) == wanted[version]
        assert export(store, target, version=2).version == 2
        assert ids(target) == wanted[2]
        target.fs.rm(target.root, recursive=True)
        if finished:
            break
    assert n > 8
    assert set(sealed) == {2}  # the first thing that goes is the seal


def test_leftovers_of_killed_exports_go_after_a_day(two_versions: Path, tmp_path: Path) -> None:
    names = [f".tmp-export-{'0' * 31}{i}-tree" for i in (1, 2)] + [f".tmp-export-{'0' * 32}-other"]
    for name in names:
        (tmp_path / name).mkdir()
    for name in (names[0], names[2]):
        os.utime(tmp_path / name, (time.time() - 90_000,) * 2)
    export(open_store(str(two_versions)), str(tmp_path / "tree"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([names[1], names[2], "tree"])


# --- with publishing --------------------------------------------------------------------------


def test_publishing_exports_after_the_commit(any_store: Store, tmp_path: Path) -> None:
    release = releases.stage_release(any_store)
    settings = Publish(export=str(tmp_path / "tree"))
    publish_parts(**{**vars(release), "publish": settings})
    tree = open_store(str(tmp_path / "tree"))
    assert len(ids(tree)) == 55
    shutil.rmtree(tmp_path / "tree")
    again = publish_parts(**{**vars(release), "publish": settings})
    assert not again.created
    assert len(ids(tree)) == 55  # as after a kill between the commit and the export
    assert not publish_parts(**vars(release)).created  # where a copy goes makes no other dataset
    assert list_versions(any_store) == (1,)


def test_publishing_exports_the_newest_version_also_after_a_rollback(
    any_store: Store, publish_two: Callable[[Store], Any], tmp_path: Path
) -> None:
    release = publish_two(any_store)
    recipe = release.recipe.model_copy(update={"synthetic": {}, "sentence": "None."})
    parts = {**vars(release), "recipe": recipe, "publish": Publish(export=str(tmp_path / "tree"))}
    publish_parts(**parts)
    rollback(any_store, 1)
    publish_parts(**parts)
    assert len(ids(open_store(str(tmp_path / "tree")))) == 55


def test_a_folder_that_is_not_free_is_said_before_anything_is_written(
    any_store: Store, tmp_path: Path
) -> None:
    release = releases.stage_release(any_store)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "mine.txt").write_text("mine")
    with pytest.raises(ParameterError, match="not of an export"):
        publish_parts(**{**vars(release), "publish": Publish(export=str(tmp_path / "tree"))})
    assert list_versions(any_store) == ()
    assert any_store.list("data") == []
