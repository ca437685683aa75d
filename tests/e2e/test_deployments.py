"""Deployed at a real server and run by a real process worker: what is deployed, crashes, queues."""

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from sklearn.datasets import load_digits

from prefect_augment.encoding.pixels import encode_png
from prefect_augment.maintenance.verify import verify
from prefect_augment.storage import latest_version, open_store

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).resolve().parents[2]
POOL = "local-process"
KILLED = "killed"  # whose worker is killed
# Two heartbeats fit in, if only just: the least that Prefect sends is one in 30 seconds.
SILENCE_SECONDS = 50


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
    with deployed.tracing(run):
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
        with server.tracing(run):
            held()
        assert len(worker.family()) > 1, "the flow run is a process below the worker"
        worker.kill()
    killed = time.monotonic()
    with server.tracing(run):
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
    with server.tracing(*runs):
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
