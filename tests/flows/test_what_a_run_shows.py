"""What a person sees of a run: names, summary, messages, artifacts; nothing secret."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.filesystems import RemoteFileSystem
from support import run_pages
from support.engine_runs import PUBLISH
from support.tables import make_table, source_of

from prefect_augment.errors import RefusedError
from prefect_augment.flows.approve import approve
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.params import Answer, Approval, Destination, NoModel, Source, TreesModel
from prefect_augment.schema import RunResult
from prefect_augment.text import class_list

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("quick_runs")]

EVIL = '<img src=x onerror=alert(1)>|"[a](b)'


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Records whose rare class has a name that is markup."""
    table = make_table()
    names = [EVIL if name == "cracked" else name for name in table["state"].to_pylist()]
    table = table.set_column(table.schema.get_field_index("state"), "state", pa.array(names))
    return source_of(table, tmp_path / "in.parquet")


def artifacts(state: State[Any]) -> list[Any]:
    return run_pages.artifacts(run_pages.run_id(state))


def messages(state: State[Any]) -> list[str]:
    return [line.message for line in run_pages.logs(run_pages.run_id(state))]


def test_a_run_ends_with_a_summary_and_an_approval_with_another(
    source: Source, destination: Destination, tmp_path: Path
) -> None:
    state = rebalance(
        source=source,
        destination=destination,
        model=TreesModel(),
        evaluation=PUBLISH,
        approval=Approval(ask=True),
        return_state=True,
    )
    # Not deployed, so it cannot be suspended: it ends, and says how to go on.
    assert state.is_completed()
    assert state.name == "Completed", "automations wait for this name"
    result = state.result()
    assert result.status == "awaiting_approval"
    assert f"prefect-augment approve {tmp_path / 'out'} {result.proposal}" in (state.message or "")

    shown = {a.key: a for a in artifacts(state)}
    slug = f"{tmp_path.name}-out".lower().replace("_", "-")
    assert set(shown) == {
        f"{part}-{slug}" for part in ("plan", "report", "approval", "answer", "progress")
    }
    assert shown[f"answer-{slug}"].data.startswith("## Verdict:")
    assert "report.html" in shown[f"answer-{slug}"].data
    assert shown[f"progress-{slug}"].data == 100.0
    assert shown[f"progress-{slug}"].description.startswith("done after ")
    for artifact in shown.values():
        assert len(json.dumps(artifact.data)) < 200_000
        if artifact.type == "markdown":
            assert "<img src=x" not in artifact.data, artifact.key
            assert "[a](b)" not in artifact.data, artifact.key

    said = messages(state)
    early = [i for i, line in enumerate(said) if line.startswith("First comparison")]
    trained = [i for i, line in enumerate(said) if line.startswith("Training ")]
    assert early < trained, "what is known without a model is said before one is trained"

    names = [task.name for task in run_pages.task_runs(run_pages.run_id(state))]
    sampled = [name for name in names if name.startswith("sample ")]
    assert any("<img src=x" in name for name in sampled), names
    assert any(name.startswith("score ") and name.endswith("seed 0") for name in names), names
    assert "train trees, seed 0" in names

    answer = approve(destination, "", Answer(by="Ada"), return_state=True)
    assert answer.result().version == 1
    assert "Approved by Ada" in (answer.message or "")
    assert any(a.key == f"answer-{slug}" for a in artifacts(answer))


def test_a_flow_that_calls_ours_gets_its_result(source: Source, destination: Destination) -> None:
    @flow(name="other-team")
    def other_team() -> RunResult:
        return rebalance(source, destination, model=NoModel(), plan_only=True)

    assert other_team().status == "planned"


def test_a_refused_run_says_so_and_where_to_look(source: Source, destination: Destination) -> None:
    strict = PUBLISH.model_copy(update={"on_no_gain": "fail"})
    state = rebalance(source, destination, model=NoModel(), evaluation=strict, return_state=True)
    assert state.is_failed()
    message = state.message or ""
    assert "evaluation.on_no_gain is 'fail'" in message
    assert "report.html" in message
    assert "Traceback" not in message
    with pytest.raises(RefusedError):
        state.result()


def test_a_block_opens_source_and_destination_and_its_secret_stays_inside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The memory file system takes any option; what matters is that they arrive and go nowhere."""
    import fsspec

    secret = "hunter2-is-secret"
    RemoteFileSystem(basepath="memory://lake", settings={"key": secret}).save(
        "lake", overwrite=True
    )
    memory = fsspec.filesystem("memory")
    with memory.open("/blocks/in.parquet", "wb") as file:
        pq.write_table(make_table(), file)
    block = "remote-file-system/lake"
    with caplog.at_level(logging.DEBUG):
        state = rebalance(
            source=Source(uri="memory://blocks/in.parquet", label="state", storage_block=block),
            destination=Destination(uri="memory://blocks/out", storage_block=block),
            model=NoModel(),
            evaluation=PUBLISH,
            return_state=True,
        )
    assert state.result().version == 1
    assert b"remote-file-system/lake" in memory.cat("/blocks/out/_manifests/v00000001.json")
    for path in memory.find("/blocks/out"):
        assert secret.encode() not in memory.cat(path), path
    assert secret not in caplog.text
    assert secret not in json.dumps([a.data for a in artifacts(state)])
    assert secret not in json.dumps(run_pages.flow_run(run_pages.run_id(state)).parameters)
    assert secret not in " ".join(messages(state))


def test_a_task_names_its_ten_largest_classes_and_counts_the_rest() -> None:
    said = class_list({f"c{i}": i for i in range(14)})
    assert said.startswith("c13 (13), c12 (12), ")
    assert said.endswith("c4 (4), 3 more classes (6)"), "c3, c2 and c1; of c0 there is nothing"
    assert class_list({"lost": 0}) == "no class"
