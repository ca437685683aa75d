"""Sample: exact counts, stable seeds, the source's columns, and records made again."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.staging import people, stage_parts, train_people
from support.steps import experiment_of

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.experiment.filter import filter_candidates
from prefect_augment.params import RunParams, TreesModel
from prefect_augment.plan.plan import plan
from prefect_augment.schema import DatasetRef, ModelRef
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store
from prefect_augment.synthesis import sample as stage
from prefect_augment.synthesis.draw import candidate_seeds
from prefect_augment.synthesis.sample import Draws, n_batches, sample


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}")


@pytest.fixture
def dataset(store: Store) -> DatasetRef:
    table = people()
    return stage_parts(store, {"training": table.slice(0, 200), "validation": table.slice(200)})


@pytest.fixture
def model(dataset: DatasetRef, store: Store) -> ModelRef:
    return train_people(dataset, store)


def drawn(model: ModelRef, dataset: DatasetRef, store: Store, **given: Any) -> pa.Table:
    given = {"counts": {"rare": 7, "ill": 5}, "seed": 1, **given}
    ref = sample(model, dataset=dataset, store=store, **given)
    return read_part(store, load_info(ref, store), ["candidates"])


def test_counts_are_exact_and_columns_are_the_sources(
    model: ModelRef, dataset: DatasetRef, store: Store
) -> None:
    ref = sample(
        model, counts={"rare": 7, "ill": 5, "well": 0}, seed=1, store=store, dataset=dataset
    )
    assert ref.n_records == 12
    assert ref.class_counts == {"ill": 5, "rare": 7}
    info = load_info(ref, store)
    assert info.part_counts == {"candidates": {"ill": 5, "rare": 7}}
    table = read_part(store, info, ["candidates"])
    source = people()
    n = len(source.column_names)
    assert pa.schema(list(table.schema)[:n]).equals(source.schema)
    assert table.schema.metadata == source.schema.metadata
    assert table.column_names[n:] == [
        "aug_id",
        "aug_model",
        "aug_seed",
        "aug_stratum",
        "aug_ordinal",
    ]
    assert table["state"].to_pylist() == ["ill"] * 5 + ["rare"] * 7
    assert table["aug_ordinal"].to_pylist() == [*range(5), *range(7)]
    assert set(table["aug_model"].to_pylist()) == {model.digest}
    assert len(set(table["aug_id"].to_pylist())) == 12
    assert max(table["id"].to_pylist()) < 0, "identifiers are fresh"
    assert len(set(table["id"].to_pylist())) == 12


def test_more_candidates_extend_those_there_are(
    model: ModelRef, dataset: DatasetRef, store: Store
) -> None:
    few = drawn(model, dataset, store, counts={"rare": 3})
    more = drawn(model, dataset, store, counts={"rare": 9, "ill": 4})
    rare = more.filter(pc.equal(more["aug_stratum"], "rare"))
    assert rare.slice(0, 3).equals(few)


def test_batches_do_not_change_the_records(
    model: ModelRef, dataset: DatasetRef, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = drawn(model, dataset, store)
    for path in store.list("_staging/sample"):
        store.delete(path)
    monkeypatch.setattr(stage, "BATCH_RECORDS", 4)
    ref = sample(model, counts={"rare": 7, "ill": 5}, seed=1, store=store, dataset=dataset)
    info = load_info(ref, store)
    assert [s.n_records for s in info.shards] == [4, 4, 4]
    assert read_part(store, info, ["candidates"]).equals(whole)


def test_parts_of_the_batches_are_found_and_change_no_byte(
    model: ModelRef, dataset: DatasetRef, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "BATCH_RECORDS", 4)
    given = {"counts": {"rare": 7, "ill": 5}, "seed": 1, "store": store, "dataset": dataset}
    alone = sample(model, **given)
    before = {path: store.read(path) for path in store.list("_staging/sample")}
    for path in before:
        store.delete(path)
    assert n_batches(given["counts"], "table") == 3
    assert [Draws(model, **given).draw_part(part, 2) for part in (1, 0)] == [1, 2]
    drawn_again: list[object] = []
    monkeypatch.setattr(stage, "draw_batch", lambda *args: drawn_again.append(args))
    assert sample(model, **given) == alone
    assert drawn_again == []
    assert {path: store.read(path) for path in store.list("_staging/sample")} == before
    assert Draws(model, **given).draw_part(0, 2) == 0, "all is there"


def test_interrupted_sampling_continues_and_ends_in_the_same_bytes(
    model: ModelRef, dataset: DatasetRef, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "BATCH_RECORDS", 4)
    given = {"counts": {"rare": 7, "ill": 5}, "seed": 1, "store": store, "dataset": dataset}

    def stop_after_the_first(done: float, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, **given, on_progress=stop_after_the_first)
    left = store.list("_staging/sample")
    heard: list[float] = []
    ref = sample(model, **given, on_progress=lambda done, what: heard.append(done))
    assert heard[-1] == 1.0
    assert set(left) < set(store.list("_staging/sample"))
    for path in store.list("_staging/sample"):
        store.delete(path)
    assert sample(model, **given) == ref


def test_class_that_cannot_be_sampled_is_named(
    model: ModelRef, dataset: DatasetRef, store: Store
) -> None:
    with pytest.raises(EmptyClassError, match="'lone' cannot be sampled"):
        drawn(model, dataset, store, counts={"lone": 1})
    with pytest.raises(EmptyClassError, match="did you mean 'rare'"):
        drawn(model, dataset, store, counts={"rar": 1})
    with pytest.raises(ParameterError, match="-1 candidates"):
        drawn(model, dataset, store, counts={"rare": -1})


def test_nothing_asked_is_nothing_drawn(model: ModelRef, dataset: DatasetRef, store: Store) -> None:
    ref = sample(model, counts={"rare": 0}, seed=1, store=store, dataset=dataset)
    assert (ref.n_records, ref.class_counts) == (0, {})
    assert load_info(ref, store).shards == ()


def test_nothing_drawn_is_filtered_as_nothing(
    model: ModelRef, dataset: DatasetRef, store: Store
) -> None:
    ref = sample(model, counts={"rare": 0}, seed=1, store=store, dataset=dataset)
    found = plan(dataset, RunParams(model=TreesModel()), store, compares=False)
    report = filter_candidates(experiment_of(dataset, found), ref, store)
    assert (report.classes, report.kept, report.kept_counts) == ((), (), {})
    assert "No synthetic records were drawn" in report.notes[0]


def test_seeds_differ_by_run_and_stratum_and_extend_a_prefix() -> None:
    seeds = candidate_seeds(1, "rare", 0, 1000)
    assert seeds.dtype == np.int64
    assert len(np.unique(seeds)) == 1000
    assert np.array_equal(candidate_seeds(1, "rare", 400, 600), seeds[400:])
    others = [candidate_seeds(2, "rare", 0, 1000), candidate_seeds(1, "ill", 0, 1000)]
    assert not np.isin(np.concatenate(others), seeds).any()
