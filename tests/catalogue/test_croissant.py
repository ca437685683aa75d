"""croissant.json is valid by mlcroissant, and its records are the version's rows."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.steps import publish_parts

from prefect_augment.catalogue.croissant import CROISSANT
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import Publish
from prefect_augment.report.card import refresh_card
from prefect_augment.storage import Store, open_store, read_manifest

pytestmark = pytest.mark.filterwarnings("ignore")  # of mlcroissant and what it imports
mlcroissant = pytest.importorskip("mlcroissant")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


def published(store: Store, releases: ModuleType, table: Any = None, **changes: Any) -> Any:
    release = releases.stage_release(store, table=table)
    if table is not None and "image" in table.column_names:
        release.dataset = releases.stage_dataset(store, table, key="pictures", modality="image")
    return publish_parts(**vars(release) | changes)


def records(store: Store, split: str) -> list[dict[str, Any]]:
    dataset = mlcroissant.Dataset(f"{store.uri}/{CROISSANT}")
    assert not dataset.metadata.ctx.issues.errors
    return [
        {name.removeprefix(f"{split}/"): value for name, value in record.items()}
        for record in dataset.records(split)
    ]


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value


@pytest.mark.slow
def test_the_records_are_the_rows(store: Store, releases: ModuleType) -> None:
    published(store, releases, publish=Publish(shard_records=10))
    for split in ("train", "holdout"):
        rows = open_dataset(store.uri).to_table(split).to_pylist()
        read = {plain(r["aug_id"]): r for r in records(store, split)}
        assert len(read) == len(rows) > 5
        for row in rows:
            record = read[row["aug_id"]]
            assert set(record) == set(row)
            for name, value in row.items():
                expected = pd.Timestamp(value) if name == "when" else value
                assert plain(record[name]) == expected, name


@pytest.mark.slow
def test_files_counts_and_licence_are_the_manifest_s(store: Store, releases: ModuleType) -> None:
    requested = {"publish": {"licence": "CC-BY-4.0"}}
    published(store, releases, publish=Publish(shard_records=10), requested=requested)
    manifest = read_manifest(store)
    metadata = mlcroissant.Dataset(f"{store.uri}/{CROISSANT}").metadata
    assert [w for w in metadata.ctx.issues.warnings if "citeAs" not in w] == []
    assert metadata.version == "1.0.0"
    assert metadata.license == ["https://spdx.org/licenses/CC-BY-4.0"]
    files = {f.content_url: (f.sha256, f.content_size) for f in metadata.file_objects}
    assert files == {s.path: (s.sha256, f"{s.n_bytes} B") for s in manifest.shards}
    counts = records(store, "class_counts")
    assert sum(int(r["records"]) for r in counts) == sum(s.n_records for s in manifest.shards)
    assert "4 synthetic records" in (metadata.data_collection or "")


@pytest.mark.slow
def test_images_are_read_from_parquet_and_from_tars(
    tmp_path: Path, releases: ModuleType, messy_images: ModuleType
) -> None:
    table = releases.image_table(messy_images, 30)
    for kind in ("parquet", "webdataset"):
        store = open_store(str(tmp_path / kind))
        published(store, releases, table, publish=Publish(format=kind))
        read = records(store, "train")
        assert len(read) == open_dataset(store.uri).to_table("train").num_rows
        assert all(record["image"].size for record in read)


def test_columns_without_a_type_are_named(store: Store, releases: ModuleType) -> None:
    table = releases.source_table(20).append_column(
        "a/b: c", pa.array([[1.0, 2.0]] * 20, pa.list_(pa.float32()))
    )
    table = table.append_column("boxes", pa.array([[{"x": 1}]] * 20))
    published(store, releases, table=table)
    (train,) = [s for s in json.loads(store.read(CROISSANT))["recordSet"] if s["@id"] == "train"]
    fields = {f["name"]: f for f in train["field"]}
    assert "no type for: boxes." in train["description"]
    assert (fields["a/b: c"]["isArray"], fields["a/b: c"]["@id"]) == (True, "train/a%2Fb%3A%20c")


def test_it_is_kept_up_as_the_card_is(store: Store, releases: ModuleType) -> None:
    published(store, releases)
    ours = store.read(CROISSANT)
    store.put(CROISSANT, ours.replace(b"1.0.0", b"0.0.1"))
    assert [p.kind for p in verify(store).problems] == ["card"]
    assert verify(store, repair=True).ok
    assert store.read(CROISSANT) == ours
    store.put(CROISSANT, b'{"@type": "sc:Dataset"}')  # somebody else's
    assert not refresh_card(store)
    assert verify(store).ok


def test_no_secret_of_a_url_stands_in_it(store: Store, releases: ModuleType) -> None:
    """A manifest of an earlier release may have one; and a share does not say where its source was."""
    source = {"uri": "https://me:hidden-word@host.org/people.csv?sig=hidden-word"}
    published(store, releases, requested={"source": source})
    for path in (CROISSANT, "README.md"):
        assert b"hidden-word" not in store.read(path)
