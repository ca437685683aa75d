"""A person looks at what was compared, and rejects it, or approves less of it, in the dialog."""

import re
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.storage import Store, list_versions, open_store, read_manifest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def destination(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One destination for both tests: the second run finds what the first has compared."""
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


def suspend(ui: Any, worker: Any, parameters: dict[str, Any], **approval: bool) -> UUID:
    """Submit the form with approval needed, and wait until the run asks."""
    tables = {**parameters["tables"], "approval": approval} if approval else parameters["tables"]
    form = ui.open_filled_form({**parameters, "tables": tables})
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
    """Resume the run, and wait for its end; where sqlite was locked the dialog stays and is sent again."""
    ui.page.wait_for_timeout(1000)  # a click while the form still redraws itself is lost
    for _ in range(5):
        with ui.page.expect_response("**/resume", timeout=90_000) as resumed:
            dialog.get_by_role("button", name="Resume").click()
        if resumed.value.status != 503:
            break
    assert resumed.value.ok, resumed.value.text()
    dialog.wait_for(state="hidden")
    ui.wait_for_state("Completed")


def test_a_rejected_run_publishes_nothing(
    ui: Any, worker: Any, parameters: dict[str, Any], store: Store
) -> None:
    run_id = suspend(ui, worker, parameters)
    ui.shot("30-suspended")
    dialog = ui.open_answer()
    dialog.get_by_text("Verdict", exact=False).first.wait_for()
    dialog.get_by_role("row").filter(has_text="cracked").wait_for()
    ui.shot("31-asked")
    answer(dialog, "reject", "too few records")
    ui.shot("32-rejecting")
    send(ui, dialog)
    ui.open_run(run_id, "Details")
    ui.shot("33-rejected")
    assert "Rejected by Ada" in ui.server.read(run_id).state.message
    assert list_versions(store) == ()


def test_an_approved_run_publishes_the_lowered_amount(
    ui: Any, worker: Any, parameters: dict[str, Any], store: Store
) -> None:
    run_id = suspend(ui, worker, parameters, ask_again=True)
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
