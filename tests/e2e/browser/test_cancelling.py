"""A run that is cancelled in every stage, from the UI and through the API, and retried to its end."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId
from prefect.states import Cancelling

from prefect_augment.encoding.pixels import encode_png
from prefect_augment.errors import IntegrityError
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.storage import open_store, read_manifest

pytestmark = pytest.mark.e2e

PARAMETERS: dict[str, Any] = {
    "model": {"kind": "diffusion", "width": 16, "sampler_steps": 2, "guidance": 2.0},
    "budget": {"steps": 90, "batch_size": 16, "checkpoint_seconds": 0, "device": "cpu"},
    "evaluation": {"n_seeds": 1, "n_settings": 1, "n_bootstrap": 200, "on_no_gain": "publish"},
    "classic": {"image": "none"},
    "compute": {"workers": 1},
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits of 8 × 8 pixels: many zeros, few eights."""
    from sklearn.datasets import load_digits

    found = load_digits()
    folder = tmp_path_factory.mktemp("digits") / "digits"
    for name, digit, n in (("zero", 0, 40), ("eight", 8, 20)):
        (folder / name).mkdir(parents=True)
        for i in np.flatnonzero(found.target == digit)[:n]:
            pixels = np.rint(found.images[i] * (255 / 16)).astype(np.uint8)[..., None]
            (folder / name / f"{i}.png").write_bytes(encode_png(pixels))
    return folder


@pytest.fixture(scope="module")
def undisturbed(working: Any, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same work as a plain command, begun now beside the test; called, it waits for the end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "params.yaml").write_text(json.dumps(PARAMETERS))  # JSON is YAML
    words = ["prefect_augment.cli.app", "rebalance", str(digits), str(folder / "out")]
    process = working.spawn([*words, "--params", str(folder / "params.yaml")], "undisturbed")

    def finished() -> Path:
        assert process.popen.wait(timeout=300) == 0, process.output()[-3000:]
        return folder / "out"

    return finished


def assert_nothing_is_visible(destination: Path) -> None:
    """A reader finds no dataset, and nothing that looks like one lies about."""
    with pytest.raises(IntegrityError, match="no published dataset"):
        open_dataset(str(destination))
    seen = [p.name for p in destination.iterdir()] if destination.exists() else []
    assert seen in ([], ["_staging"])


def assert_no_problems(destination: Path) -> None:
    words = [sys.executable, "-m", "prefect_augment.cli.app", "verify", str(destination), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout.splitlines()[-1])["problems"] == []


def shards(destination: Path) -> list[str]:
    """The shards' names, which carry the hash of their content."""
    return sorted(p.name for p in (destination / "data").iterdir())


class Watched:
    """A run, by what its tasks and artifacts say through the API."""

    def __init__(self, server: Any, run_id: UUID) -> None:
        self.server, self.run_id = server, run_id

    def task_states(self) -> dict[str, str]:
        chosen = TaskRunFilterFlowRunId(any_=[self.run_id])
        with self.server.client() as client:
            runs = client.read_task_runs(task_run_filter=TaskRunFilter(flow_run_id=chosen))
        newest = sorted(runs, key=lambda run: run.created)
        return {run.name.split()[0]: run.state_name or "" for run in newest}

    def wait_for(self, look: Callable[[dict[str, str]], bool], what: str) -> None:
        """Wait for the tasks' states, which the server learns of a little later."""
        self.server.until(lambda: look(self.task_states()), what=what)

    def said(self, words: str) -> bool:
        return any(line.startswith(words) for line in self.server.logs(self.run_id))

    def cancel(self) -> None:
        """Cancel through the API, and wait until the worker has ended the process."""
        with self.server.client() as client:
            client.set_flow_run_state(self.run_id, Cancelling())
        self.server.wait(self.run_id, ["CANCELLED"])


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    # A folder of its own, whose name the artifacts carry.
    return tmp_path / "cancelled"


def test_a_run_cancelled_in_every_stage_and_retried_ends_with_the_same_bytes(
    ui: Any, digits: Path, undisturbed: Any, destination: Path
) -> None:
    given = {"source": str(digits), "destination": str(destination), "images": PARAMETERS}
    ui.open_filled_form(given)

    # In training, from the UI, a third of the way.
    with ui.server.hold(destination, "_staging/train/*/resume/*.json", after=30) as held:
        run_id = ui.submit()
        run = Watched(ui.server, run_id)
        ui.leave()
        held()
        ui.open_run(run_id, "Artifacts")
        ui.page.get_by_text("images/s").first.wait_for()
        ui.shot("20-training")
        ui.cancel_run()
        ui.wait_for_state("Cancelled")
        ui.shot("21-cancelled-in-training")
    run.wait_for(lambda states: "Running" not in states.values(), "no task to run")
    assert run.task_states()["train"] != "Completed"
    assert_nothing_is_visible(destination)

    # In sampling, after a retry from the UI.
    with ui.server.hold(destination, "_staging/sample/*") as held:
        ui.retry_run()
        ui.leave()
        held()
        run.wait_for(lambda states: states.get("sample") == "Running", "task sample to run")
        ui.server.until(lambda: run.said("Training goes on from step"), what="the line of a resume")
        run.cancel()
    assert_nothing_is_visible(destination)

    # In scoring.
    with ui.server.hold(destination, "_staging/score/*") as held:
        ui.open_run(run_id)
        ui.retry_run()
        ui.leave()
        held()
        run.wait_for(lambda states: states.get("score") == "Running", "task score to run")
        run.cancel()
    assert_nothing_is_visible(destination)

    ui.open_run(run_id)
    ui.retry_run()
    ui.leave()
    ended = ui.server.wait(run_id)
    assert ended.state_name == "Completed", ended.state.message
    ui.open_run(run_id)
    ui.wait_for_state("Completed")
    ui.shot("22-retried-to-the-end")

    ui.open_artifact(ui.key(destination, "report"))
    ui.page.get_by_role("heading", name="Verdict", exact=False).first.wait_for()
    ui.shot("23-report-of-images")
    widths = ui.widths_of_images()
    assert len(widths) >= 2  # charts and a sheet of the rare class
    assert min(widths) > 0

    assert_no_problems(destination)
    alike = undisturbed()
    assert shards(destination) == shards(alike)
    mine, other = (read_manifest(open_store(str(d))) for d in (destination, alike))
    assert mine.content_digest == other.content_digest
