"""kill -9 in the middle of a run on images: a rerun goes on from what lies there and ends alike."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch", reason="the extra 'torch'")

from prefect_augment.manifest import latest_version, read_manifest
from prefect_augment.stages.maintain import verify
from prefect_augment.storage import open_store

pytestmark = pytest.mark.faults

DEADLINE_SECONDS = 300
# What a run has when it is killed, relative to its destination. Steps are checkpointed one by one
# here, and candidates drawn in batches of 32, so that there is a middle.
MOMENTS = {
    "training": ("_staging/train/*/resume/0000000[123]?.json", 1),
    "sampling": ("_staging/sample/*/batch-*.json", 1),
    "judging": ("_staging/score/*", 2),
    "publishing": ("data/*", 1),
}
PROGRAM = """
import logging, sys
from prefect_augment import estimates
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.params import Budget, Destination, DiffusionModel, Gate, Source
from prefect_augment.stages import sample

logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
logging.getLogger("prefect_augment").setLevel(logging.INFO)
estimates._STEPS_RANGE = (8, 8)
sample.BATCH_IMAGES = 32
rebalance.fn(
    source=Source(uri=sys.argv[1]),
    destination=Destination(uri=sys.argv[2]),
    model=DiffusionModel(width=16, sampler_steps=2),
    budget=Budget(steps=120, batch_size=16, device="cpu", checkpoint_seconds=0),
    gate=Gate(
        n_seeds=1, n_bootstrap=100, on_no_gain="publish",
        near_copy_quantile=0.0, fidelity_quantile=0.0,
    ),
)
"""


@pytest.fixture(scope="module")
def source(messy_images: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = messy_images.write(tmp_path_factory.mktemp("source"), messy_images.shapes())
    return folder


def start(source: Path, destination: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(source), str(destination)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the run and return its log."""
    try:
        _, log = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
    return log


def result(destination: Path) -> tuple[str, list[str]]:
    """The content's digest and the shards' names."""
    store = open_store(str(destination))
    assert latest_version(store) == 1
    manifest = read_manifest(store)
    assert not verify(store).problems
    return manifest.content_digest, sorted(shard.path for shard in manifest.shards)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    destination = tmp_path_factory.mktemp("undisturbed") / "out"
    process = start(source, destination)
    log = finish(process)
    assert process.returncode == 0, log[-3000:]
    found = result(destination)
    assert any("synthetic" in path for path in found[1])
    return found


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_shows_nothing_and_a_rerun_ends_with_the_same_bytes(
    moment: str, source: Path, undisturbed: tuple[str, list[str]], tmp_path: Path
) -> None:
    destination = tmp_path / "out"
    pattern, n_wanted = MOMENTS[moment]
    process = start(source, destination)
    until = time.monotonic() + DEADLINE_SECONDS
    while len(list(destination.glob(pattern))) < n_wanted and process.poll() is None:
        assert time.monotonic() < until, f"{pattern} never came"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    log = finish(process)
    if process.returncode == -signal.SIGKILL:
        if moment != "publishing":  # which takes milliseconds: the manifest may have come in time
            assert latest_version(open_store(str(destination))) is None
    else:
        assert moment == "publishing", log[-3000:]
    trained = list(destination.glob("_staging/train/*/outcome.json"))
    assert bool(trained) == (moment != "training")

    again = start(source, destination)
    log = finish(again)
    assert again.returncode == 0, log[-3000:]
    assert result(destination) == undisturbed
    assert ("goes on from step" in log) == (moment == "training"), log
