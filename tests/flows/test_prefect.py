"""The flows under Prefect's own API: parameters, states, log lines, artifacts."""

import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.exceptions import ParameterTypeError

from prefect_augment.errors import LabelError
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.params import Compute, Destination, Evaluation, NoModel, Source, TreesModel

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("quick_runs")]


def test_a_run_shows_its_plan_progress_report_and_log(source: Source, tmp_path: Path) -> None:
    state = rebalance(
        source=source,
        destination=Destination(uri=str(tmp_path / "out")),
        evaluation=Evaluation(n_seeds=1, n_settings=1, n_bootstrap=200, estimators=["logistic"]),
        return_state=True,
    )
    assert state.is_completed()
    assert state.result().version == 1
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
        # Prefect sends log lines in batches from a thread of its own.
        for _ in range(60):
            logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])))
            if any("Verdict" in log.message for log in logs):
                break
            time.sleep(0.5)
    kinds = {artifact.type for artifact in artifacts}
    assert {"table", "markdown", "progress"} <= kinds
    assert any("Verdict" in log.message for log in logs), "our own log lines reach the run's page"


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
        shards.append({p.name: p.read_bytes() for p in sorted((folder / "data").iterdir())})
    assert shards[0] == shards[1]
    assert any("synthetic" in name for name in shards[0])


def test_a_failed_run_says_what_to_do_in_its_state(source: Source, tmp_path: Path) -> None:
    state = rebalance(
        source=source.model_copy(update={"label": "stat"}),
        destination=Destination(uri=str(tmp_path / "out")),
        model=NoModel(),
        return_state=True,
    )
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
