"""Deployed at a real server and run by a real process worker: schedules, crashes, queues, automations."""

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from sklearn.datasets import load_digits

from prefect_augment.encoding.pixels import encode_png
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.storage import latest_version, open_store, read_manifest
from prefect_augment.tasks._display import dataset_slug

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).resolve().parents[2]
POOL = "local-process"
KILLED = "killed"  # whose worker is killed
# Compared by the quick estimator alone.
QUICK = {"n_seeds": 1, "n_settings": 1, "n_bootstrap": 100, "estimators": ["logistic"]}
# Two heartbeats fit in, if only just: the least that Prefect sends is one in 30 seconds.
SILENCE_SECONDS = 50


@pytest.fixture(scope="module")
def automations() -> ModuleType:
    """`deployments/automations.py`, which is a script and no part of the package."""
    path = REPOSITORY / "deployments/automations.py"
    spec = importlib.util.spec_from_file_location("prefect_augment_automations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def tracing(server: Any, *runs: FlowRun) -> Iterator[None]:
    """Show the runs' log lines where a test fails."""
    try:
        yield
    except BaseException:
        for run in runs:
            print(f"--- {run.name}: {server.read(run).state}", *server.logs(run)[-40:], sep="\n")
        raise


# --- what is deployed ---------------------------------------------------------------------------


def test_all_flows_are_deployed_without_a_prompt_and_the_file_stays_as_it_is(deployed: Any) -> None:
    path = REPOSITORY / "prefect.yaml"
    before = path.read_bytes()
    entries = {entry["name"]: entry for entry in yaml.safe_load(before)["deployments"]}
    assert deployed.deploy().returncode == 0, "again, over what is there"
    assert path.read_bytes() == before
    with deployed.client() as client:
        for name, entry in entries.items():
            flow = entry["entrypoint"].rpartition(":")[2].replace("_", "-")
            found = client.read_deployment_by_name(f"{flow}/{name}")
            assert found.description == entry["description"]
            assert found.tags == entry["tags"]
            assert found.work_pool_name == POOL
            assert found.global_concurrency_limit.limit == 1
            assert found.concurrency_options.collision_strategy == "ENQUEUE"
            active = [s.schedule.cron for s in found.schedules if s.active]
            assert active == (["0 3 * * *"] if flow == "rebalance" else [])


@pytest.mark.parametrize("name", ["augment/augment", "train/train"])
def test_a_deployment_runs_as_it_is_on_the_example(name: str, deployed: Any, worker: Any) -> None:
    run = deployed.run(name)
    with tracing(deployed, run):
        assert deployed.wait(run).state_name == "Completed"
    below = "example-augmented" if name == "augment/augment" else "example-balanced"
    assert open_store(str(deployed.home / "prefect-augment" / below)).list("_staging")


def test_work_pools_take_their_templates(server: Any) -> None:
    """Also those whose workers are in other packages: the server checks what a template says."""
    folder = REPOSITORY / "deployments/work-pools"
    words = ["work-pool", "create", "from-the-command", "--type", "kubernetes"]
    server.prefect(*words, "--base-job-template", folder / "kubernetes-gpu.json")
    for path in sorted(folder.glob("*.json")):
        server.pool(f"pool-{path.stem}", template=path)
        with server.client() as client:
            found = client.read_work_pool(f"pool-{path.stem}")
        assert found.type == path.stem.partition("-")[0]
        assert found.base_job_template == json.loads(path.read_text())


# --- schedules ----------------------------------------------------------------------------------


def test_a_schedule_publishes_finds_nothing_new_then_extends_the_split(
    server: Any,
    worker: Any,
    make_table: Callable[..., pa.Table],
    tmp_path: Path,
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    pq.write_table(make_table(), source / "1.parquet")
    seconds = 30
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


# --- crashes ------------------------------------------------------------------------------------


def digits(folder: Path) -> Path:
    """A folder per class of scikit-learn's digits, 8 × 8 pixels: the quickest images there are."""
    found = load_digits()
    for digit, n in {0: 60, 8: 24}.items():
        (folder / str(digit)).mkdir(parents=True)
        for i, pixels in enumerate(found.images[found.target == digit][:n]):
            image = encode_png((pixels * 15.9).astype(np.uint8)[..., None])
            (folder / str(digit) / f"{i}.png").write_bytes(image)
    return folder


@pytest.fixture
def training(tmp_path: Path) -> dict[str, Any]:
    """Parameters of a run that is training and little else, with a checkpoint at every step."""
    pytest.importorskip("torch", reason="needs the torch extra")
    return {
        # All eights are one group, on one side of the split, so there is nothing to compare.
        "source": {"uri": str(digits(tmp_path / "source")), "group_pattern": r"(8/|0/\d+)"},
        "balance": {"target": "majority"},
        "model": {"kind": "diffusion", "size": 8, "width": 16, "sampler_steps": 1},
        "budget": {"steps": 60, "batch_size": 16, "device": "cpu", "checkpoint_seconds": 0},
        "seed": 1,
    }


def test_a_run_whose_worker_was_killed_in_training_ends_from_its_checkpoint(
    server: Any,
    training: dict[str, Any],
    automations: ModuleType,
    tmp_path: Path,
) -> None:
    tag = "augment-killed"
    out = tmp_path / "out"
    evaluation = {"n_seeds": 1, "n_settings": 1, "n_bootstrap": 100, "on_no_gain": "publish"}
    parameters = {**training, "destination": {"uri": str(out)}, "evaluation": evaluation}
    server.add("killed", "rebalance", parameters, pool=KILLED, tags=[tag])
    with server.client() as client:
        wanted = [
            automations.zombies(tag, silence_seconds=SILENCE_SECONDS),
            automations.reschedule(tag),
        ]
        automations.install(wanted, client)

    worker = server.worker(KILLED)
    with server.hold(out, "_staging/train/*/resume/*.json", after=20) as held:
        run = server.run("rebalance/killed")
        with tracing(server, run):
            held()
        assert len(worker.family()) > 1, "the flow run is a process below the worker"
        worker.kill()
    killed = time.monotonic()
    with tracing(server, run):
        assert server.read(run).state_name == "Running", "nobody was left to say otherwise"
        assert latest_version(open_store(str(out))) is None

        another = server.worker(KILLED)
        # It is Crashed for a moment, until the other automation has heard of it.
        ended = server.wait(run, ["COMPLETED", "FAILED", "CANCELLED"])
        another.stop()
        print(f"completed {time.monotonic() - killed:.0f} s after the kill")
        assert ended.state_name == "Completed"
        with server.client() as client:
            states = sorted(client.read_flow_run_states(run.id), key=lambda s: s.timestamp)
        names = [state.name for state in states]
        crash = names.index("Crashed")
        assert "No heartbeat" in states[crash].message
        assert names[crash + 1] == "Scheduled"
        assert names.count("Running") == 2
        for words in ("Training goes on from step", "started again"):
            server.until(
                lambda words=words: words in "\n".join(server.logs(run)), what=f"the line {words!r}"
            )
    store = open_store(str(out))
    assert latest_version(store) == 1
    assert not verify(store).problems
    assert len(list(out.glob("_staging/train/*/outcome.json"))) == 1


# --- queues -------------------------------------------------------------------------------------


def test_two_runs_tagged_gpu_take_the_gpu_one_after_the_other(
    server: Any,
    worker: Any,
    training: dict[str, Any],
    tmp_path: Path,
) -> None:
    """On a machine without one, the tag asks for the slot."""
    runs = []
    for name in ("gpu-one", "gpu-two"):
        out = {"destination": {"uri": str(tmp_path / name)}}
        server.add(name, "train", {**training, **out}, tags=["gpu"])
    for name in ("gpu-one", "gpu-two"):
        runs.append(server.run(f"train/{name}"))
    with tracing(server, *runs):
        for run in runs:
            assert server.wait(run).state_name == "Completed"
        held, lines = [], []
        for run in runs:
            # Log lines come in batches, the last ones after the run's end.
            server.until(lambda run=run: "Gave a GPU back." in server.logs(run), what="the log")
            with server.client() as client:
                found = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
            at = {line.message: line.timestamp for line in found}
            lines += list(at)
            begin = next(t for m, t in at.items() if m.startswith("Holding a GPU"))
            end = next(t for m, t in at.items() if m.startswith("Gave a GPU back"))
            held.append((begin, end))
        (_, first_ended), (second_began, _) = sorted(held)
        assert second_began >= first_ended
        assert any(m.startswith("Waiting for a GPU") for m in lines), "they were due together"
    with server.client() as client:
        limit = client.read_global_concurrency_limit_by_name("gpu")
    assert (limit.limit, limit.active_slots) == (1, 0), "made on demand, and given back"


# --- events -------------------------------------------------------------------------------------


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
        with tracing(server, published, refused):
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
