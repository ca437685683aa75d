"""What version 0.1 has published and staged is read, checked and continued by this one."""

import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment import Source, open_dataset, remake_records
from prefect_augment.ingest.ingest import ingest
from prefect_augment.maintenance.inspect import inspect, versions
from prefect_augment.maintenance.verify import verify
from prefect_augment.shards.staged import load_info
from prefect_augment.split.ledger import PARTS
from prefect_augment.split.ledger_io import read_ledger
from prefect_augment.storage import Store, open_store

# 400 claims, 40 of them fraud; 831 synthetic records of a model of trees; every file of the run that counts.
PUBLISHED = Path(__file__).parent / "data" / "published_0.1.zip"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with zipfile.ZipFile(PUBLISHED) as archive:
        archive.extractall(tmp_path)
    return tmp_path


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(str(root / "published"))


def test_its_records_recipe_and_verdict_are_read(root: Path, store: Store) -> None:
    dataset = open_dataset(root / "published", verify=True)
    manifest = dataset.manifest
    assert dataset.to_table().num_rows == 1151
    assert dataset.class_counts["train"]["yes"] == {"real": 32, "synthetic": 203}
    assert dataset.recipe.strategy.family == "model"
    assert manifest.verdict is not None
    assert dataset.recipe.strategy.name in manifest.verdict.strategies
    assert [c.name for c in manifest.filtered] == ["no", "yes"]
    assert manifest.models[0].n_training > 0
    assert versions(store)[0].strategy == "trees"
    assert inspect(store).decision == manifest.verdict.decision


def test_its_files_are_what_its_manifest_says(store: Store) -> None:
    assert [problem.kind for problem in verify(store).problems if problem.path != "README.md"] == []


def test_its_model_draws_the_same_records_again(root: Path) -> None:
    dataset = open_dataset(root / "published")
    drawn = dataset.to_table(origins=["synthetic"])
    again = remake_records(dataset, drawn["aug_id"].to_pylist()[:20])
    assert again.equals(drawn.slice(0, 20).select(again.column_names))


def test_the_next_version_inherits_its_split(root: Path, store: Store) -> None:
    claims = pq.read_table(root / "source" / "claims.parquet")
    more = claims.slice(0, 30).set_column(0, "amount", pa.array([100.0 + i for i in range(30)]))
    pq.write_table(more, root / "source" / "more.parquet")
    before = read_ledger(store, open_dataset(root / "published").manifest.ledger.path)

    dataset = ingest(Source(uri=str(root / "source"), label="fraud"), store=store, seed=0)
    after = read_ledger(store, load_info(dataset, store).ledger)
    parts = dict(zip(after.keys.tolist(), after.parts.tolist(), strict=True))
    assert len(parts) == 430
    assert {PARTS[part] for part in parts.values()} == set(PARTS)
    for key, part in zip(before.keys.tolist(), before.parts.tolist(), strict=True):
        assert parts[key] == part
