"""The whole job, run as a plain function: no Prefect server, the local disk or memory."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.engine_runs import PUBLISH, QUICK, published_shards
from support.tables import COUNTS, make_table, source_of

from prefect_augment import remake_records
from prefect_augment.errors import AugmentError, ParameterError, RefusedError
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import (
    Balance,
    Budget,
    Destination,
    NoModel,
    Publish,
    Quality,
    Report,
    Source,
    TreesModel,
)
from prefect_augment.schema import RunResult
from prefect_augment.storage import list_versions, open_store

SEARCHED = PUBLISH.model_copy(update={"n_settings": 0})  # which is all settings

pytestmark = pytest.mark.usefixtures("quick_runs")


def run(source: Source, folder: Path | str, **params: object) -> RunResult:
    wanted = {"evaluation": QUICK, **params}
    return rebalance.fn(source=source, destination=Destination(uri=str(folder)), **wanted)


@dataclass(frozen=True)
class Published:
    """A run with synthetic records, for several tests to look at."""

    folder: Path
    result: RunResult


@pytest.fixture(scope="module")
def published(quick_runs: None, tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("published")
    source = source_of(make_table(), folder / "parts.parquet")
    result = run(source, folder / "out", model=TreesModel(), evaluation=SEARCHED)
    return Published(folder / "out", result)


@pytest.mark.slow
def test_a_run_publishes_a_version_that_verifies(published: Published) -> None:
    result = published.result
    assert result.status == "published"
    assert result.version == 1
    assert not verify(open_store(str(published.folder))).problems
    train = result.counts["train"]
    real = sum(n["real"] for split in result.counts.values() for n in split.values())
    assert real + result.quarantined == sum(COUNTS.values())
    assert result.plan.soft_labels
    assert all(train[name]["synthetic"] > 0 for name in ("ok", "worn", "cracked"))
    assert "synthetic" not in train["lost"], "a class of two records is not sampled"
    assert result.verdict is not None
    assert "lost" in result.verdict.not_compared
    search = json.loads(Path(result.report).with_name("report.json").read_text())["search"]
    pilots, full = search["rungs"]
    assert {t["strategy"]["name"] for t in pilots["trials"]} == {
        *("as is", "threshold", "class weights", "resampling", "clean labels", "SMOTE", "trees"),
        *("soft labels", "ensemble"),
    }
    (control,) = (t for t in full["trials"] if t["strategy"]["name"] == "ensemble")
    assert not control["kept"], "it is shown, and never published"
    assert "the ensemble that gives the labels, itself" in " ".join(result.verdict.reasons)
    assert [t["strategy"] for t in pilots["trials"] if t["kept"]] == [
        t["strategy"] for t in full["trials"]
    ]
    assert {t["strategy"]["name"] for t in full["trials"]} == {
        score.strategy.name for score in result.strategies
    }
    assert all(t["reason"] for rung in search["rungs"] for t in rung["trials"] if not t["kept"])


@pytest.mark.slow
def test_what_comes_back_has_the_source_columns_then_the_lineage(published: Published) -> None:
    original = make_table()
    table = open_dataset(str(published.folder)).to_table()

    assert table.schema.names[: len(original.schema)] == original.schema.names
    assert [table.schema.field(f.name).type for f in original.schema] == [
        f.type for f in original.schema
    ]
    assert len(set(table["aug_id"].to_pylist())) == table.num_rows
    real = table.filter(pa.compute.equal(table["aug_origin"], "real")).select(original.schema.names)
    rows = {row["serial"]: row for row in original.to_pylist()}
    assert all(rows[row["serial"]] == row for row in real.to_pylist())
    synthetic = table.filter(pa.compute.equal(table["aug_origin"], "synthetic"))
    assert synthetic["serial"].null_count == synthetic.num_rows, "an identifier is never invented"


@pytest.mark.slow
def test_a_synthetic_record_is_made_again_from_its_lineage(
    published: Published, source: Source, tmp_path: Path
) -> None:
    dataset = open_dataset(str(published.folder))
    table = dataset.to_table(origins=["synthetic"])
    for row in table.slice(0, 5).to_pylist():
        made = remake_records(dataset, [row["aug_id"]])
        assert made.to_pylist() == [{k: v for k, v in row.items() if not k.startswith("aug_")}]
    hard = Quality(labels="hard")
    run(source, tmp_path / "hard", model=TreesModel(), evaluation=PUBLISH, quality=hard)
    dataset = open_dataset(str(tmp_path / "hard"))
    table = dataset.to_table(origins=["synthetic"])
    assert len(set(table["aug_weight"].to_pylist())) == 1, (
        "one class, and none of its records is shared"
    )
    for row in table.slice(0, 5).to_pylist():
        made = remake_records(dataset, [row["aug_id"]])
        assert made.to_pylist() == [{k: v for k, v in row.items() if not k.startswith("aug_")}]


@pytest.mark.slow
def test_soft_labels_are_rows_whose_weights_are_shares_of_their_class(published: Published) -> None:
    result = published.result
    dataset = open_dataset(str(published.folder))
    table = dataset.to_table("train").to_pandas()
    recipe, weights = dataset.manifest.recipe, dataset.manifest.weights
    assert recipe.strategy.family == "model"
    assert recipe.strategy.tune_threshold
    proba = np.full((3, len(result.plan.classes)), 1 / len(result.plan.classes))
    assert dataset.apply_thresholds(proba, estimator="logistic").shape == proba.shape
    made = table[table["aug_origin"] == "synthetic"]
    assert made.groupby("state", observed=True).size().to_dict() == recipe.synthetic
    assert table["aug_weight"].mean() == pytest.approx(1, abs=1e-5)
    assert list(dataset.sample_weight()) == table["aug_weight"].tolist()
    # A real record of a class weighs what is in the manifest, a synthetic row its share of that.
    real = table[table["aug_origin"] == "real"]
    assert real.groupby("state", observed=True)["aug_weight"].agg(set).to_dict() == {
        name: {np.float32(weight)} for name, weight in weights.items()
    }
    shares = made["aug_weight"] / made["state"].map(weights).astype(float)
    shares /= recipe.synthetic_weight
    assert shares.groupby(made["state"], observed=True).sum().to_dict() == pytest.approx(
        recipe.shares, rel=1e-5
    )
    # Each drawn record is there once for what it was drawn for, and at most once for another class.
    columns = ["aug_seed", "load", "cycles"]
    assert made.duplicated(columns).any(), "some stand for two classes"
    assert not made.duplicated([*columns, "state"]).any()
    by_record = shares.groupby(made["aug_seed"]).sum()
    assert by_record.to_numpy() == pytest.approx(np.ones(len(by_record)), abs=0.01)
    drawn = sum(filtered.n_kept for filtered in dataset.manifest.filtered)
    assert len(by_record) == drawn == sum(c.n_synthetic for c in result.plan.classes)
    other = made[made.duplicated(columns, keep=False)]["aug_id"].tolist()[:4]
    again = remake_records(dataset, other).to_pandas()
    expected = made.set_index("aug_id").loc[other].reset_index()[again.columns]
    assert again.astype(str).equals(expected.astype(str))


@pytest.mark.slow
def test_records_in_another_order_give_the_same_bytes(published: Published, tmp_path: Path) -> None:
    table = make_table()
    table = table.take(np.random.default_rng(1).permutation(table.num_rows))
    shuffled = source_of(table, tmp_path / "shuffled.parquet")
    run(shuffled, tmp_path / "out", model=TreesModel(), evaluation=SEARCHED)
    assert published_shards(published.folder) == published_shards(tmp_path / "out")


@pytest.mark.slow
def test_a_rerun_with_nothing_new_publishes_nothing(source: Source, tmp_path: Path) -> None:
    first = run(source, tmp_path / "out")
    second = run(source, tmp_path / "out")
    assert (first.status, second.status) == ("published", "unchanged")
    assert list_versions(open_store(str(tmp_path / "out"))) == (1,)


@pytest.mark.slow
def test_a_source_that_grew_keeps_every_record_in_its_part(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(make_table(), folder / "1.parquet")
    source = Source(uri=str(folder), label="state")
    run(source, tmp_path / "out", model=NoModel())
    before = open_dataset(str(tmp_path / "out"))
    old = {
        split: set(before.to_table(split).column("aug_id").to_pylist())
        for split in ("train", "holdout")
    }
    pq.write_table(
        make_table(seed=1, counts={"ok": 60, "worn": 20, "cracked": 12}), folder / "2.parquet"
    )
    result = run(source, tmp_path / "out", model=NoModel())
    after = open_dataset(str(tmp_path / "out"))
    assert result.version == 2
    for split, ids in old.items():
        assert ids <= set(after.to_table(split).column("aug_id").to_pylist())


def test_the_plan_alone_changes_nothing(source: Source, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", plan_only=True)
    assert result.status == "planned"
    assert not (tmp_path / "out" / "_manifests").exists()
    assert result.plan.estimate.seconds > 0


@pytest.mark.slow
def test_a_run_works_on_any_file_system(source: Source) -> None:
    result = run(source, "memory://rebalance/out", model=NoModel())
    assert result.status == "published"
    assert open_dataset("memory://rebalance/out").to_table("holdout").num_rows > 0


@pytest.mark.slow
def test_balancing_by_a_further_column(source: Source, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", model=NoModel(), balance=Balance(by=["loud"]))
    assert {c.by["loud"] for c in result.plan.classes} == {"true", "false"}


@pytest.mark.slow
def test_copies_are_written_where_asked(source: Source, tmp_path: Path) -> None:
    copies = Publish(materialise="copies")
    result = run(source, tmp_path / "out", model=TreesModel(), evaluation=PUBLISH, publish=copies)
    assert not result.plan.soft_labels, "weights alone can say them"
    weights = open_dataset(str(tmp_path / "out")).to_table()["aug_weight"]
    assert set(weights.to_pylist()) == {1.0}


@pytest.mark.slow
def test_a_refused_run_publishes_nothing_and_says_where_its_report_is(
    source: Source, tmp_path: Path
) -> None:
    # An interval this wide cannot exclude zero: fifty hold-out records of three classes.
    with pytest.raises(RefusedError, match=r"report\.html") as refused:
        run(source, tmp_path / "out", evaluation=QUICK.model_copy(update={"on_no_gain": "fail"}))
    assert Path(refused.value.report).is_file()
    assert not list_versions(open_store(str(tmp_path / "out")))


@pytest.mark.slow
def test_no_record_is_shown_where_pictures_are_forbidden(source: Source, tmp_path: Path) -> None:
    unseen = Report(pictures="none")
    result = run(source, tmp_path / "out", model=TreesModel(), evaluation=PUBLISH, report=unseen)
    assert "sn-0-" not in Path(result.report).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("labels", [["a/b", "..", '"quoted"', "<b>bold</b>", "🦆 duck", "it's"]])
def test_class_names_of_any_kind_survive(tmp_path: Path, labels: list[str]) -> None:
    rng = np.random.default_rng(0)
    names = [name for i, name in enumerate(labels) for _ in range(20 * (i + 1))]
    table = pa.table(
        {"x": rng.normal(size=len(names)), "y": rng.normal(size=len(names)), "kind": names}
    )
    kinds = source_of(table, tmp_path / "in.parquet", "kind")
    result = run(kinds, tmp_path / "out", model=TreesModel(), evaluation=PUBLISH)
    assert set(result.counts["train"]) == set(labels)
    assert not verify(open_store(str(tmp_path / "out"))).problems
    assert "<b>bold</b>" not in Path(result.report).read_text(), "class names are escaped"


def test_a_budget_too_small_for_one_step_is_refused_at_once(source: Source, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="too little for one step"):
        run(source, tmp_path / "out", budget=Budget(minutes=1e-6))
    assert not (tmp_path / "out").exists()


def test_a_destination_inside_the_source_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(make_table(), folder / "1.parquet")
    with pytest.raises(AugmentError, match="inside the source"):
        run(Source(uri=str(folder), label="state"), folder / "out")


@pytest.mark.slow
def test_a_destination_with_another_schema_is_refused_before_training(
    source: Source, tmp_path: Path
) -> None:
    run(source, tmp_path / "out", model=NoModel())
    other = source_of(make_table().drop_columns(["loud"]), tmp_path / "other.parquet")
    with pytest.raises(AugmentError, match="loud"):
        run(other, tmp_path / "out")


@pytest.mark.slow
def test_our_own_output_is_a_source_of_its_real_records_only(
    published: Published, tmp_path: Path
) -> None:
    result = run(
        Source(uri=str(published.folder), label="state"), tmp_path / "second", model=NoModel()
    )
    real = sum(n["real"] for split in result.counts.values() for n in split.values())
    assert real == sum(COUNTS.values())
    holdouts = [
        set(open_dataset(str(folder)).to_table("holdout")["aug_id"].to_pylist())
        for folder in (published.folder, tmp_path / "second")
    ]
    assert holdouts[0] == holdouts[1], "the split is inherited"


def test_classes_too_small_to_compare_are_weighted_and_said(tmp_path: Path) -> None:
    few = source_of(make_table(counts={"ok": 80, "worn": 7}), tmp_path / "in.parquet")
    result = run(few, tmp_path / "out")
    assert result.verdict is not None
    assert result.verdict.decision == "inconclusive"
    assert "worn" in result.verdict.not_compared
    table = open_dataset(str(tmp_path / "out")).to_table(columns=["state", "aug_weight"])
    weight = {row["state"]: row["aug_weight"] for row in table.to_pylist()}
    assert weight["worn"] / weight["ok"] == pytest.approx(5.0, rel=1e-5)
