"""Nobody answers; a person looks at what was compared, and rejects it, or approves less of it, in the dialog."""

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.states import Scheduled

from prefect_augment.storage import Store, list_versions, open_store, read_manifest

pytestmark = pytest.mark.e2e

REBALANCE = "rebalance/rebalance-nightly"
WORK = ("ingest", "train", "sample", "filter", "score", "confirm", "augment")


@pytest.fixture(scope="module")
def destination(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One destination for all tests: later runs find what the first has compared."""
    return tmp_path_factory.mktemp("answering") / "answered"


@pytest.fixture(scope="module")
def parameters(destination: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the form is filled with by its link; whether to ask is left to the person."""
    rng = np.random.default_rng(0)
    rare = np.arange(420) % 7 == 0
    table = pa.table(
        {
            "width": rng.normal(rare * 1.5),
            "height": rng.normal(rare * 1.0),
            "kind": np.where(rare, "cracked", "sound"),
        }
    )
    path = tmp_path_factory.mktemp("parts") / "parts.parquet"
    pq.write_table(table, path)
    return {
        "source": str(path),
        "label": "kind",
        "destination": str(destination),
        "tables": {
            "balance": {"target": "majority"},
            "model": {"kind": "trees"},
            "evaluation": {
                "estimators": ["logistic"],
                "n_seeds": 1,
                "n_settings": 1,
                "n_bootstrap": 200,
                "on_no_gain": "publish",
            },
        },
    }


@pytest.fixture
def store(destination: Path) -> Store:
    return open_store(str(destination))


def asked(parameters: dict[str, Any], **approval: Any) -> dict[str, Any]:
    """The parameters of a run that asks."""
    tables = {**parameters["tables"], "approval": approval} if approval else parameters["tables"]
    return {**parameters, "tables": tables, "approval": "needed"}


def work_done(folder: Path) -> dict[str, int]:
    """When every object of a stage that takes work was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for stage in WORK
        for path in sorted((folder / "_staging").glob(f"{stage}*/**/*"))
        if path.is_file()
    }


def suspend(ui: Any, worker: Any, parameters: dict[str, Any], **approval: bool) -> UUID:
    """Submit the form with approval needed, and wait until the run asks."""
    form = ui.open_filled_form({**parameters, "tables": asked(parameters, **approval)["tables"]})
    form.choose("needed", "approval")
    run_id: UUID = ui.submit()
    ui.wait_for_state("Suspended")
    # A worker of Prefect 3.8.8 dies of a run that is resumed while its first process still ends.
    ui.server.until(lambda: len(worker.family()) == 1, what="the end of the suspended process")
    return run_id


def answer(dialog: Any, decision: str, comment: str) -> None:
    """Fill the dialog, whoever answers being Ada, and send it."""
    dialog.get_by_role("button", name="Select Decision").click()
    dialog.page.get_by_role("option", name=decision, exact=True).click()
    dialog.get_by_label(re.compile("^Comment")).fill(comment)
    dialog.get_by_label(re.compile("^Your name")).fill("Ada")


def send(ui: Any, dialog: Any) -> None:
    """Resume the run, and wait for its end."""
    ui.press(dialog.get_by_role("button", name="Resume"), "**/resume")
    dialog.wait_for(state="hidden")
    ui.wait_for_state("Completed")


def test_no_answer_is_not_published(
    working: Any, worker: Any, parameters: dict[str, Any], store: Store
) -> None:
    run = working.run(REBALANCE, asked(parameters, timeout_hours=5 / 3600))
    ended = working.wait(run)
    assert ended.state_name == "Failed"
    assert "never resumed" in ended.state.message
    assert list_versions(store) == ()

    # Prefect takes a run that was asked before for an answered one; it is asked again all the same.
    with working.client() as client:
        client.set_flow_run_state(run.id, Scheduled(), force=True)
    again = working.wait(run)
    assert "never resumed" in again.state.message
    assert list_versions(store) == (), "an old question without an answer is no approval"


def test_a_rejected_run_publishes_nothing(
    ui: Any, worker: Any, parameters: dict[str, Any], store: Store
) -> None:
    run_id = suspend(ui, worker, parameters)
    ui.shot("30-suspended")
    dialog = ui.open_answer()
    dialog.get_by_text("Verdict", exact=False).first.wait_for()
    dialog.get_by_text("report.html", exact=False).first.wait_for()
    dialog.get_by_role("row").filter(has_text="cracked").wait_for()
    ui.shot("31-asked")
    answer(dialog, "reject", "too few records")
    ui.shot("32-rejecting")
    send(ui, dialog)
    ui.open_run(run_id, "Details")
    ui.shot("33-rejected")
    assert "Rejected by Ada" in ui.server.read(run_id).state.message
    assert "too few records" in ui.server.read(run_id).state.message
    assert list_versions(store) == ()

    rerun = ui.server.wait(ui.server.run(REBALANCE, asked(parameters)))
    assert "Rejected by Ada" in rerun.state.message, "the same version is not asked about again"


def test_an_approved_run_publishes_the_lowered_amount(
    ui: Any, worker: Any, parameters: dict[str, Any], destination: Path, store: Store
) -> None:
    run_id = suspend(ui, worker, parameters, ask_again=True)
    with ui.server.client() as client:
        # More than was proposed, or no decision at all: the server itself says no.
        for wrong in ({"decision": "approve", "amount_1": 10**6}, {"comment": "hm"}):
            assert client.resume_flow_run(run_id, run_input=wrong).status.value == "REJECT"
    before = work_done(destination)
    dialog = ui.open_answer()
    amount = dialog.get_by_label(re.compile("^Add to cracked"))
    proposed = int(amount.input_value())
    assert proposed > 10
    answer(dialog, "approve", "start small")

    # More than what was proposed is refused where it is typed.
    amount.fill(str(proposed + 1))
    dialog.get_by_role("button", name="Resume").click()
    ui.page.wait_for_timeout(1500)
    assert dialog.is_visible()
    assert str(proposed) in amount.evaluate("field => field.validationMessage")

    amount.fill("10")
    ui.shot("34-approving-less")
    send(ui, dialog)
    ui.open_run(run_id, "Details")
    ui.shot("35-approved")

    manifest = read_manifest(store)
    added = manifest.class_counts["train"]["cracked"]
    assert sum(n for origin, n in added.items() if origin != "real") == 10
    assert manifest.approval is not None
    assert (manifest.approval.decision, manifest.approval.by) == ("approve", "Ada")
    assert manifest.approval.comment == "start small"
    assert manifest.approval.amounts == {"cracked": 10}
    assert manifest.approval.run == str(run_id)
    assert before, "there were receipts to find"
    assert work_done(destination) == before, "nothing was trained, drawn or compared again"

    def completed() -> list[Any]:
        """The run's tasks, once the server has heard of all their ends: they come as events."""
        chosen = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run_id]))
        with ui.server.client() as client:
            found = client.read_task_runs(task_run_filter=chosen)
        return found if {t.state_name for t in found} == {"Completed"} else []

    tasks = ui.server.until(completed, what="the end of every task")
    sampled = [t.name for t in tasks if t.name.startswith("sample ")]
    assert any(" cracked (" in name for name in sampled), [t.name for t in tasks]
    with ui.server.client() as client:
        shown = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    (found,) = (a for a in shown if a.key and a.key.startswith("answer-"))
    assert "Verdict" in found.data
    assert max(len(json.dumps(a.data)) for a in shown) < 200_000
