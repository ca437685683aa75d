"""Ctrl-C in each stage, and a disk that fills up: readers see a whole version or none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.manifest import latest_version, read_manifest
from prefect_augment.storage import open_store

pytestmark = pytest.mark.faults

DEADLINE_SECONDS = 300
# The folder that a stage makes first; the stages before it have left their receipts by then.
STAGES = {
    "ingest": "_staging/ingest",
    "train": "_staging/train",
    "sample": "_staging/sample",
    "gate": "_staging/judge",
    "score": "_staging/score",
    "verify": "_staging/verify",
    "report": "_staging/report",
    "publish": "data",
}
# Judged by the quick learner alone; what is published needs every stage to have run.
PARAMS = """
gate: {learners: [logistic], n_seeds: 1, n_bootstrap: 100, on_no_gain: publish}
"""


@pytest.fixture(scope="module")
def environment(prefect_harness: None) -> dict[str, str]:
    """The runs share one API, which starts once and not in each of them."""
    from prefect.settings import PREFECT_API_URL

    return {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of two classes and the run's parameters."""
    rng = np.random.default_rng(0)
    rare = np.arange(600) % 10 == 0
    folder = tmp_path_factory.mktemp("inputs")
    table = pa.table(
        {
            "width": rng.normal(rare * 1.5),
            "height": rng.normal(rare * 1.0),
            "site": rng.choice(["north", "south"], 600),
            "kind": np.where(rare, "rare", "usual"),
        }
    )
    pq.write_table(table, folder / "table.parquet")
    (folder / "params.yaml").write_text(PARAMS)
    return folder


@pytest.fixture(scope="module")
def digest(
    inputs: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The content digest of a run that nothing disturbed."""
    destination = tmp_path_factory.mktemp("undisturbed") / "out"
    done = finish(start(command(inputs, destination), environment))
    assert done.returncode == 0, done.stderr[-3000:]
    return published(destination)


def command(inputs: Path, destination: Path) -> list[str]:
    run = [sys.executable, "-m", "prefect_augment.cli", "rebalance"]
    paths = [str(inputs / "table.parquet"), str(destination)]
    return [*run, *paths, "--label", "kind", "--params", str(inputs / "params.yaml"), "--json"]


def start(words: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    # A group of its own: the signal reaches what the run itself started, and not this test.
    return subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    try:
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def published(destination: Path) -> str:
    store = open_store(str(destination))
    assert latest_version(store) == 1
    return read_manifest(store).content_digest


def interrupt_when(folder: Path, process: subprocess.Popen[str]) -> None:
    """Send what Ctrl-C sends as soon as the folder is there, or the run has ended."""
    until = time.monotonic() + DEADLINE_SECONDS
    while not folder.exists() and process.poll() is None:
        assert time.monotonic() < until, f"{folder} never came"
        time.sleep(0.005)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_leaves_nothing_visible_and_a_rerun_ends_alike(
    stage: str, inputs: Path, environment: dict[str, str], digest: str, tmp_path: Path
) -> None:
    destination = tmp_path / "out"
    process = start(command(inputs, destination), environment)
    interrupt_when(destination / STAGES[stage], process)
    stopped = finish(process)
    if stage == "publish" and stopped.returncode == 0:
        # It takes milliseconds, so the signal may come after the commit. Then all is there.
        assert published(destination) == digest
    else:
        assert stopped.returncode == 130, stopped.stderr[-3000:]
        assert "interrupted" in stopped.stderr
        assert latest_version(open_store(str(destination))) is None

    again = finish(start(command(inputs, destination), environment))
    assert again.returncode == 0, again.stderr[-3000:]
    assert published(destination) == digest
    assert problems(destination, environment) == []


def problems(destination: Path, environment: dict[str, str]) -> list[object]:
    verify = [sys.executable, "-m", "prefect_augment.cli", "verify", str(destination), "--json"]
    done = finish(start(verify, environment))
    found: list[object] = json.loads(done.stdout.splitlines()[-1])["problems"]
    return found


# --- disk full ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_namespace() -> list[str]:
    """Words before a command that give it mounts of its own, without being root outside."""
    unshare = shutil.which("unshare")
    words = [unshare or "unshare", "--user", "--map-root-user", "--mount"]
    if unshare is None or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody but root mount a small file system")
    return words


def test_a_full_disk_is_said_and_a_rerun_with_room_ends_alike(
    in_namespace: list[str], inputs: Path, environment: dict[str, str], digest: str, tmp_path: Path
) -> None:
    small, kept = tmp_path / "small", tmp_path / "kept"
    small.mkdir()
    destination = small / "out"
    run = " ".join(f"'{word}'" for word in command(inputs, destination))
    # The mount ends with the namespace, so what was written is copied out before.
    script = (
        f"mount -t tmpfs -o size=300k tmpfs '{small}' && {{ {run}; code=$?; "
        f"cp -r '{destination}' '{kept}'; exit $code; }}"
    )
    full = finish(start([*in_namespace, "sh", "-c", script], environment))
    assert full.returncode == 1, full.stderr[-3000:]
    assert "no space left" in full.stderr
    assert latest_version(open_store(str(kept))) is None

    again = finish(start(command(inputs, kept), environment))
    assert again.returncode == 0, again.stderr[-3000:]
    assert published(kept) == digest
