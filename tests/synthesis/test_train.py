"""Train: what is learnt, from which records, and what is kept of it."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.staging import class_plan, people, plan_of, stage_parts, train_people as run

from prefect_augment.errors import EmptyClassError, IntegrityError, ParameterError
from prefect_augment.genmodels.base import TableData
from prefect_augment.genmodels.trees.model import TableTrees
from prefect_augment.params import AutoModel, Budget, FlowModel, NoModel, TreesModel
from prefect_augment.schema import DatasetRef
from prefect_augment.storage import Store, open_store
from prefect_augment.synthesis.model_store import load_model, table_spec
from prefect_augment.synthesis.train import fit_model


@pytest.fixture
def dataset(store: Store) -> DatasetRef:
    table = people()
    return stage_parts(store, {"training": table.slice(0, 200), "validation": table.slice(200)})


def test_model_and_encoder_are_kept_by_digest(dataset: DatasetRef, store: Store) -> None:
    ref = run(dataset, store)
    assert ref.kind == "trees"
    assert ref.n_training == 200
    assert ref.steps == 3  # age, sex, since
    assert ref.digest[:12] in ref.checkpoint
    model, encoder = load_model(store, ref)
    assert isinstance(model, TableTrees)
    assert encoder.names == ("age", "sex", "since")
    assert encoder.schema.names == ["id", "age", "sex", "since", "state"]
    assert encoder.schema.metadata == {b"made": b"here"}


def test_classes_with_too_few_training_records_are_named_and_not_sampled(
    dataset: DatasetRef, store: Store
) -> None:
    ref = run(dataset, store)
    assert ref.strata == ("ill", "rare", "well")
    assert len(ref.notes) == 1
    assert "'lone' has 3 training records" in ref.notes[0]


@pytest.mark.slow
def test_progress_of_a_network_counts_rows(dataset: DatasetRef, store: Store) -> None:
    pytest.importorskip("torch", reason="the extra 'torch'")
    model, budget, heard = FlowModel(width=8, depth=1), Budget(steps=2, device="cpu"), []
    run(
        dataset, store, model=model, budget=budget,
        on_progress=lambda done, text: heard.append(text),
    )  # fmt: skip
    assert any("rows/s" in text for text in heard)
    assert not any("images" in text for text in heard)


def test_by_columns_make_strata_and_are_not_learnt(dataset: DatasetRef, store: Store) -> None:
    ref = run(
        dataset,
        store,
        plan=plan_of(class_plan(name, by={"sex": "f"}) for name in ("ill | sex=f", "ill | sex=m")),
    )
    _, encoder = load_model(store, ref)
    assert encoder.names == ("age", "since")
    assert {"well | sex=f", "well | sex=m"} <= set(ref.strata)


def test_validation_and_holdout_records_do_not_change_the_model(
    store: Store, tmp_path: Any
) -> None:
    table = people()
    other_store = open_store(str(tmp_path / "other"))
    refs = []
    for place, validation in ((store, table.slice(200, 20)), (other_store, table.slice(220, 20))):
        dataset = stage_parts(
            place,
            {"training": table.slice(0, 200), "validation": validation, "holdout": validation},
        )
        refs.append(run(dataset, place))
    assert refs[0].digest == refs[1].digest


def test_training_again_takes_the_receipt_and_the_same_inputs_give_the_same_bytes(
    dataset: DatasetRef, store: Store
) -> None:
    heard: list[float] = []
    first = run(dataset, store, on_progress=lambda done, what: heard.append(done))
    assert heard[-1] == 1.0
    n_heard = len(heard)
    assert run(dataset, store, on_progress=lambda done, what: heard.append(done)) == first
    assert len(heard) == n_heard, "nothing was trained twice"
    for path in store.list(f"_staging/train/{first.key}"):
        store.delete(path)
    assert run(dataset, store) == first


def test_stage_key_follows_what_changes_the_bytes(dataset: DatasetRef, store: Store) -> None:
    key = run(dataset, store).key
    assert run(dataset, store, model=TreesModel()).key == key, "auto is trees with its defaults"
    assert run(dataset, store, budget=Budget(minutes=99, devices=2)).key == key, (
        "trees take no budget"
    )
    assert run(dataset, store, seed=4).key != key
    assert run(dataset, store, model=TreesModel(min_leaf=9)).key != key


@pytest.mark.parametrize("damage", ["checkpoint", "config", "encoder", "missing"])
def test_damaged_checkpoint_is_not_used(dataset: DatasetRef, store: Store, damage: str) -> None:
    ref = run(dataset, store)
    paths = {"checkpoint": ref.checkpoint, "config": ref.config, "missing": ref.checkpoint}
    folder = store.list(f"_staging/train/{ref.key}")
    path = paths.get(damage) or next(p for p in folder if "encoder" in p)
    if damage == "missing":
        store.delete(path)
    else:
        data = bytearray(store.read(path))
        data[-3] ^= 1
        if damage == "encoder":
            data = bytearray(store.read(path).replace(b'"step": 1', b'"step": 2'))
        store.put(path, bytes(data))
    with pytest.raises(IntegrityError, match="train again"):
        load_model(store, ref)


def test_no_model_and_no_record_are_refused(
    dataset: DatasetRef, store: Store, tmp_path: Any
) -> None:
    with pytest.raises(ParameterError, match="'none'"):
        run(dataset, store, model=NoModel())
    other = open_store(str(tmp_path / "empty"))
    without_training = stage_parts(other, {"validation": people(40)})
    with pytest.raises(EmptyClassError, match="0 training records"):
        run(without_training, other)


def test_model_trained_in_steps_needs_a_budget_of_steps(
    dataset: DatasetRef, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TableTrees, "trained_in_steps", True)
    with pytest.raises(ParameterError, match="too little for one step"):
        run(dataset, store)
    assert run(dataset, store, budget=Budget(steps=5)).steps == 3


def test_fold_model_is_the_model_of_the_stage(dataset: DatasetRef, store: Store) -> None:
    """The evaluator's folds and the run train alike: equal records give an equal model."""
    ref = run(dataset, store)
    model, encoder = load_model(store, ref)
    table = people().slice(0, 200)
    strata = np.array([encoder.strata.index(name) for name in table["state"].to_pylist()])
    spec = table_spec(encoder, strata)
    fold = fit_model(TableData(encoder.encode(table), strata), spec, AutoModel(), 3)
    asked = np.array([0, 2, 2], dtype=np.int64), np.array([5, -6, 7], dtype=np.int64)
    assert (
        fold.sample(asked[0], seeds=asked[1]).tobytes()
        == model.sample(asked[0], seeds=asked[1]).tobytes()
    )


# --- a source that grew -------------------------------------------------------------------------


def grown(table: pa.Table, n: int, **values: Any) -> pa.Table:
    """The table and copies of some records with fresh ids, the last one with some other values."""
    again = table.slice(10, n).set_column(0, "id", pa.array(np.arange(9000, 9000 + n)))
    for name, value in values.items():
        column = again[name].combine_chunks()
        changed = pa.array([*column.to_pylist()[:-1], value], column.type)
        again = again.set_column(again.schema.get_field_index(name), name, changed)
    return pa.concat_tables([table, again])


def retrained(store: Store, table: pa.Table, **changes: Any) -> tuple[Any, Any]:
    """The model of 200 records and, in the same place, that of the table."""
    first = run(stage_parts(store, {"training": people().slice(0, 200)}), store)
    return first, run(stage_parts(store, {"training": table}, key="b"), store, **changes)


def test_a_model_serves_a_source_that_grew_a_little(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, second = retrained(store, grown(people().slice(0, 200), 8))
    assert second.digest == first.digest
    assert second.key != first.key
    assert "trained before on 200 records" in second.notes[-1]
    assert "Not trained: the model was trained before" in caplog.text
    for path in [
        *store.list(f"_staging/train/{first.key}"),
        *store.list(f"_staging/ingest/{'a' * 24}"),
    ]:
        store.delete(path)  # as gc may one day
    load_model(store, second)
    third = run(stage_parts(store, {"training": grown(people().slice(0, 200), 9)}, key="c"), store)
    assert third.digest == first.digest, "it needs nothing of the first run"


def test_growth_is_counted_from_what_the_model_was_trained_on(store: Store) -> None:
    table = people().slice(0, 200)
    first, second = retrained(store, grown(table, 16))
    third = run(stage_parts(store, {"training": grown(table, 44)}, key="c"), store)
    assert second.digest == first.digest
    assert third.digest != first.digest, "each step was a small one, and both together are not"


@pytest.mark.parametrize(
    ("n", "values", "changes", "why"),
    [
        (60, {}, {}, "has grown from"),
        (8, {"state": "new"}, {}, "class 'new' is new"),
        (8, {"sex": "x"}, {}, "column 'sex' has 1 new values, such as 'x'"),
        (8, {"age": 400}, {}, "column 'age' goes from 31 to 400 now"),
        (8, {"id": -7}, {}, "identifiers begin elsewhere"),
        (8, {}, {"seed": 4}, ""),
        (8, {}, {"budget": Budget(reuse_growth=0)}, ""),
        (8, {}, {"model": TreesModel(min_leaf=9)}, ""),
    ],
)
def test_otherwise_a_model_is_trained_anew_and_the_log_says_why(
    store: Store,
    caplog: pytest.LogCaptureFixture,
    n: int,
    values: dict[str, Any],
    changes: dict[str, Any],
    why: str,
) -> None:
    caplog.set_level("INFO")
    first, second = retrained(store, grown(people().slice(0, 200), n, **values), **changes)
    assert second.digest != first.digest
    assert second.n_training == 200 + n
    assert ("A model is trained anew" in caplog.text) == bool(why)
    assert why in caplog.text


def test_a_model_that_knows_records_which_are_gone_or_held_out_now_is_not_taken(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    table = people()
    first = run(stage_parts(store, {"training": table.slice(0, 200)}), store)
    parts = {"training": table.slice(0, 195), "holdout": table.slice(195, 5)}
    second = run(stage_parts(store, parts, key="b"), store)
    assert second.digest != first.digest
    assert "of its training records are not training records now" in caplog.text


def test_a_model_whose_ingest_is_gone_is_not_taken(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    table = people().slice(0, 200)
    first = run(stage_parts(store, {"training": table}), store)
    for path in store.list("_staging/ingest"):
        store.delete(path)
    second = run(stage_parts(store, {"training": grown(table, 8)}, key="b"), store)
    assert second.digest != first.digest
    assert "does not serve" in caplog.text
