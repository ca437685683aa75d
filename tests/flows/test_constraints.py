"""Constraints are stated once, and every synthetic record of the whole job keeps them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from support.engine_runs import PUBLISH
from support.steps import experiment_of
from support.tables import make_table, source_of

from prefect_augment.cli.options import read_params
from prefect_augment.errors import ParameterError
from prefect_augment.experiment.filter import filter_candidates
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.ingest.external import import_candidates
from prefect_augment.ingest.ingest import ingest
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.params import (
    Balance,
    Combination,
    Constraint,
    Destination,
    Inequality,
    Positive,
    Quality,
    RunParams,
    Source,
    TreesModel,
    Unique,
)
from prefect_augment.plan.plan import plan
from prefect_augment.schema import RunResult
from prefect_augment.storage import Store, open_store, read_manifest

RULES: list[Constraint] = [
    Inequality(left="since", operator="<", right="until"),
    Positive(columns=["cycles"]),
    Combination(columns=["site", "country"]),
    Unique(columns=["cycles", "since"]),
]

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Stays whose end is before their start in three records."""
    table = make_table(counts={"ok": 260, "worn": 80, "cracked": 40})
    rng = np.random.default_rng(0)
    n = table.num_rows
    days = rng.integers(1, 400, n)
    days[[0, 300, 370]] = -5
    until = pc.add(table["since"], pa.array(days * 86_400_000_000, pa.duration("us")))
    site = table["site"].combine_chunks().dictionary_decode()
    country = pc.if_else(pc.equal(site, "east"), "PL", "DE")
    table = table.append_column("until", until).append_column("country", country)
    return source_of(table, tmp_path / "stays.parquet")


def sections(*rules: Constraint) -> dict[str, Any]:
    """Sections of parameters with these constraints."""
    return {"evaluation": PUBLISH, "quality": Quality(constraints=list(rules))}


def run(source: Source, folder: Path, *rules: Constraint, **params: Any) -> RunResult:
    wanted = {"model": TreesModel(), "balance": Balance(target="majority"), **params}
    return rebalance.fn(
        source=source, destination=Destination(uri=str(folder)), **sections(*rules), **wanted
    )


@pytest.mark.slow
def test_every_synthetic_record_of_a_run_keeps_what_was_stated(
    source: Source, tmp_path: Path
) -> None:
    result = run(source, tmp_path / "out", *RULES)
    table = open_dataset(str(tmp_path / "out")).to_table()
    real = table.filter(pc.equal(table["aug_origin"], "real"))
    new = table.filter(pc.equal(table["aug_origin"], "synthetic"))
    assert new.num_rows > 50
    assert pc.all(pc.less(new["since"], new["until"])).as_py()
    assert pc.min(new["cycles"]).as_py() > 0
    pairs = [
        {(str(a), b) for a, b in zip(t["site"].to_pylist(), t["country"].to_pylist(), strict=True)}
        for t in (real, new)
    ]
    assert pairs[1] <= pairs[0]
    keys = [
        list(zip(t["cycles"].to_pylist(), t["since"].to_pylist(), strict=True)) for t in (real, new)
    ]
    assert len(set(keys[1])) == len(keys[1])
    assert not set(keys[0]) & set(keys[1])

    assert "classic" not in set(table["aug_origin"].to_pylist())
    assert not any("SMOTE" in score.strategy.name for score in result.strategies), (
        "it knows of no constraint"
    )
    # Real records that break a constraint are told and stay; of each the share of draws is told.
    broken = pc.sum(pc.greater_equal(real["since"], real["until"])).as_py()
    assert f"{broken} real training records break 'since < until'" in " ".join(result.notes)
    manifest = read_manifest(open_store(str(tmp_path / "out")))
    assert manifest.params["quality"]["constraints"][0]["kind"] == "inequality"
    assert any("% of the draws of class" in note for note in manifest.notes)
    report = (tmp_path / "out" / manifest.report).read_text(encoding="utf-8")
    assert "of the draws of class" in report


def test_constraints_come_from_a_file_of_parameters(source: Source, tmp_path: Path) -> None:
    written = {name: part.model_dump(mode="json") for name, part in sections(*RULES).items()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**written, "plan_only": True}))
    read = rebalance.validate_parameters(read_params(tmp_path / "params.yaml"))
    assert read["quality"].constraints == RULES
    destination = Destination(uri=str(tmp_path / "out"))
    result = rebalance.fn(**{**read, "source": source, "destination": destination})
    assert any("break 'since < until': they stay" in note for note in result.notes)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (Inequality(left="sinc", right="until"), r"'sinc', which is not a column.*'since'"),
        (Unique(columns=["serial"]), "'serial', which is an identifier column"),
        (Positive(columns=["site"]), "which holds string"),
        (Inequality(left="since", right="cycles"), "cannot be checked"),
    ],
)
def test_what_cannot_be_kept_is_told_before_anything_is_trained(
    source: Source, tmp_path: Path, rule: Constraint, says: str
) -> None:
    with pytest.raises(ParameterError, match=says):
        run(source, tmp_path / "out", rule, plan_only=True)


@pytest.mark.slow
def test_records_of_another_tool_that_break_a_constraint_do_not_pass(
    source: Source, tmp_path: Path, store: Store
) -> None:
    real = pq.read_table(source.uri)
    rare = real.filter(pc.equal(real["state"], "cracked"))
    place = real.column_names.index("load")
    moved = rare.set_column(place, "load", pc.add(rare["load"], 0.013))
    pq.write_table(moved, tmp_path / "other.parquet")
    dataset = ingest(source, store=store, seed=0)
    kept = []
    for rules in ((), (Inequality(left="since", operator=">", right="until"),)):
        params = {"model": TreesModel(), **sections(*rules)}
        made = plan(dataset, RunParams(**params), store, compares=False)
        other = import_candidates(dataset, str(tmp_path / "other.parquet"), plan=made, store=store)
        filtered = filter_candidates(experiment_of(dataset, made, **params), other, store)
        kept.append(sum(c.n_passed for c in filtered.classes))
    assert kept[1] <= 1 < 10 < kept[0]
