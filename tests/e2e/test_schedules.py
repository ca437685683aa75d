"""Deployments that run by themselves: by a schedule, and by an event."""

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule

from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.storage import latest_version, open_store, read_manifest
from prefect_augment.tasks._display import dataset_slug

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).resolve().parents[2]
# Compared by the quick estimator alone.
QUICK = {"n_seeds": 1, "n_settings": 1, "n_bootstrap": 100, "estimators": ["logistic"]}


@pytest.fixture
def pool(server: Any) -> Iterator[str]:
    """A pool with a worker of its own.

    Prefect's scheduler may plan runs of a deployment that is being deleted, and each of them takes one of
    a worker's slots for good: no other test's worker is to meet them.
    """
    server.pool("schedules")
    worker = server.worker("schedules")
    yield "schedules"
    worker.kill()


def test_a_schedule_publishes_finds_nothing_new_then_extends_the_split(
    server: Any,
    pool: str,
    make_table: Callable[..., pa.Table],
    tmp_path: Path,
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    pq.write_table(make_table(), source / "1.parquet")
    seconds = 60  # a run takes half of that on a busy machine
    every = IntervalSchedule(interval=timedelta(seconds=seconds))
    parameters = {
        "source": {"uri": str(source), "label": "state"},
        "destination": {"uri": str(out)},
        "model": {"kind": "none"},
        "evaluation": QUICK,
    }
    server.add(
        "scheduled",
        "rebalance",
        parameters,
        pool=pool,
        schedules=[DeploymentScheduleCreate(schedule=every, active=True)],
        concurrency_limit=1,
    )
    deployment = server.deployment_id("rebalance/scheduled")

    def completed(n: int) -> Sequence[FlowRun] | None:
        with server.client() as client:
            runs = client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
                limit=100,
            )
        ended = [r for r in runs if r.state is not None and r.state.is_final()]
        assert all(r.state_name == "Completed" for r in ended), [r.state for r in ended]
        return sorted(ended, key=lambda r: r.start_time) if len(ended) >= n else None

    try:
        # The second finds nothing new.
        first, second, *_ = server.until(lambda: completed(2), what="two scheduled runs")
        for run in (first, second):
            assert run.auto_scheduled
            assert run.start_time >= run.expected_start_time
            assert run.end_time > run.start_time
        gap = second.expected_start_time - first.expected_start_time
        assert gap >= timedelta(seconds=seconds)
        assert gap.total_seconds() % seconds == pytest.approx(0, abs=0.01)
        store = open_store(str(out))
        assert latest_version(store) == 1
        before = open_dataset(str(out))
        old = {
            split: set(before.to_table(split)["aug_id"].to_pylist())
            for split in ("train", "holdout")
        }
        # Whole at once: the next run may start at any moment.
        pq.write_table(make_table(seed=1), tmp_path / "2.parquet")
        (tmp_path / "2.parquet").rename(source / "2.parquet")
        server.until(lambda: latest_version(store) == 2, what="version 2")
    finally:
        with server.client() as client:  # with it go its runs that are due
            client.delete_deployment(deployment)
    after = open_dataset(str(out))
    for split, ids in old.items():
        assert ids < set(after.to_table(split)["aug_id"].to_pylist()), f"{split} was extended"
    assert read_manifest(store, 2).parent == 1
    assert not verify(store).problems


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[str]]]:
    """A web server that keeps what is posted to it."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Not on the screen."""

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}/", heard
    listening.shutdown()
    listening.server_close()


def test_a_published_version_runs_another_deployment_and_a_refused_one_is_told(
    server: Any,
    worker: Any,
    automations: ModuleType,
    webhook: tuple[str, list[str]],
    make_table: Callable[..., pa.Table],
    tmp_path: Path,
) -> None:
    url, heard = webhook
    table = make_table()
    pq.write_table(table, tmp_path / "in.parquet")
    source = {"uri": str(tmp_path / "in.parquet"), "label": "state"}
    # Nothing can be learnt of labels that are shuffled.
    shuffled = table["state"].take(np.random.default_rng(0).permutation(len(table)))
    table = table.set_column(table.column_names.index("state"), "state", shuffled)
    pq.write_table(table, tmp_path / "shuffled.parquet")
    server.add(
        "publishes", "augment", {"source": source, "destination": {"uri": str(tmp_path / "a")}}
    )
    server.add("refused", "rebalance", {
        "source": {**source, "uri": str(tmp_path / "shuffled.parquet")},
        "destination": {"uri": str(tmp_path / "b")},
        "model": {"kind": "none"},
        "evaluation": {**QUICK, "on_no_gain": "fail"},
    })  # fmt: skip
    # Of what was published, a model is trained: the template puts the event's payload into its form.
    server.add("follows", "train", {"destination": {"uri": str(tmp_path / "c")}})
    with server.here(), server.client() as client:
        CustomWebhookNotificationBlock(name="people", url=url, json_data={"text": "{{body}}"}).save(
            "people", overwrite=True
        )
        wanted = [
            automations.tell_refusals("custom-webhook/people"),
            automations.on_published(
                "train/follows",
                {"source": {"uri": "{{ event.payload.uri }}", "label": "state"}},
                client=client,
                dataset=dataset_slug(str(tmp_path / "a")).lower().replace("_", "-"),
            ),
        ]
        assert set(automations.install(wanted, client).values()) == {"created"}
        assert set(automations.install(wanted, client).values()) == {"replaced"}
        assert len({a.name for a in automations.installed(client)}) == len(
            automations.installed(client)
        )
    try:
        published = server.run("augment/publishes")
        refused = server.run("rebalance/refused")
        with server.tracing(published, refused):
            assert server.wait(published).state_name == "Completed"
            assert server.wait(refused).state_name == "Failed"
            follows = server.deployment_id("train/follows")

            def triggered() -> FlowRun | None:
                with server.client() as client:
                    runs = client.read_flow_runs(
                        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[follows]))
                    )
                return runs[0] if runs else None

            run = server.until(triggered, what="the run that the event triggers")
            assert run.parameters["source"] == {"uri": str(tmp_path / "a"), "label": "state"}
            assert server.wait(run).state_name == "Completed"
            server.until(lambda: heard, what="the notification")
        assert len(heard) == 1
        assert str(tmp_path / "b") in heard[0]
        assert "report.html" in heard[0]
    finally:
        script = REPOSITORY / "deployments/automations.py"
        assert server.script(script, "--remove").count("removed") >= 2
