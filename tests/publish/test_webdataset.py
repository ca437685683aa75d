"""Datasets published as WebDataset: the same records as with Parquet, for readers of tars."""

import io
import json
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import releases
from support.steps import publish_parts

pytest.importorskip("PIL", reason="needs the extra 'images'")

from prefect_augment.errors import ParameterError
from prefect_augment.ingest.ingest import ingest
from prefect_augment.loading.dataset import Dataset, open_dataset
from prefect_augment.maintenance import inspect as maintain
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import Publish, Source
from prefect_augment.report.card import CARD
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import open_store, read_manifest

TAIL = "c/<b>|'"


@pytest.fixture
def make(tmp_path: Path, messy_images: ModuleType) -> Any:
    """Publish the same images in a format; real, classic and synthetic ones, and a hold-out."""

    def made(shard_format: str, name: str = "") -> Dataset:
        store = open_store(str(tmp_path / (name or shard_format)))
        table = releases.image_table(messy_images, 120)
        release = releases.stage_release(store, table=table)
        release.dataset = releases.stage_dataset(store, table, key="pictures", modality="image")
        publish_parts(
            **{**vars(release), "publish": Publish(format=shard_format, shard_records=40)}
        )
        return open_dataset(store.uri, verify=True)

    return made


@pytest.fixture
def tars(make: Any) -> Dataset:
    dataset: Dataset = make("webdataset")
    return dataset


def test_the_records_are_those_of_parquet(make: Any, tars: Dataset) -> None:
    parquet = make("parquet")
    for split in ("train", "holdout"):
        assert tars.to_table(split).equals(parquet.to_table(split))
        assert tars.to_table(split).schema.equals(
            parquet.to_table(split).schema, check_metadata=True
        )
        assert all(path.endswith(".tar") for path in tars.paths[split])
    np.testing.assert_array_equal(tars.sample_weight(), parquet.sample_weight())
    assert tars.class_counts == parquet.class_counts


def test_a_version_verifies_and_is_the_same_to_the_byte_again(make: Any, tars: Dataset) -> None:
    report = verify(tars.store)
    assert report.ok, report.problems
    again = make("webdataset", "again")
    assert [s.sha256 for s in again.manifest.shards] == [s.sha256 for s in tars.manifest.shards]


def test_a_flipped_byte_is_found(tars: Dataset) -> None:
    path = tars.manifest.shards[0].path
    data = bytearray(tars.store.read(path))
    data[len(data) // 2] ^= 1
    tars.store.put(path, bytes(data))
    (problem,) = verify(tars.store).problems
    assert (problem.kind, problem.path) == ("changed", path)


def test_another_format_is_another_version_of_the_same_records(
    tars: Dataset, messy_images: ModuleType
) -> None:
    store = tars.store
    table = releases.image_table(messy_images, 120)
    release = releases.stage_release(store, table=table)
    release.dataset = releases.stage_dataset(store, table, key="pictures", modality="image")
    publish_parts(**{**vars(release), "publish": Publish(shard_records=40)})
    assert open_dataset(store.uri).to_table().equals(tars.to_table())
    change = maintain.diff(store, 1, 2)
    assert (change.n_real_added, change.n_real_removed, change.n_shards_shared) == (0, 0, 0)


def test_a_table_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    release = releases.stage_release(open_store(str(tmp_path / "table")))
    with pytest.raises(
        ParameterError, match=r"'webdataset' is for image data.*table data.*: parquet"
    ):
        publish_parts(**{**vars(release), "publish": Publish(format="webdataset")})
    assert not (tmp_path / "table" / "data").exists()


# --- as a source ------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_format", ["parquet", "webdataset"])
def test_a_published_dataset_is_a_source_with_its_split(
    tmp_path: Path, messy_images: ModuleType, shard_format: str
) -> None:
    pq.write_table(releases.image_table(messy_images, 90), tmp_path / "in.parquet")
    first = open_store(str(tmp_path / "first"))
    source = Source(uri=str(tmp_path / "in.parquet"), label="label")
    ref = ingest(source, store=first, seed=0)
    releases.publish_as_is(first, ref, Publish(format=shard_format))
    again = open_store(str(tmp_path / "again"))
    info = load_info(ingest(Source(uri=first.uri), store=again, seed=1), again)
    assert any("only its real records are read" in note for note in info.notes)
    for part in ("training", "validation", "holdout"):
        was = read_part(first, load_info(ref, first), [part]).sort_by("aug_id")
        assert read_part(again, info, [part]).sort_by("aug_id").equals(was)


def test_a_shard_alone_gives_its_real_records_with_their_columns(
    tars: Dataset, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "again"))
    source = Source(uri=f"{tars.store.uri}/data/train-*.tar", format="webdataset")
    info = load_info(ingest(source, store=store, seed=0), store)
    table = read_part(store, info, ["training", "validation", "holdout"])
    real = tars.to_table(origins=["real"])
    assert table.num_rows == real.num_rows
    assert table.column_names == ["image", "mask", "tile", "site", "label", "aug_id", "content_key"]
    assert set(table["label"].to_pylist()) == set(tars.classes)
    assert any("only its real records" in note for note in info.notes)


def test_records_that_were_made_are_left_out_of_a_tar_packed_anew(
    tars: Dataset, tmp_path: Path
) -> None:
    """Packed anew it is no shard of ours; what its .json says of a record still counts."""
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "all.tar", "w") as packed:
        for path in tars.paths["train"]:
            with tarfile.open(path) as tar:
                for info in tar.getmembers()[1:]:
                    packed.addfile(info, io.BytesIO(tar.extractfile(info).read()))  # type: ignore[union-attr]
    store = open_store(str(tmp_path / "again"))
    info = load_info(ingest(Source(uri=str(tmp_path / "packed")), store=store, seed=0), store)
    table = read_part(store, info, ["training", "validation", "holdout"])
    with_mask = tars.to_table(origins=["real"])
    n_images = with_mask.num_rows + sum(m is not None for m in with_mask["mask"].to_pylist())
    assert table.num_rows + info.n_quarantined == n_images
    assert any("7 records that were made and are not real" in note for note in info.notes)


# --- other readers ----------------------------------------------------------------------------


# The library leaves closing to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_it(tars: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_SECURE", "1")
    wds: Any = pytest.importorskip("webdataset")
    stream = wds.WebDataset(tars.paths["train"], shardshuffle=False).decode("rgb8")
    samples = list(stream)
    read = tars.to_table().to_pylist()
    assert [s["__key__"] for s in samples] == [r["aug_id"] for r in read]
    for sample, record in zip(samples, read, strict=True):
        assert tars.classes[sample["cls"]] == record["label"]
        assert sample["json"]["aug_origin"] == record["aug_origin"]
        assert sample["json"]["aug_weight"] == record["aug_weight"]
        assert sample["json"].get("aug_parent") == record["aug_parent"]
        (picture,) = [sample[k] for k in ("jpg", "png") if k in sample]
        assert picture.shape == (20, 24, 3)


def test_datasets_loads_the_folder_as_its_newest_version(tars: Dataset, tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(tars.store.uri, cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in loaded.items()} == {
        split: tars.to_table(split).num_rows for split in ("train", "holdout")
    }
    train = loaded["train"]
    assert train.features["cls"].names == list(tars.classes)
    read = tars.to_table().to_pylist()
    for sample, record in zip(train, read, strict=True):
        assert train.features["cls"].int2str(sample["cls"]) == record["label"]
        for name in ("aug_id", "aug_origin", "aug_parent", "aug_model", "aug_seed", "tile"):
            assert sample["json"][name] == record[name]
        picture = sample["jpg"] or sample["png"]
        assert picture.size == (24, 20)


def test_the_card_says_how_tars_are_read(make: Any, tars: Dataset) -> None:
    card = tars.store.read(CARD).decode()
    assert "webdataset.WebDataset(dataset.paths" in card
    assert "read_parquet" not in card
    assert "webdataset" not in make("parquet").store.read(CARD).decode()
    fields = json.loads(tars.store.read("_manifests/v00000001.json"))
    assert read_manifest(tars.store).classes == tars.classes == ("a", "b", TAIL)
    assert "classes" not in fields
