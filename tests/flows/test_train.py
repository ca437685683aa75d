"""Training alone, and the rebalance that finds what was trained."""

from typing import Any

import pytest
from support.engine_runs import PUBLISH
from tenacity import wait_none

from prefect_augment.errors import LostRankError, ParameterError
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.flows.train import train
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.params import Budget, Destination, NoModel, Source, TreesModel
from prefect_augment.schema import ModelRef
from prefect_augment.storage import Store
from prefect_augment.synthesis import train as synthesis
from prefect_augment.tasks import _runtime, train as tasks

pytestmark = pytest.mark.usefixtures("quick_runs")


def test_training_says_what_it_trained_and_publishes_nothing(
    source: Source, destination: Destination, store: Store
) -> None:
    result = train.fn(source=source, destination=destination)
    assert (result.status, result.model.kind) == ("trained", "trees")
    assert "cracked" in result.model.strata
    assert result.model.digest in store.read(result.model.path).decode()
    assert store.exists(result.model.checkpoint)
    assert result.seconds > 0
    assert not store.list("_manifests")


@pytest.mark.slow
def test_rebalance_with_the_same_parameters_uses_the_model(
    source: Source, destination: Destination, store: Store
) -> None:
    given = {"source": source, "destination": destination, "model": TreesModel(min_leaf=10)}
    trained = train.fn(**given, seed=3)
    rebalance.fn(**given, seed=3, evaluation=PUBLISH)
    models = {path.split("/")[2] for path in store.list("_staging/train")}
    assert models == {trained.model.key}, "it trained no other"
    published = open_dataset(destination.uri).to_table()["aug_model"].drop_null()
    assert set(published.to_pylist()) == {trained.model.digest}


def test_the_same_training_again_finds_its_model(source: Source, destination: Destination) -> None:
    first = train.fn(source=source, destination=destination)
    # Where checkpoints are kept changes no byte, and so it is no other model.
    often = Budget(checkpoint_seconds=1.0)
    again = train.fn(source=source, destination=destination, budget=often)
    assert (again.status, again.model) == ("unchanged", first.model)


def test_no_model_is_nothing_to_train(source: Source, destination: Destination) -> None:
    with pytest.raises(ParameterError, match="choose auto or a kind"):
        train.fn(source=source, destination=destination, model=NoModel())


def test_a_lost_process_of_a_training_costs_a_try(
    source: Source, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def lost_at_first(*args: Any, **kwargs: Any) -> ModelRef:
        tries.append("")
        if len(tries) == 1:
            raise LostRankError("rank 1 of 2 was lost")
        return synthesis.train(*args, **kwargs)

    monkeypatch.setattr(tasks, "train", lost_at_first)
    monkeypatch.setattr(_runtime._patiently, "wait", wait_none())
    result = train.fn(source=source, destination=destination)
    assert (result.status, len(tries)) == ("trained", 2)
