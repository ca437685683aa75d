"""Cleaning is tried where the data as they are doubt their labels."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.steps import experiment_of

from prefect_augment.experiment.audit import has_doubted_labels
from prefect_augment.experiment.score import score
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Classic, Evaluation, NoModel, Publish, RunParams, Source
from prefect_augment.plan.plan import plan
from prefect_augment.plan.strategies import make_strategies
from prefect_augment.report.build import report
from prefect_augment.schema import Experiment, Release, Strategy
from prefect_augment.storage import Store

EVALUATION = Evaluation(estimators=["logistic"], n_seeds=1, n_bootstrap=100)


PARAMS = {"model": NoModel(), "evaluation": EVALUATION}
AS_IS = make_strategies("table", model=None, classic=Classic())[0]


def planted(flipped: float, store: Store, folder: Path) -> Experiment:
    """Two classes that one column tells apart, a share of whose labels are wrong."""
    rng = np.random.default_rng(0)
    rare = np.arange(500) % 5 == 0
    x, y = rng.normal(size=500) + 8 * rare, rare ^ (rng.random(500) < flipped)
    table = pa.table({"x": x, "state": np.where(y, "rare", "common")})
    pq.write_table(table, folder / "records.parquet")
    dataset = ingest(
        Source(uri=str(folder / "records.parquet"), label="state"), store=store, seed=0
    )
    found = plan(dataset, RunParams(**PARAMS), store, compares=False)
    return experiment_of(dataset, found, **PARAMS)


@pytest.mark.parametrize("flipped", [0.0, 0.05])
def test_labels_are_doubted_where_some_were_planted(
    flipped: float, store: Store, tmp_path: Path
) -> None:
    asked = planted(flipped, store, tmp_path)
    first = [score(asked, AS_IS, 0, store)]
    assert has_doubted_labels(asked, first, store) == (flipped > 0)
    assert not has_doubted_labels(asked, [], store), "nothing was compared yet"
    for publish in (Publish(materialise="copies"), Publish(origins=["synthetic"])):
        other = experiment_of(asked.dataset, asked.plan, **PARAMS, publish=publish)
        assert not has_doubted_labels(other, first, store), "no real record could count less"


@pytest.mark.slow
def test_the_report_shows_the_likeliest_label_errors(store: Store, tmp_path: Path) -> None:
    asked = planted(0.05, store, tmp_path)
    clean = Strategy(name="clean labels", family="clean", doubted_weight=0.25)
    scores = tuple(score(asked, strategy, 0, store) for strategy in (AS_IS, clean))
    page, _ = report(Release(experiment=asked, scores=scores), store, status="evaluated")
    info = json.loads(store.read(f"{page.prefix}/report.json"))
    audit = pq.read_table(io.BytesIO(store.read(f"{page.prefix}/audit.parquet")))
    n_doubted = audit.filter(audit["doubted"]).num_rows
    assert n_doubted >= 10
    assert len(info["doubted"]) == min(n_doubted, 20)
    for row in info["doubted"]:  # 4 lies halfway between the classes
        assert row["suggested"] == ("rare" if float(row["record"]["x"]) > 4 else "common")
        assert row["label"] != row["suggested"]
        assert "state" not in row["record"]
    assert "Labels to look at" in store.read(f"{page.prefix}/report.html").decode()
