"""Sample: exact counts, stable seeds, the source's columns, and records made again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.staging import Made, people
from support.steps import experiment_of

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.experiment.filter import filter_candidates
from prefect_augment.params import RunParams, TreesModel
from prefect_augment.plan.plan import plan
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store
from prefect_augment.synthesis import sample as stage
from prefect_augment.synthesis.draw import candidate_seeds
from prefect_augment.synthesis.sample import Draws, n_batches


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}")


@pytest.fixture
def made(store: Store) -> Made:
    return Made.of(people(), store, rare=7, ill=5)


def test_counts_are_exact_and_columns_are_the_sources(made: Made) -> None:
    ref = made.sample(counts={"rare": 7, "ill": 5, "well": 0})
    assert ref.n_records == 12
    assert ref.class_counts == {"ill": 5, "rare": 7}
    info = load_info(ref, made.store)
    assert info.part_counts == {"candidates": {"ill": 5, "rare": 7}}
    table = read_part(made.store, info, ["candidates"])
    source = people()
    n = len(source.column_names)
    assert pa.schema(list(table.schema)[:n]).equals(source.schema)
    assert table.schema.metadata == source.schema.metadata
    lineage = ["aug_id", "aug_model", "aug_seed", "aug_stratum", "aug_ordinal"]
    assert table.column_names[n:] == lineage
    assert table["state"].to_pylist() == ["ill"] * 5 + ["rare"] * 7
    assert table["aug_ordinal"].to_pylist() == [*range(5), *range(7)]
    assert set(table["aug_model"].to_pylist()) == {made.model.digest}
    assert len(set(table["aug_id"].to_pylist())) == 12
    assert max(table["id"].to_pylist()) < 0, "identifiers are fresh"
    assert len(set(table["id"].to_pylist())) == 12


def test_more_candidates_extend_those_there_are(made: Made) -> None:
    few = made.drawn(counts={"rare": 3})
    more = made.drawn(counts={"rare": 9, "ill": 4})
    rare = more.filter(pc.equal(more["aug_stratum"], "rare"))
    assert rare.slice(0, 3).equals(few)


def test_batches_do_not_change_the_records(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made.drawn()
    made.clear()
    monkeypatch.setattr(stage, "BATCH_RECORDS", 4)
    assert [s.n_records for s in made.info().shards] == [4, 4, 4]
    assert made.drawn().equals(whole)


def test_parts_of_the_batches_are_found_and_change_no_byte(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "BATCH_RECORDS", 4)
    store, alone = made.store, made.sample()
    before = {path: store.read(path) for path in store.list("_staging/sample")}
    made.clear()
    assert n_batches(made.counts, "table") == 3
    assert [Draws(made.model, **made.given).draw_part(part, 2) for part in (1, 0)] == [1, 2]
    drawn_again: list[object] = []
    monkeypatch.setattr(stage, "draw_batch", lambda *args: drawn_again.append(args))
    assert made.sample() == alone
    assert drawn_again == []
    assert {path: store.read(path) for path in store.list("_staging/sample")} == before
    assert Draws(made.model, **made.given).draw_part(0, 2) == 0, "all is there"


def test_interrupted_sampling_continues_and_ends_in_the_same_bytes(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "BATCH_RECORDS", 4)

    def stop_after_the_first(done: float, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.sample(on_progress=stop_after_the_first)
    left = made.store.list("_staging/sample")
    heard: list[float] = []
    ref = made.sample(on_progress=lambda done, what: heard.append(done))
    assert heard[-1] == 1.0
    assert set(left) < set(made.store.list("_staging/sample"))
    made.clear()
    assert made.sample() == ref


def test_class_that_cannot_be_sampled_is_named(made: Made) -> None:
    with pytest.raises(EmptyClassError, match="'lone' cannot be sampled"):
        made.drawn(counts={"lone": 1})
    with pytest.raises(EmptyClassError, match="did you mean 'rare'"):
        made.drawn(counts={"rar": 1})
    with pytest.raises(ParameterError, match="-1 candidates"):
        made.drawn(counts={"rare": -1})


def test_nothing_asked_is_nothing_drawn(made: Made) -> None:
    ref = made.sample(counts={"rare": 0})
    assert (ref.n_records, ref.class_counts) == (0, {})
    assert load_info(ref, made.store).shards == ()


def test_nothing_drawn_is_filtered_as_nothing(made: Made) -> None:
    ref = made.sample(counts={"rare": 0})
    found = plan(made.dataset, RunParams(model=TreesModel()), made.store, compares=False)
    report = filter_candidates(experiment_of(made.dataset, found), ref, made.store)
    assert (report.classes, report.kept, report.kept_counts) == ((), (), {})
    assert "No synthetic records were drawn" in report.notes[0]


def test_seeds_differ_by_run_and_stratum_and_extend_a_prefix() -> None:
    seeds = candidate_seeds(1, "rare", 0, 1000)
    assert seeds.dtype == np.int64
    assert len(np.unique(seeds)) == 1000
    assert np.array_equal(candidate_seeds(1, "rare", 400, 600), seeds[400:])
    others = [candidate_seeds(2, "rare", 0, 1000), candidate_seeds(1, "ill", 0, 1000)]
    assert not np.isin(np.concatenate(others), seeds).any()
