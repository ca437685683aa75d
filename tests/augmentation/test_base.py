import datetime as dt
import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.staging import ingested
from support.steps import experiment_of

from prefect_augment.augmentation import base
from prefect_augment.augmentation.base import augment
from prefect_augment.errors import ParameterError
from prefect_augment.params import Balance, Classic, Quality, RunParams, TreesModel
from prefect_augment.plan.plan import plan
from prefect_augment.plan.strategies import candidates_wanted
from prefect_augment.schema import BalancePlan, DatasetRef, Experiment
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store
from prefect_augment.synthesis.sample import sample
from prefect_augment.synthesis.train import train

LINEAGE = ["aug_id", "aug_parent", "aug_seed", "aug_stratum"]
N = 260
COUNTS = {"rare": 90, "single": 3}


def source_table() -> pa.Table:
    """Classes of 200, 59 and 1 record; every column type that SMOTE has to give back as it came."""
    rng = np.random.default_rng(0)
    day = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    frame = pd.DataFrame(
        {
            "key": pd.array(range(1000, 1000 + N), dtype="Int64"),
            "size": rng.normal(size=N),
            "count": pd.array(
                [None if i % 9 == 0 else int(n) for i, n in enumerate(rng.integers(0, 50, N))],
                dtype="Int64",
            ),
            "flag": pd.array([None, True, False, True] * (N // 4), dtype="boolean"),
            "grade": pd.Categorical(
                rng.choice(["low", "mid", "high"], N), categories=["low", "mid", "high", "never"]
            ),
            "made": [day + dt.timedelta(days=int(n)) for n in rng.integers(0, 300, N)],
            "kind": ["usual"] * 200 + ["rare"] * 59 + ["single"],
        }
    )
    # As Parquet gives it back: it turns the large strings of pandas categories into strings.
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), file)
    return pq.read_table(file)


class Staged(NamedTuple):
    """A source as ingest leaves it, and a plan for it."""

    store: Store
    dataset: DatasetRef
    plan: BalancePlan

    @classmethod
    def of(cls, table: pa.Table, folder: Path, store: Store) -> "Staged":
        dataset = ingested(table, folder, store, "kind")
        asked = RunParams(balance=Balance(target="majority"), model=TreesModel())
        return cls(store, dataset, plan(dataset, asked, store, compares=False))

    def augmented(
        self, counts: dict[str, int] = COUNTS, classic: Classic | None = None, seed: int = 5
    ) -> DatasetRef:
        params = RunParams(classic=classic or Classic(), seed=seed)
        experiment = Experiment(dataset=self.dataset, plan=self.plan, params=params)
        return augment(experiment, counts, self.store)

    def records(self, ref: DatasetRef, *parts: str) -> pa.Table:
        return read_part(self.store, load_info(ref, self.store), parts or ["train"])


@pytest.fixture(scope="module")
def staged(memory_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    return Staged.of(source_table(), tmp_path_factory.mktemp("source"), memory_store)


@pytest.fixture(scope="module")
def made(staged: Staged) -> DatasetRef:
    return staged.augmented()


def test_counts_are_as_asked(made: DatasetRef, staged: Staged) -> None:
    table = staged.records(made)
    assert Counter(table["kind"].to_pylist()) == COUNTS == made.class_counts
    assert made.n_records == table.num_rows == 93
    assert table["aug_stratum"].to_pylist() == table["kind"].to_pylist()
    assert {shard.origin for shard in load_info(made, staged.store).shards} == {"classic"}


def test_columns_and_pandas_metadata_are_the_source_s(made: DatasetRef, staged: Staged) -> None:
    source, table = source_table(), staged.records(made)
    assert table.column_names == [*source.column_names, *LINEAGE]
    for name in source.column_names:
        assert table.schema.field(name).equals(source.schema.field(name)), name
    theirs, ours = (t.to_pandas(ignore_metadata=False) for t in (source, table))
    assert ours[theirs.columns].dtypes.to_dict() == theirs.dtypes.to_dict()
    assert ours["grade"].cat.categories.tolist() == ["low", "mid", "high", "never"]


def test_values_stay_within_what_the_class_has(made: DatasetRef, staged: Staged) -> None:
    source = source_table().filter(pc.field("kind") == "rare")
    table = staged.records(made).filter(pc.field("kind") == "rare")
    for name in ("size", "count", "made"):
        low, high = (source[name].combine_chunks(), table[name].combine_chunks())
        assert pc.min(high).as_py() >= pc.min(low).as_py(), name
        assert pc.max(high).as_py() <= pc.max(low).as_py(), name
    assert not pc.all(pc.is_in(table["size"], source["size"].combine_chunks())).as_py()


def test_lineage_names_a_training_record_of_its_class(made: DatasetRef, staged: Staged) -> None:
    training = staged.records(staged.dataset, "training", "validation")
    label_of = dict(zip(training["aug_id"].to_pylist(), training["kind"].to_pylist(), strict=True))
    table = staged.records(made)
    parents = [label_of[parent] for parent in table["aug_parent"].to_pylist()]
    assert parents == table["kind"].to_pylist()
    assert table["aug_seed"].to_pylist() == [5] * 93


def test_records_are_null_where_their_parents_are(made: DatasetRef, staged: Staged) -> None:
    training = staged.records(staged.dataset, "training", "validation")
    parents = {row["aug_id"]: row for row in training.to_pylist()}
    table = staged.records(made).select(["aug_parent", "count", "flag"]).to_pylist()
    assert any(row["count"] is None for row in table)
    for row in table:
        parent = parents[row["aug_parent"]]
        for name in ("count", "flag"):
            assert (row[name] is None) == (parent[name] is None)


def test_ids_are_unique_and_sorted(made: DatasetRef, staged: Staged) -> None:
    ids = staged.records(made)["aug_id"].to_pylist()
    real = staged.records(staged.dataset, "training", "validation", "holdout")["aug_id"].to_pylist()
    assert ids == sorted(ids)
    assert len({*ids, *real}) == len(ids) + len(real)


def test_identifiers_are_fresh(made: DatasetRef, staged: Staged) -> None:
    keys = staged.records(made)["key"].to_pylist()
    assert len(set(keys)) == 93
    assert not set(keys) & set(source_table()["key"].to_pylist())


def test_identifiers_differ_from_those_of_candidates(made: DatasetRef, staged: Staged) -> None:
    """Both count away from the source's own, and a recipe may publish both."""
    store, dataset, balance_plan = staged
    model = train(experiment_of(dataset, balance_plan, model=TreesModel()), store)
    wanted = candidates_wanted(balance_plan, Quality(), model.strata)
    drawn = sample(model, counts=wanted, seed=0, store=store, dataset=dataset)
    candidates = staged.records(drawn, "candidates")["key"].to_pylist()
    assert len(candidates) > 93
    assert not set(candidates) & set(staged.records(made)["key"].to_pylist())


def test_a_class_of_one_record_is_copied_and_noted(made: DatasetRef, staged: Staged) -> None:
    table = staged.records(made).filter(pc.field("kind") == "single")
    assert len(set(table["size"].to_pylist())) == 1
    assert load_info(made, staged.store).notes == (
        "single: copied: one record has no neighbour to combine with",
    )


def test_a_second_run_takes_the_outcome_of_the_first(made: DatasetRef, staged: Staged) -> None:
    before = staged.store.list()
    assert staged.augmented({**COUNTS, "usual": 0}) == made
    assert staged.store.list() == before


def test_same_seed_gives_identical_shards_whatever_the_order_of_the_source(
    made: DatasetRef, staged: Staged, tmp_path: Path
) -> None:
    table = source_table()
    order = np.random.default_rng(1).permutation(N)
    shuffled = Staged.of(table.take(pa.array(order)), tmp_path, open_store(str(tmp_path / "out")))
    again = shuffled.augmented()
    ours, theirs = staged.records(made), shuffled.records(again)
    # Their stage keys differ, since the sources do, and with them ids and the order by id.
    features = [name for name in ours.column_names if name not in ("aug_id", "key")]
    sort = [(name, "ascending") for name in ("aug_parent", "size", "count", "made")]
    ours, theirs = (t.select(features).sort_by(sort).to_pylist() for t in (ours, theirs))
    assert ours == theirs


def test_same_dataset_elsewhere_gives_identical_bytes(tmp_path: Path) -> None:
    """The folder and the kind of storage leave no trace in the shards."""
    digests = []
    for name in ("one", "two"):
        other = Staged.of(source_table(), tmp_path, open_store(str(tmp_path / name)))
        digests.append(other.augmented().digest)
    assert digests[0] == digests[1]


def test_another_seed_is_another_stage(made: DatasetRef, staged: Staged) -> None:
    other = staged.augmented(seed=6)
    assert (other.key, other.digest) != (made.key, made.digest)
    assert not set(staged.records(other)["aug_id"].to_pylist()) & set(
        staged.records(made)["aug_id"].to_pylist()
    )


def test_nothing_asked_for_is_an_outcome_without_records(staged: Staged) -> None:
    found = staged.augmented({})
    assert (found.n_records, found.class_counts) == (0, {})


def test_an_unknown_stratum_and_records_that_are_switched_off_are_refused(staged: Staged) -> None:
    with pytest.raises(ParameterError, match="'rar', which is not in the plan; did you mean 'rare"):
        staged.augmented({"rar": 1})
    with pytest.raises(ParameterError, match=r"93 classic records are requested and classic.table"):
        staged.augmented(classic=Classic(table="none"))


def test_too_much_memory_leaves_no_outcome(staged: Staged) -> None:
    before = staged.store.list()
    with pytest.raises(ParameterError, match="max_memory_mib allows 64"):
        staged.augmented({"rare": 10**7}, Classic(max_memory_mib=64))
    assert staged.store.list() == before


@pytest.mark.parametrize("method", ["smote", "borderline", "jitter"])
def test_records_of_a_large_table_are_made_from_a_sample_that_the_notes_name(
    staged: Staged, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def made() -> DatasetRef:
        classic = Classic(table=method)  # type: ignore[arg-type]
        return staged.augmented({"rare": 90}, classic, seed=0)

    whole = made()
    monkeypatch.setattr(base, "MAX_STARTS", 60)
    sampled = made()
    assert sampled.key != whole.key
    info = load_info(sampled, staged.store)
    assert sampled.n_records == 90
    parents = set(staged.records(sampled)["aug_parent"].to_pylist())
    real = staged.records(staged.dataset, "training", "validation").to_pylist()
    rare = [row["aug_id"] for row in real if row["kind"] == "rare"]
    assert len(parents) < len(rare)
    assert parents <= set(rare)
    assert "of 208 training and validation records" in info.notes[-1]
    assert not load_info(whole, staged.store).notes
