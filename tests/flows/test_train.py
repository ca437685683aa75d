"""Training alone, and the rebalance that finds what was trained."""

from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_none

from prefect_augment.errors import LostRankError, ParameterError
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.flows.train import train
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.params import Budget, Destination, Evaluation, NoModel, Source, TreesModel
from prefect_augment.schema import ModelRef
from prefect_augment.storage import Store, open_store
from prefect_augment.synthesis import train as synthesis
from prefect_augment.tasks import _runtime, train as tasks

QUICK = Evaluation(
    n_seeds=1, n_settings=1, n_bootstrap=100, estimators=["logistic"], on_no_gain="publish"
)

pytestmark = pytest.mark.usefixtures("quick_runs")


def test_training_says_what_it_trained_and_publishes_nothing(
    source: Source, tmp_path: Path, store: Store
) -> None:
    result = train.fn(source=source, destination=Destination(uri=str(tmp_path / "out")))
    assert (result.status, result.model.kind) == ("trained", "trees")
    assert "cracked" in result.model.strata
    assert result.model.digest in store.read(result.model.path).decode()
    assert store.exists(result.model.checkpoint)
    assert result.seconds > 0
    assert not (tmp_path / "out/_manifests").exists()


@pytest.mark.slow
def test_rebalance_with_the_same_parameters_uses_the_model(source: Source, tmp_path: Path) -> None:
    given = {"source": source, "destination": Destination(uri=str(tmp_path / "out"))}
    trained = train.fn(**given, model=TreesModel(min_leaf=10), seed=3)
    rebalance.fn(**given, model=TreesModel(min_leaf=10), seed=3, evaluation=QUICK)
    models = {p.split("/")[2] for p in open_store(str(tmp_path / "out")).list("_staging/train")}
    assert models == {trained.model.key}, "it trained no other"
    published = open_dataset(str(tmp_path / "out")).to_table()["aug_model"].drop_null()
    assert set(published.to_pylist()) == {trained.model.digest}


def test_the_same_training_again_finds_its_model(source: Source, tmp_path: Path) -> None:
    given = {"source": source, "destination": Destination(uri=str(tmp_path / "out"))}
    first = train.fn(**given)
    # Where checkpoints are kept changes no byte, and so it is no other model.
    again = train.fn(**given, budget=Budget(checkpoint_seconds=1.0))
    assert (again.status, again.model) == ("unchanged", first.model)


def test_no_model_is_nothing_to_train(source: Source, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="choose auto or a kind"):
        train.fn(source=source, destination=Destination(uri=str(tmp_path / "out")), model=NoModel())


def test_a_lost_process_of_a_training_costs_a_try(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def lost_at_first(*args: Any, **kwargs: Any) -> ModelRef:
        tries.append("")
        if len(tries) == 1:
            raise LostRankError("rank 1 of 2 was lost")
        return synthesis.train(*args, **kwargs)

    monkeypatch.setattr(tasks, "train", lost_at_first)
    monkeypatch.setattr(_runtime._patiently, "wait", wait_none())
    result = train.fn(source=source, destination=Destination(uri=str(tmp_path / "out")))
    assert (result.status, len(tries)) == ("trained", 2)
