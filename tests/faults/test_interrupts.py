"""Ctrl-C in each stage: readers see a whole version or none, and the run goes on where it was."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefect_augment.storage import latest_version, open_store, read_manifest

pytestmark = pytest.mark.faults

# Where a stage begins to write; the stages before it have left their receipts by then.
STAGES = {
    "ingest": "_staging/ingest/",
    "train": "_staging/train/",
    "sample": "_staging/sample/",
    "filter": "_staging/filter/",
    "score": "_staging/score/",
    "confirm": "_staging/confirm/",
    "report": "_staging/report/",
    "publish": "data/",
}
# Compared by the quick estimator alone; what is published needs every stage to have run.
PARAMS = """
evaluation: {estimators: [logistic], n_seeds: 1, n_settings: 1, n_bootstrap: 100, on_no_gain: publish}
"""


@pytest.fixture(scope="module")
def inputs(write_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of two classes and the run's parameters."""
    folder = tmp_path_factory.mktemp("inputs")
    write_source(folder / "table.parquet", n=600)
    (folder / "params.yaml").write_text(PARAMS)
    return folder


def command(inputs: Path, destination: Path) -> dict[str, Any]:
    """A run from the command line, as a job of the warm process."""
    words = ["rebalance", str(inputs / "table.parquet"), str(destination), "--label", "kind"]
    words += ["--params", str(inputs / "params.yaml"), "--json"]
    return {"words": words, "destination": str(destination)}


@dataclass(frozen=True)
class Undisturbed:
    """What a run does and leaves that nothing disturbed."""

    digest: str
    events: tuple[str, ...]


@pytest.fixture(scope="module")
def undisturbed(
    warm_with_api: Any, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    events = folder / "events"
    job = command(inputs, folder / "out")
    code, log = warm_with_api.run("command", **job, events=str(events))
    assert code == 0, log
    return Undisturbed(published(folder / "out"), tuple(events.read_text().splitlines()))


def published(destination: Path) -> str:
    store = open_store(str(destination))
    assert latest_version(store) == 1
    return read_manifest(store).content_digest


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_leaves_nothing_visible_and_a_rerun_ends_alike(
    stage: str, warm_with_api: Any, inputs: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    destination = tmp_path / "out"
    place = next(e for e in undisturbed.events if e.split()[1].startswith(STAGES[stage]))
    at = {"at": place, "number": signal.SIGINT}
    code, log = warm_with_api.run("command", **command(inputs, destination), signal=at)
    assert code == 130, log
    assert "interrupted" in log
    assert latest_version(open_store(str(destination))) is None

    code, log = warm_with_api.run("command", **command(inputs, destination))
    assert code == 0, log
    assert published(destination) == undisturbed.digest
    code, log = warm_with_api.run("command", words=["verify", str(destination), "--json"])
    assert json.loads(log.splitlines()[-1])["problems"] == []
