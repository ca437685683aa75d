"""Planted leaks into the hold-out are impossible or found, and it is opened once in a whole run."""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import InputError
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Destination, Evaluation, NoModel, RunParams, Source, TreesModel
from prefect_augment.plan.plan import plan
from prefect_augment.schema import Experiment, RunResult
from prefect_augment.shards import base as formats
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store
from prefect_augment.synthesis.train import train

pytestmark = pytest.mark.usefixtures("quick_runs")

EVALUATION = Evaluation(n_seeds=1, n_bootstrap=100, estimators=["logistic"], on_no_gain="publish")


def patients(n: int = 300, seed: int = 0, scale: float = 1.0) -> pa.Table:
    """Two classes; rows of one patient are nearly equal: the same measured again."""
    rng = np.random.default_rng(seed)
    rare = np.arange(n) % 5 == 0
    person = rng.normal(size=(n, 3)) + 2 * rare[:, None]
    patient = np.repeat(np.arange(n), 2)
    X = scale * (np.repeat(person, 2, axis=0) + 1e-5 * rng.normal(size=(2 * n, 3)))
    return pa.table(
        {
            "a": X[:, 0],
            "b": X[:, 1],
            "c": X[:, 2],
            "level": np.where(rng.random(2 * n) < 0.5, "x", "y"),
            "patient": [f"p{i}" for i in patient],
            "label": np.where(np.repeat(rare, 2), "ill", "well"),
        }
    )


def put(path: Path, table: pa.Table) -> str:
    pq.write_table(table, path)
    return str(path)


def run(source: Source, folder: Path, **params: Any) -> RunResult:
    asked = {"evaluation": EVALUATION, "model": NoModel(), **params}
    return rebalance.fn(source=source, destination=Destination(uri=str(folder)), **asked)


def test_a_group_leak_is_impossible_where_groups_are_named(tmp_path: Path, store: Store) -> None:
    uri = put(tmp_path / "in.parquet", patients())
    source = Source(uri=uri, label="label", group_column="patient")
    info = load_info(ingest(source, store=store, seed=0), store)
    sides = [
        set(read_part(store, info, [part], ["patient"])["patient"].to_pylist())
        for part in ("training", "validation", "holdout")
    ]
    assert min(map(len, sides)) > 10
    assert len(set.union(*sides)) == sum(map(len, sides))


def test_a_group_on_both_sides_of_a_holdout_of_ones_own_may_be_refused(tmp_path: Path) -> None:
    table = patients()
    held = pa.concat_tables([patients(60, seed=1).slice(100), table.slice(0, 2)])
    named = pa.array([f"q{i}" for i in range(20)] + ["p7", "p8"])
    held = held.set_column(held.column_names.index("patient"), "patient", named)
    source = Source(
        uri=put(tmp_path / "in.parquet", table),
        holdout_uri=put(tmp_path / "held.parquet", held),
        label="label",
        group_column="patient",
        on_overlap="error",
    )
    with pytest.raises(InputError, match="also in the hold-out"):
        ingest(source, store=open_store(str(tmp_path / "out")), seed=0)


@pytest.mark.slow
def test_planted_near_duplicates_are_found_and_named_groups_heal_them(tmp_path: Path) -> None:
    """Images stay together by themselves (test_near_split); of rows the verdict tells."""
    uri = put(tmp_path / "in.parquet", patients())
    dropped = [{"name": "patient", "kind": "drop"}]
    leaky = run(Source(uri=uri, label="label", columns=dropped), tmp_path / "leaky")
    (leak,) = leaky.verdict.leaks
    assert "hold-out records are almost equal to a training record" in leak
    assert "almost equal" in (tmp_path / "leaky/_reports/v00000001/report.html").read_text()
    healed = run(Source(uri=uri, label="label", group_column="patient"), tmp_path / "healed")
    assert healed.verdict.leaks == ()


def test_nothing_is_fitted_on_the_holdout(tmp_path: Path) -> None:
    """Two hold-outs as unlike as can be: columns, encoder, space, plan and model are the same bytes."""
    found = []
    for name, seed, scale in (("one", 1, 1.0), ("other", 2, 1e6)):
        held = patients(100, seed=seed, scale=scale)
        never_seen = [f"never seen {i}" for i in range(200)]
        levels = pa.array(never_seen if name == "other" else held["level"])
        held = held.set_column(held.column_names.index("level"), "level", levels)
        source = Source(
            uri=put(tmp_path / "in.parquet", patients()),
            holdout_uri=put(tmp_path / f"{name}.parquet", held),
            label="label",
            group_column="",
            columns=[{"name": "patient", "kind": "drop"}],
        )
        store = open_store(str(tmp_path / name / "out"))
        dataset = ingest(source, store=store, seed=0)
        info = load_info(dataset, store)
        asked = RunParams(model=TreesModel(), evaluation=EVALUATION)
        balance = plan(dataset, asked, store, compares=False)
        experiment = Experiment(dataset=dataset, plan=balance, params=asked)
        model = train(experiment, store)
        data = open_evaluator(store, experiment).records
        records = data.X.tobytes(), data.keys.tolist()
        found.append((info.columns, balance.classes, model.digest, *records))
        assert info.part_counts["holdout"] == {"ill": 40, "well": 160}
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_holdout_is_opened_once_to_confirm_and_else_only_to_publish_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"experiment", "report", "publish", "maintenance", "synthesis", "plan"}
    opened: Counter[str] = Counter()
    real = formats.OpenShard

    def counting(store: Any, path: str, *opened_file: Any) -> Any:
        if "holdout" in path:
            frames = ((Path(f.filename), f.name) for f in traceback.extract_stack())
            file, name = next(
                (file, name)
                for file, name in frames
                if file.parent.name in steps and file.parents[1].name == "prefect_augment"
            )
            opened[f"{file.stem}.{name}"] += 1
        return real(store, path, *opened_file)

    monkeypatch.setattr(formats, "OpenShard", counting)
    source = Source(
        uri=put(tmp_path / "in.parquet", patients(120)), label="label", group_column="patient"
    )
    result = run(source, tmp_path / "out", model=TreesModel())
    assert result.status == "published"
    assert opened.pop("confirmation.confirm") == 1
    assert set(opened) == {"publish.publish"}, "it is published as it is, and nothing else reads it"
    run(source, tmp_path / "out", model=TreesModel())
    assert "confirmation.confirm" not in opened, "a second run takes the verdict's receipt"
