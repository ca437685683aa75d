"""Cleaning is tried where the data as they are doubt their labels."""

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
from prefect_augment.storage import Store

EVALUATION = Evaluation(estimators=["logistic"], n_seeds=1, n_bootstrap=100)


@pytest.mark.parametrize("flipped", [0.0, 0.05])
def test_labels_are_doubted_where_some_were_planted(
    flipped: float, store: Store, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rare = np.arange(500) % 5 == 0
    x, y = rng.normal(size=500) + 8 * rare, rare ^ (rng.random(500) < flipped)
    table = pa.table({"x": x, "state": np.where(y, "rare", "common")})
    pq.write_table(table, tmp_path / "records.parquet")
    dataset = ingest(
        Source(uri=str(tmp_path / "records.parquet"), label="state"), store=store, seed=0
    )
    params = {"model": NoModel(), "evaluation": EVALUATION}
    found = plan(dataset, RunParams(**params), store, compares=False)
    asked = experiment_of(dataset, found, **params)
    as_is = make_strategies("table", model=None, classic=Classic())[0]
    first = [score(asked, as_is, 0, store)]
    assert has_doubted_labels(asked, first, store) == (flipped > 0)
    assert not has_doubted_labels(asked, [], store), "nothing was compared yet"
    for publish in (Publish(materialise="copies"), Publish(origins=["synthetic"])):
        other = experiment_of(dataset, found, **params, publish=publish)
        assert not has_doubted_labels(other, first, store), "no real record could count less"
