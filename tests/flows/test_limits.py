"""Turns, events and crashes under Prefect's own API."""

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from support.engine_runs import QUICK

from prefect_augment.errors import RefusedError
from prefect_augment.flows.augment import augment
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.params import Destination, NoModel, Source
from prefect_augment.tasks._events import PUBLISHED, REFUSED
from prefect_augment.tasks._limits import (
    GPU,
    crashes_in_a_row,
    destination_lease,
    destination_limit,
    gpu_slot,
)

pytestmark = pytest.mark.usefixtures("quick_runs")


def limits() -> dict[str, tuple[int, int]]:
    """Slots and slots taken, by limit."""
    with get_client(sync_client=True) as client:
        return {
            limit.name: (limit.limit, limit.active_slots)
            for limit in client.read_global_concurrency_limits(limit=200)
        }


# --- turns --------------------------------------------------------------------------------------


def test_a_destination_has_one_name_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len({destination_limit(u) for u in ("out", "./out/", str(tmp_path / "out"))}) == 1
    assert destination_limit("s3://lake/a/") == destination_limit("s3://lake/a")
    assert destination_limit("s3://lake/a") != destination_limit("s3://lake/A"), "other keys"
    assert destination_limit("s3://one/x/a") != destination_limit("s3://two/x/a")


def test_nothing_is_taken_outside_a_run() -> None:
    """No server is started for a plain function call: the tests' environment forbids it."""
    with destination_lease("s3://lake/a"), gpu_slot("cuda"):
        pass


@pytest.mark.flow
def test_two_runs_with_one_destination_work_one_after_the_other(tmp_path: Path) -> None:
    spans: list[tuple[float, float]] = []

    @flow
    def publishing() -> None:
        with destination_lease(str(tmp_path / "shared")):
            began = time.monotonic()
            time.sleep(1.0)
            spans.append((began, time.monotonic()))

    threads = [threading.Thread(target=publishing) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (_, first_ended), (second_began, _) = sorted(spans)
    assert second_began >= first_ended
    assert limits()[destination_limit(str(tmp_path / "shared"))] == (1, 0)


@pytest.mark.flow
def test_a_flow_within_a_flow_that_holds_the_destination_goes_through(tmp_path: Path) -> None:
    """Otherwise it would wait for its own caller for ever."""
    uri = str(tmp_path / "mine")

    @flow
    def inner() -> str:
        with destination_lease(uri):
            return "through"

    @flow
    def outer() -> str:
        with destination_lease(uri):
            return inner()

    assert outer() == "through"


@pytest.mark.flow
def test_the_gpu_s_limit_is_made_on_demand_and_given_back(source: Source, tmp_path: Path) -> None:
    @flow
    def training(device: str) -> tuple[int, int] | None:
        with gpu_slot(device, network=False):
            return limits().get(GPU)

    untouched = limits().get(GPU)
    assert training("cpu") == untouched, "nothing that computes on a GPU, no turn"
    with tags(GPU):
        taken = training("cpu")
    assert taken is not None
    assert taken[1] == 1
    assert limits()[GPU] == (taken[0], 0)


# --- events -------------------------------------------------------------------------------------


def events(name: str, uri: str) -> list[dict[str, Any]]:
    """Events of a dataset; they arrive by a thread of their own, so it may take a moment."""
    body = {"filter": {"event": {"name": [name]}}, "limit": 50}
    for _ in range(60):
        with get_client(sync_client=True) as client:
            found = client._client.post("/events/filter", json=body).json()["events"]
        mine = [e for e in found if e["resource"].get("prefect-augment.uri") == uri]
        if mine:
            return mine
        time.sleep(0.5)
    return []


@pytest.mark.flow
def test_a_published_version_is_an_event_once(source: Source, tmp_path: Path) -> None:
    out = str(tmp_path / "Out_1")
    augment(source=source, destination=Destination(uri=out))
    augment(source=source, destination=Destination(uri=out))
    (event,) = events(PUBLISHED, out)
    assert event["resource"]["prefect.resource.id"].startswith("prefect-augment.dataset.")
    assert event["resource"]["prefect.resource.id"].endswith("-out-1")
    payload = event["payload"]
    assert (payload["uri"], payload["version"]) == (out, 1)
    assert payload["verdict"] == "not compared"
    assert Path(payload["manifest"]).is_file()
    assert payload["counts"]["train"]["cracked"]["classic"] > 0
    assert payload["n_records"]["train"] > payload["n_records"]["holdout"] > 0


@pytest.mark.flow
def test_a_refused_run_is_an_event_with_its_reasons(source: Source, tmp_path: Path) -> None:
    """Nothing can be learnt of labels that are shuffled."""
    table, out = pq.read_table(source.uri), str(tmp_path / "refused")
    shuffled = table["state"].take(np.random.default_rng(0).permutation(len(table)))
    table = table.set_column(table.column_names.index("state"), "state", shuffled)
    pq.write_table(table, source.uri)
    strict = QUICK.model_copy(update={"on_no_gain": "fail"})
    with pytest.raises(RefusedError):
        rebalance(source, Destination(uri=out), model=NoModel(), evaluation=strict)
    (event,) = events(REFUSED, out)
    assert event["payload"]["verdict"] in ("reject", "inconclusive")
    assert event["payload"]["reasons"]
    assert Path(event["payload"]["report"]).is_file()
    assert limits()[destination_limit(out)] == (1, 0), "given back by a run that failed"


# --- crashes ------------------------------------------------------------------------------------


def history(*names: str) -> list[State]:
    now = datetime.now(UTC)
    return [
        State(type=StateType[name], timestamp=now + timedelta(seconds=i))
        for i, name in enumerate(names)
    ]


def test_crashes_are_counted_since_the_run_last_ended_otherwise() -> None:
    assert crashes_in_a_row(history("SCHEDULED", "RUNNING")) == []
    twice = history("RUNNING", "CRASHED", "SCHEDULED", "RUNNING", "CRASHED", "SCHEDULED", "RUNNING")
    assert len(crashes_in_a_row(twice)) == 2
    assert len(crashes_in_a_row(twice[::-1])) == 2, "in any order"


def test_a_retry_by_hand_starts_a_new_count() -> None:
    """The run that crashed too often was failed by the flow itself."""
    states = history("CRASHED", "CRASHED", "CRASHED", "RUNNING", "FAILED", "SCHEDULED", "RUNNING")
    assert crashes_in_a_row(states) == []
