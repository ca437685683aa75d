"""A source that grows: what the run says of its weights is what stands in the shards."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.tables import make_table

from prefect_augment.errors import RefusedError
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.params import Destination, Evaluation, NoModel, Source
from prefect_augment.schema import Look, Manifest
from prefect_augment.storage import open_store, read_manifest

# One class of a size that can be compared: nothing is compared, and the rare one gets weight.
SMALL = {"ok": 60, "worn": 9}


def run(folder: Path, **params: Any) -> Manifest:
    source = Source(uri=str(folder / "in"), label="state")
    destination = Destination(uri=str(folder / "out"))
    rebalance.fn(source=source, destination=destination, model=NoModel(), **params)
    return read_manifest(open_store(folder / "out"))


def check_weights(folder: Path, manifest: Manifest) -> None:
    """Recipe, manifest and shards say the same."""
    store = open_store(folder / "out")
    path = next(f.path for f in manifest.report_files if f.path.endswith("/recipe.json"))
    recipe = json.loads(store.read(path))
    assert recipe["class_weight"] == manifest.recipe.class_weight
    assert recipe["weights_from"] == manifest.recipe.weights_from
    assert manifest.weights == pytest.approx(manifest.recipe.class_weight)
    table = open_dataset(store.uri).to_table()
    for name, weight in manifest.weights.items():
        rows = table.filter(pc.equal(table["state"], name))
        assert set(rows["aug_weight"].to_pylist()) == {weight}


@pytest.mark.slow
def test_weights_are_those_of_the_version_before_until_they_would_move_much(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(make_table(counts=SMALL), tmp_path / "in" / "a.parquet")
    first = run(tmp_path)
    check_weights(tmp_path, first)
    assert first.recipe.weights_from is None
    assert first.weights["worn"] > 2 * first.weights["ok"]

    pq.write_table(make_table(seed=5, counts={"ok": 4}), tmp_path / "in" / "b.parquet")
    second = run(tmp_path)
    check_weights(tmp_path, second)
    assert second.recipe.weights_from == 1
    assert second.weights == first.weights
    old, new = ({s.path for s in m.shards if s.origin == "real"} for m in (first, second))
    assert old < new, "every real shard of the version before stays, and the new file's are added"
    assert "The weights are those of version 1" in (tmp_path / "out" / "README.md").read_text()
    assert run(tmp_path).version == 2, "a rerun publishes nothing"

    pq.write_table(make_table(seed=6, counts={"ok": 200}), tmp_path / "in" / "c.parquet")
    third = run(tmp_path)
    check_weights(tmp_path, third)
    assert third.recipe.weights_from is None
    assert third.weights["ok"] > 1.2 * first.weights["ok"]


@pytest.mark.slow
def test_every_comparison_is_a_look_also_that_of_a_run_that_may_publish_nothing(
    tmp_path: Path,
) -> None:
    quick = Evaluation(estimators=["logistic"], n_seeds=1, n_bootstrap=200, n_settings=1)

    def look(evaluation: Evaluation = quick) -> Look:
        verdict = run(tmp_path, evaluation=evaluation).verdict
        assert verdict is not None
        assert verdict.look is not None
        return verdict.look

    (tmp_path / "in").mkdir()
    pq.write_table(make_table(), tmp_path / "in" / "a.parquet")
    first = look()
    assert (first.number, first.level) == (1, 0.95)
    assert look() == first, "a rerun is the same look"

    pq.write_table(make_table(seed=5), tmp_path / "in" / "b.parquet")
    with suppress(RefusedError):
        run(tmp_path, evaluation=quick.model_copy(update={"on_no_gain": "fail"}))
    third = look()
    assert (third.number, third.n_new) == (3, 0), "the second look has seen the new records"
    assert third.sentence in (tmp_path / "out" / "README.md").read_text()
    page = read_manifest(open_store(tmp_path / "out")).report
    assert third.sentence in (tmp_path / "out" / page).read_text()
