"""Approval with a real server and a real worker: suspend, answer, resume; no answer; rejection."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.states import Scheduled

from prefect_augment.storage import list_versions, open_store, read_manifest

pytestmark = pytest.mark.e2e

WORK = ("ingest", "train", "sample", "filter", "score", "confirm", "augment")


@pytest.fixture
def deployed_rebalance(server: Any, make_table: Callable[..., pa.Table], tmp_path: Path) -> str:
    """A deployment of rebalance that asks before it publishes."""
    pq.write_table(make_table(), tmp_path / "in.parquet")
    parameters = {
        "source": {"uri": str(tmp_path / "in.parquet"), "label": "state"},
        "destination": {"uri": str(tmp_path / "out")},
        "model": {"kind": "trees"},
        "evaluation": {
            "n_seeds": 1,
            "n_settings": 1,
            "n_bootstrap": 200,
            "estimators": ["logistic"],
            "on_no_gain": "publish",
        },
        "approval": {"ask": True},
    }
    name = f"approval-{tmp_path.name.replace('_', '-')}"
    server.add(name, "rebalance", parameters)
    return f"rebalance/{name}"


def work_done(folder: Path) -> dict[str, int]:
    """When every object of a stage that takes work was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for stage in WORK
        for path in sorted((folder / "_staging").glob(f"{stage}*/**/*"))
        if path.is_file()
    }


def question(server: Any, run: FlowRun) -> tuple[dict[str, Any], str]:
    """The form and the description that the suspended run shows."""
    keys = server.read(run).state.state_details.run_input_keyset
    with server.client() as client:
        schema = json.loads(client.read_flow_run_input(run.id, keys["schema"]))
        return schema, json.loads(client.read_flow_run_input(run.id, keys["description"]))


def suspended(server: Any, worker: Any, run: FlowRun) -> None:
    """Wait until the run is suspended and its process gone.

    A worker of Prefect 3.8.8 dies of a run that is resumed while its first process is still ending.
    """
    server.wait(run, ["Suspended", "FAILED", "CRASHED", "COMPLETED"])
    assert server.read(run).state_name == "Suspended", server.logs(run)[-5:]
    server.until(lambda: len(worker.family()) == 1, what="the end of the suspended run's process")


def test_a_suspended_run_goes_on_with_fewer_records_and_repeats_nothing(
    server: Any, worker: Any, deployed_rebalance: str, tmp_path: Path
) -> None:
    run = server.run(deployed_rebalance)
    suspended(server, worker, run)
    store = open_store(str(tmp_path / "out"))
    assert list_versions(store) == ()

    form, text = question(server, run)
    assert "Verdict" in text
    assert "report.html" in text
    field = form["properties"]["amount_1"]
    most, name = field["maximum"], field["title"].removeprefix("Add to ")
    assert most > 4

    with server.client() as client:
        # More than was proposed, or no decision at all: the server itself says no.
        for wrong in ({"decision": "approve", "amount_1": most + 1}, {"comment": "hm"}):
            assert client.resume_flow_run(run.id, run_input=wrong).status.value == "REJECT"
        before = work_done(tmp_path / "out")
        answer = {
            "decision": "approve",
            "amount_1": 4,
            "comment": "start small",
            "approved_by": "Ada",
        }
        assert client.resume_flow_run(run.id, run_input=answer).status.value == "ACCEPT"
    ended = server.wait(run)
    assert ended.state_name == "Completed", ended.state.message
    assert "Published version 1" in ended.state.message
    assert "Ada" in ended.state.message

    assert before, "there were receipts to find"
    assert work_done(tmp_path / "out") == before, "nothing was trained, drawn or compared again"
    manifest = read_manifest(store)
    added = sum(n for o, n in manifest.class_counts["train"][name].items() if o != "real")
    assert added == 4
    assert manifest.approval is not None
    assert manifest.approval.amounts == {name: 4}
    assert manifest.approval.run == str(run.id)

    def completed() -> list[Any]:
        """The run's tasks, once the server has heard of all their ends: they come as events."""
        chosen = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run.id]))
        with server.client() as client:
            found = client.read_task_runs(task_run_filter=chosen)
        return found if {t.state_name for t in found} == {"Completed"} else []

    tasks = server.until(completed, what="the end of every task")
    with server.client() as client:
        shown = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    sampled = [t.name for t in tasks if t.name.startswith("sample ")]
    assert any(f" {name} (" in one for one in sampled), [t.name for t in tasks]
    (answer,) = (a for a in shown if a.key and a.key.startswith("answer-"))
    assert "Verdict" in answer.data
    assert max(len(json.dumps(a.data)) for a in shown) < 200_000


def test_no_answer_is_not_published_and_a_rejection_is_final(
    server: Any, worker: Any, deployed_rebalance: str, tmp_path: Path
) -> None:
    hurried = {"approval": {"ask": True, "timeout_hours": 5 / 3600}}
    run = server.run(deployed_rebalance, hurried)
    ended = server.wait(run)
    assert ended.state_name == "Failed"
    assert "never resumed" in ended.state.message
    store = open_store(str(tmp_path / "out"))
    assert list_versions(store) == ()

    # Prefect takes a run that was asked before for an answered one; it is asked again all the same.
    with server.client() as client:
        client.set_flow_run_state(run.id, Scheduled(), force=True)
    again = server.wait(run)
    assert "never resumed" in again.state.message
    assert list_versions(store) == (), "an old question without an answer is no approval"

    patient = server.run(deployed_rebalance)  # a default of 24 hours: there is time to answer
    suspended(server, worker, patient)
    answer = {"decision": "reject", "comment": "wrong site", "approved_by": "Ada"}
    with server.client() as client:
        assert client.resume_flow_run(patient.id, run_input=answer).status.value == "ACCEPT"
    ended = server.wait(patient)
    assert ended.state_name == "Completed"
    assert "Rejected by Ada" in ended.state.message
    assert "wrong site" in ended.state.message
    assert list_versions(store) == ()

    rerun = server.wait(server.run(deployed_rebalance))
    assert "Rejected by Ada" in rerun.state.message, "the same version is not asked about again"
