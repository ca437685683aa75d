import json
import threading
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support import releases
from support.steps import publish_parts

from prefect_augment.errors import IntegrityError, ParameterError, SchemaError
from prefect_augment.loading.dataset import Dataset, open_dataset
from prefect_augment.shards.parquet import LINEAGE
from prefect_augment.storage import Store, open_store


@pytest.fixture
def store(any_store: Store) -> Store:
    return any_store


@pytest.fixture
def dataset(store: Store) -> Dataset:
    publish_parts(**vars(releases.stage_release(store)))
    return open_dataset(store.uri, verify=True)


def test_the_source_s_columns_come_first_and_as_they_were(dataset: Dataset) -> None:
    source = releases.source_table()
    for split in ("train", "holdout"):
        table = dataset.to_table(split)
        assert table.column_names == [*source.column_names, *LINEAGE.names]
        assert table.select(source.column_names).schema.equals(source.schema)
    frame = dataset.to_pandas()
    assert frame.dtypes[source.column_names].to_dict() == source.to_pandas().dtypes.to_dict()


def test_real_records_are_unchanged(dataset: Dataset) -> None:
    names = releases.source_table().column_names
    real = [
        dataset.to_table(split, ["real"]).select(names).to_pandas()
        for split in ("train", "holdout")
    ]
    found = pd.concat(real).sort_values("when", ignore_index=True)
    pd.testing.assert_frame_equal(found, releases.source_table().to_pandas())


def test_ids_are_unique_over_the_version(dataset: Dataset) -> None:
    ids = [
        i for split in ("train", "holdout") for i in dataset.to_table(split)["aug_id"].to_pylist()
    ]
    assert len(set(ids)) == len(ids) == 67


def test_counts_weights_and_origins_agree(dataset: Dataset) -> None:
    assert dataset.class_counts["train"]["c/<b>|'"] == {"real": 7, "classic": 3, "synthetic": 4}
    assert dataset.to_table(origins=["synthetic"]).num_rows == 4
    weights = dataset.sample_weight()
    assert weights.dtype == np.float32
    assert len(weights) == dataset.to_table().num_rows
    assert weights.mean() == pytest.approx(1.0)
    assert dataset.sample_weight(origins=["synthetic"]).shape == (4,)
    assert dataset.recipe.strategy.name == "model"
    assert dataset.label == "label"


def test_columns_are_read_in_the_order_asked_for(dataset: Dataset) -> None:
    assert dataset.to_table(columns=["aug_weight", "x"]).column_names == ["aug_weight", "x"]
    with pytest.raises(SchemaError, match="no column 'nope'"):
        dataset.to_table(columns=["nope"])


def test_an_origin_without_records_has_the_columns_and_no_rows(dataset: Dataset) -> None:
    empty = dataset.to_table(origins=["copy"])
    assert empty.num_rows == 0
    assert empty.schema == dataset.to_table().schema
    assert dataset.sample_weight(origins=["copy"]).shape == (0,)


def test_a_split_that_is_not_there_is_named(dataset: Dataset) -> None:
    with pytest.raises(ParameterError, match="no split 'test'; there is: holdout, train"):
        dataset.to_table("test")


def test_paths_name_every_shard_by_split(dataset: Dataset) -> None:
    assert (
        {split: len(paths) for split, paths in dataset.paths.items()}
        == {
            "train": 5,  # real: two staged shards of training records and one of validation records; classic; synthetic
            "holdout": 1,
        }
    )
    read = pd.concat([pd.read_parquet(path) for path in dataset.paths["train"]])
    assert len(read) == dataset.to_table().num_rows


def test_an_open_dataset_stays_the_version_it_was(store: Store) -> None:
    release = releases.stage_release(store)
    publish_parts(**vars(release))
    old = open_dataset(store.uri)
    publish_parts(
        **{**vars(release), "recipe": release.recipe.model_copy(update={"synthetic": {"a": 0}})}
    )
    new = open_dataset(store.uri)
    assert (old.version, new.version) == (1, 2)
    assert old.to_table().num_rows == 55
    assert new.to_table().num_rows == 51
    assert open_dataset(store.uri, version=1).to_table().equals(old.to_table())
    assert repr(new) == f"Dataset({store.uri!r}, version=2)"


@pytest.mark.slow
def test_readers_beside_a_writer_see_whole_versions_only(store: Store) -> None:
    release = releases.stage_release(store)
    publish_parts(**vars(release))
    seen: set[tuple[int, int]] = set()
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                dataset = open_dataset(store.uri, verify=True)
                seen.add((dataset.version, dataset.to_table().num_rows))
        except BaseException as exc:  # noqa: BLE001 - handed to the test
            failures.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    for n in (3, 2, 1):
        recipe = release.recipe.model_copy(update={"synthetic": {"c/<b>|'": n}})
        publish_parts(**{**vars(release), "recipe": recipe})
    stop.set()
    reader.join()
    assert not failures
    assert seen <= {(1, 55), (2, 54), (3, 53), (4, 52)}
    assert seen


def test_a_flipped_byte_is_found_when_asked_to_look(store: Store) -> None:
    publish_parts(**vars(releases.stage_release(store)))
    shard = open_dataset(store.uri).manifest.shards[0]
    data = store.read(shard.path)
    store.put(shard.path, data[:-200] + bytes([data[-200] ^ 1]) + data[-199:])
    with pytest.raises(IntegrityError, match="other bytes than were published"):
        open_dataset(store.uri, verify=True).to_table()


def test_a_missing_shard_is_named(store: Store) -> None:
    publish_parts(**vars(releases.stage_release(store)))
    dataset = open_dataset(store.uri)
    store.delete(dataset.manifest.shards[1].path)
    with pytest.raises(IntegrityError, match=dataset.manifest.shards[1].path):
        dataset.to_table()


def test_a_holdout_elsewhere_is_said(store: Store) -> None:
    release = releases.stage_release(store)
    given = releases.stage_dataset(
        store, releases.source_table(), key="given", holdout_uri="s3://lake/test"
    )
    publish_parts(**{**vars(release), "dataset": given})
    dataset = open_dataset(store.uri)
    assert set(dataset.class_counts) == {"train"}
    with pytest.raises(ParameterError, match="given as s3://lake/test and not copied"):
        dataset.to_table("holdout")


# --- the recipe's multipliers -----------------------------------------------------------------


def with_thresholds(dataset: Dataset, thresholds: dict[str, dict[str, float]]) -> Dataset:
    recipe = dataset.recipe.model_copy(update={"thresholds": thresholds})
    return Dataset(dataset.store, dataset.manifest.model_copy(update={"recipe": recipe}))


TUNED = {"boosting": {"a": 1.0, "b": 3.0, "c/<b>|'": 8.0}, "logistic": {"a": 1.0, "b": 1.0}}


def test_multipliers_move_the_prediction_and_keep_probabilities(dataset: Dataset) -> None:
    assert dataset.classes == ("a", "b", "c/<b>|'")
    tuned = with_thresholds(dataset, TUNED)
    proba = np.array([[0.6, 0.3, 0.1], [0.98, 0.01, 0.01], [0.0, 0.0, 0.0]])
    found = tuned.apply_thresholds(proba, "boosting")
    assert found[:2].argmax(axis=1).tolist() == [1, 0]
    np.testing.assert_allclose(found[0], np.array([0.6, 0.9, 0.8]) / 2.3)
    assert found.sum(axis=1).tolist() == pytest.approx([1, 1, 0])
    np.testing.assert_allclose(proba[0], [0.6, 0.3, 0.1])


def test_multipliers_go_by_the_classes_of_the_columns(dataset: Dataset) -> None:
    tuned = with_thresholds(dataset, {"boosting": TUNED["boosting"]})
    found = tuned.apply_thresholds([[0.5, 0.5]], classes=np.array(["b", "a"]))
    np.testing.assert_allclose(found, [[0.75, 0.25]])


def test_numbers_and_booleans_are_classes_as_the_manifest_spells_them(dataset: Dataset) -> None:
    def of(classes: list[str], tuned: dict[str, float]) -> Dataset:
        counts = {"train": {name: {"real": 1} for name in classes}}
        manifest = dataset.manifest.model_copy(update={"class_counts": counts})
        return with_thresholds(Dataset(dataset.store, manifest), {"boosting": tuned})

    numbers = of(["9", "10"], {"9": 1.0, "10": 3.0})
    assert numbers.classes == ("9", "10")
    found = numbers.apply_thresholds([[0.5, 0.5]], classes=np.array([9, 10]))
    np.testing.assert_allclose(found, [[0.25, 0.75]])
    flags = of(["true", "false"], {"true": 3.0})
    found = flags.apply_thresholds([[0.5, 0.5]], classes=np.array([False, True]))
    np.testing.assert_allclose(found, [[0.25, 0.75]])


def test_a_recipe_without_multipliers_changes_nothing(dataset: Dataset) -> None:
    proba = [[0.2, 0.3, 0.5]]
    np.testing.assert_allclose(dataset.apply_thresholds(proba, "anything"), proba)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"probabilities": [[1.0, 0.0, 0.0]]}, "'boosting', 'logistic', not for ''"),
        ({"probabilities": [[1.0, 0.0, 0.0]], "estimator": "forest"}, "not for 'forest'"),
        ({"probabilities": [[1.0, 0.0]], "estimator": "logistic"}, "a column for each of 3"),
        ({"probabilities": [0.5, 0.5, 0.0], "estimator": "logistic"}, "a column for each of 3"),
        (
            {"probabilities": [[1.0]], "estimator": "logistic", "classes": ["z"]},
            "'z' is none of the version's",
        ),
    ],
)
def test_multipliers_that_cannot_be_applied_say_why(
    dataset: Dataset, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(ParameterError, match=words):
        with_thresholds(dataset, TUNED).apply_thresholds(**asked)


# --- other readers ----------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> Dataset:
    store = open_store(str(tmp_path / "out"))
    release = releases.stage_release(store)
    publish_parts(**vars(release))
    # A second version beside the first: readers must not see the shards of both.
    publish_parts(
        **{**vars(release), "recipe": release.recipe.model_copy(update={"classic": {"a": 0}})}
    )
    return open_dataset(store.uri)


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Compare ids in order and the columns by value: each reader has null and category types of its own."""
    assert list(found.columns) == list(expected.columns)
    for name in ("aug_id", "label", "aug_origin"):
        assert found[name].tolist() == expected[name].tolist()
    np.testing.assert_array_equal(found["x"].to_numpy(float), expected["x"].to_numpy(float))
    assert found["site"].astype(str).tolist() == expected["site"].astype(str).tolist()
    assert found["n"].isna().tolist() == expected["n"].isna().tolist()
    assert pd.to_datetime(found["when"]).tolist() == expected["when"].tolist()


def test_pandas_reads_it(published: Dataset) -> None:
    read = pd.concat(
        [pd.read_parquet(path) for path in published.paths["train"]], ignore_index=True
    )
    assert len(read) == 52
    pd.testing.assert_frame_equal(read, published.to_pandas())


def test_polars_reads_it(published: Dataset) -> None:
    polars = pytest.importorskip("polars")
    same(
        pd.DataFrame(polars.read_parquet(published.paths["train"]).to_dict(as_series=False)),
        published.to_pandas(),
    )


def test_duckdb_reads_it(published: Dataset) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        files = connection.execute("select * from read_parquet(?)", [published.paths["train"]])
        names = [column[0] for column in files.description]
        same(pd.DataFrame(files.fetchall(), columns=names), published.to_pandas())


def test_datasets_loads_the_folder_as_its_newest_version(
    published: Dataset, tmp_path: Path
) -> None:
    datasets: Any = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 52, "holdout": 12}
    same(pd.DataFrame(loaded["train"].to_dict()), published.to_pandas())


def test_the_manifest_alone_says_what_is_there(published: Dataset, tmp_path: Path) -> None:
    fields = json.loads((tmp_path / "out" / "_manifests" / "v00000002.json").read_bytes())
    assert {s["path"] for s in fields["shards"]} <= {
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out" / "data").iterdir()
    }


def test_a_notebook_shows_the_classes_and_the_recipe(dataset: Dataset) -> None:
    shown = dataset._repr_html_()
    assert all(f"<td>{escape(name)}</td>" in shown for name in dataset.classes)
    assert dataset.recipe.strategy.name in dataset.recipe._repr_html_()


def test_polars_gets_the_same_records(dataset: Dataset) -> None:
    assert dataset.to_polars().to_dicts() == dataset.to_table().to_pylist()
