"""Which training records a model is fitted on where there are more than it needs."""

import logging
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from support.steps import experiment_of

from prefect_augment.encoding import subsample
from prefect_augment.encoding.subsample import (
    Sample,
    read_parts,
    read_training_records,
    sample_rows,
    sample_sizes,
)
from prefect_augment.errors import MissingExtraError
from prefect_augment.params import AutoencoderModel, Budget, ModelParams, TreesModel
from prefect_augment.registry import load_model_class, model_kinds
from prefect_augment.schema import DatasetRef
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store
from prefect_augment.storage.keys import hash_ids
from prefect_augment.synthesis.model_store import load_model
from prefect_augment.synthesis.train import train


@pytest.fixture
def dataset(store: Store, releases: ModuleType) -> DatasetRef:
    ref: DatasetRef = releases.stage_dataset(store, releases.source_table(700), shard_records=100)
    return ref


def read(
    store: Store, dataset: DatasetRef, most: int, seed: int = 0
) -> tuple[pa.Table, tuple[str, ...]]:
    return read_training_records(store, load_info(dataset, store), by=(), most=most, seed=seed)


def test_rarer_classes_are_taken_whole_and_the_others_alike() -> None:
    assert sample_sizes(np.array([900, 80, 10]), most=200).tolist() == [110, 80, 10]
    assert sample_sizes(np.array([5, 5]), most=200).tolist() == [5, 5]
    assert sample_sizes(np.array([50, 50, 50]), most=100).sum() == 100


def test_no_more_records_than_allowed_are_taken_all(store: Store, dataset: DatasetRef) -> None:
    table, notes = read(store, dataset, 420)
    assert notes == ()
    assert table.equals(read_part(store, load_info(dataset, store), ["training"]).sort_by("aug_id"))
    assert read(store, dataset, 0)[0].equals(table)


def test_a_sample_depends_on_ids_and_seed_alone(store: Store, dataset: DatasetRef) -> None:
    info = load_info(dataset, store)
    table, notes = read(store, dataset, 90)
    counts = dict(zip(*np.unique(table["label"].to_pylist(), return_counts=True), strict=True))
    assert set(counts.values()) == {30}
    assert "fitted on 90 of 420 training records" in notes[0]
    turned = info.model_copy(update={"shards": info.shards[::-1]})
    assert read_training_records(store, turned, by=(), most=90, seed=0)[0].equals(table)
    assert not read(store, dataset, 90, seed=1)[0].equals(table)
    whole = {row["aug_id"]: row for row in read(store, dataset, 0)[0].to_pylist()}
    assert all(repr(whole[row["aug_id"]]) == repr(row) for row in table.to_pylist())


def test_records_that_come_in_parts_are_chosen_as_all_at_once(
    store: Store, dataset: DatasetRef
) -> None:
    """What is forgotten on the way would not have been taken: also where a rare class comes last."""
    table, _ = read(store, dataset, 0)
    names = np.array(table["label"].to_pylist())
    strata = np.unique(names, return_inverse=True)[1]
    for most in (1, 7, 50, 300):
        chosen = sample_rows(strata, hash_ids(table["aug_id"]), Sample(most, 3))
        expected = {table["aug_id"][int(i)].as_py() for i in chosen}
        # Shards of 100 records: the choice is made in five steps.
        assert set(read(store, dataset, most, seed=3)[0]["aug_id"].to_pylist()) == expected
        assert len(expected) == most


def test_a_smallest_identifier_is_always_there(store: Store, releases: ModuleType) -> None:
    """New records count down from it, so that no number is given twice."""
    table = releases.source_table(300)
    numbers = np.arange(300) - 150
    table = table.set_column(1, "n", pa.array(numbers))
    ref = releases.stage_dataset(store, table)
    info = load_info(ref, store)
    columns = tuple(
        c.model_copy(update={"kind": "identifier", "arrow_type": "int64"}) if c.name == "n" else c
        for c in info.columns
    )
    info = info.model_copy(update={"columns": columns})
    everything, _ = read_training_records(store, info, by=(), most=0, seed=0)
    smallest = min(everything["n"].to_pylist())
    for seed in range(5):
        found, _ = read_training_records(store, info, by=(), most=6, seed=seed)
        assert smallest in found["n"].to_pylist()


@pytest.mark.parametrize("model", [TreesModel(), AutoencoderModel(width=16)], ids=lambda m: m.kind)
def test_a_model_says_that_it_was_fitted_on_a_sample(
    store: Store,
    releases: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    model: ModelParams,
) -> None:
    if model.kind != "trees":
        pytest.importorskip("torch", reason="the extra 'torch'")
    dataset = releases.stage_dataset(store, releases.source_table(700).select(["x", "label"]))
    asked = experiment_of(dataset, model=model, budget=Budget(steps=3, device="cpu"))
    whole = train(asked, store)
    monkeypatch.setattr(load_model_class(model), "max_training_records", 90)
    with caplog.at_level(logging.INFO, logger="prefect_augment"):
        sampled = train(asked, store)
    assert (whole.n_training, sampled.n_training) == (420, 90)
    assert whole.key != sampled.key
    assert whole.strata == sampled.strata
    assert "fitted on 90 of 420 training records" in sampled.notes[0]
    assert not any("fitted on" in note for note in whole.notes)
    assert f"Training {model.kind} on 90 records of 1 columns takes" in caplog.text


@pytest.mark.slow
def test_of_many_numbers_a_model_guards_those_that_it_has_learnt(
    store: Store, monkeypatch: pytest.MonkeyPatch, releases: ModuleType
) -> None:
    table = releases.source_table(700).select(["label"])
    numbers = np.random.default_rng(0).normal(size=700)
    table = table.append_column("x", pa.array(numbers))
    dataset = releases.stage_dataset(store, table, key="numbers")
    wanted = experiment_of(dataset, model=TreesModel())
    monkeypatch.setattr(load_model_class(TreesModel()), "max_training_records", 90)
    whole = train(wanted, store)
    monkeypatch.setattr("prefect_augment.synthesis.train.MAX_NUMBERS", 300)
    limited = train(wanted, store)
    assert whole.key != limited.key
    guarded = [load_model(store, model)[1]._rare for model in (whole, limited)]
    learnt, _ = read(store, dataset, 90)
    assert len(guarded[0].numbers[0][0]) == 420
    assert guarded[1].numbers[0][0].tolist() == sorted(learnt["x"].to_pylist())
    assert guarded[1].numbers[0][1].all(), "each is a single record's, among all 420"


@pytest.mark.parametrize("kind", model_kinds("table"))
def test_every_model_of_tables_has_a_limit(kind: str) -> None:
    """What it holds in memory would grow with the table."""
    try:
        model_class = load_model_class(kind)
    except MissingExtraError as exc:
        pytest.skip(str(exc))
    assert 50_000 <= model_class.max_training_records <= 1_000_000


PARTS = ("training", "validation")


def shares_of(names: list[str]) -> dict[str, float]:
    found, counts = np.unique(names, return_counts=True)
    return dict(zip(found.tolist(), (counts / len(names)).tolist(), strict=True))


def test_a_sample_to_compare_on_keeps_the_class_frequencies(
    store: Store, releases: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = releases.source_table(2000)
    names = np.array(["common"] * 1600 + ["rare"] * 390 + ["single"] * 10)
    table = table.set_column(table.column_names.index("label"), "label", pa.array(names))
    ref = releases.stage_dataset(store, table, key="frequencies", shard_records=300)
    info = load_info(ref, store)
    monkeypatch.setattr(subsample, "LEAST_OF_CLASS", 5)
    sample = Sample(400, 1, equal=False)
    training, validation = read_parts(store, info, PARTS, by=(), sample=sample)
    assert 400 <= training.num_rows + validation.num_rows <= 410
    assert 0.2 < validation.num_rows / 400 < 0.3, "a quarter, as of all"
    labels = [*training["label"].to_pylist(), *validation["label"].to_pylist()]
    shares = shares_of(labels)
    assert shares["common"] == pytest.approx(0.8, abs=0.05)
    assert shares["rare"] == pytest.approx(0.195, abs=0.05)
    assert labels.count("single") >= 5, "no class is lost to its share"
    turned = info.model_copy(update={"shards": info.shards[::-1]})
    again = read_parts(store, turned, PARTS, by=(), sample=sample)
    assert [t.sort_by("aug_id").to_pylist() for t in again] == [
        t.sort_by("aug_id").to_pylist() for t in (training, validation)
    ]
    other = read_parts(store, info, PARTS, by=(), sample=sample._replace(seed=2))
    assert set(other[0]["aug_id"].to_pylist()) != set(training["aug_id"].to_pylist())


def test_the_parts_of_a_table_within_the_limit_come_as_they_are(
    store: Store, dataset: DatasetRef
) -> None:
    info = load_info(dataset, store)
    parts = read_parts(store, info, PARTS, by=(), sample=Sample(560, 0, equal=False))
    assert [t.num_rows for t in parts] == [420, 140]
    assert all(
        t.equals(read_part(store, info, [part])) for t, part in zip(parts, PARTS, strict=True)
    )
