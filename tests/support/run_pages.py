"""What Prefect's API keeps of a flow run, by the run's id."""

from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import Artifact, FlowRun, Log, State, TaskRun

__all__ = ["artifacts", "flow_run", "logs", "run_id", "task_runs"]


def run_id(state: State[Any]) -> UUID:
    found = state.state_details.flow_run_id
    assert found is not None
    return found


def artifacts(run: UUID) -> list[Artifact]:
    of_run = filters.ArtifactFilter(flow_run_id=filters.ArtifactFilterFlowRunId(any_=[run]))
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=of_run)


def task_runs(run: UUID) -> list[TaskRun]:
    of_run = filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[run]))
    with get_client(sync_client=True) as client:
        return client.read_task_runs(flow_run_filter=of_run)


def logs(run: UUID) -> list[Log]:
    """In the order of their time; they come in batches, from a thread of their own."""
    of_run = filters.LogFilter(flow_run_id=filters.LogFilterFlowRunId(any_=[run]))
    with get_client(sync_client=True) as client:
        return sorted(client.read_logs(of_run), key=lambda line: line.timestamp)


def flow_run(run: UUID) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run)
