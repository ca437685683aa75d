"""The flows under Prefect's own API: parameters, states, log lines, artifacts."""

import time
from pathlib import Path

import pytest
from prefect.exceptions import ParameterTypeError
from support import run_pages
from support.engine_runs import QUICK, published_shards

from prefect_augment.errors import LabelError
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.params import Compute, Destination, Evaluation, NoModel, Source, TreesModel

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("quick_runs")]


def test_a_run_shows_its_plan_progress_report_and_log(
    source: Source, destination: Destination
) -> None:
    state = rebalance(source=source, destination=destination, evaluation=QUICK, return_state=True)
    assert state.is_completed()
    assert state.result().version == 1
    run = run_pages.run_id(state)
    kinds = {artifact.type for artifact in run_pages.artifacts(run)}
    assert {"table", "markdown", "progress"} <= kinds
    for _ in range(60):
        if is_said := any("Verdict" in log.message for log in run_pages.logs(run)):
            break
        time.sleep(0.5)
    assert is_said, "our own log lines reach the run's page"


def test_one_and_two_workers_give_the_same_bytes(source: Source, tmp_path: Path) -> None:
    shards = []
    for workers in (1, 2):
        folder = tmp_path / f"out-{workers}"
        rebalance(
            source=source,
            destination=Destination(uri=str(folder)),
            model=TreesModel(),
            evaluation=Evaluation(
                n_seeds=2, n_bootstrap=200, estimators=["logistic"], on_no_gain="publish"
            ),
            compute=Compute(workers=workers),
        )
        shards.append(published_shards(folder))
    assert shards[0] == shards[1]
    assert any("synthetic" in name for name in shards[0])


def test_a_failed_run_says_what_to_do_in_its_state(
    source: Source, destination: Destination
) -> None:
    misspelt = source.model_copy(update={"label": "stat"})
    state = rebalance(misspelt, destination, model=NoModel(), return_state=True)
    assert state.is_failed()
    assert "state" in (state.message or "")
    with pytest.raises(LabelError, match="'state'"):
        state.result()


def test_parameters_are_checked_before_a_run_starts() -> None:
    with pytest.raises(ParameterTypeError, match="max_synthetic_per_real"):
        rebalance.validate_parameters({"balance": {"max_synthetic_per_real": -2}})


def test_the_form_shows_a_description_for_every_field() -> None:
    schema = rebalance.parameters.model_dump()
    missing = [
        f"{name}.{field}"
        for name, definition in schema["definitions"].items()
        for field, info in definition["properties"].items()
        if field != "kind" and "description" not in info
    ]
    assert not missing
