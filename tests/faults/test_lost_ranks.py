"""Processes that train a network together are killed at random points: a rerun goes on, with the same bytes."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from support.staging import people, stage_parts, train_people

pytest.importorskip("torch", reason="the extra 'torch'")

from prefect_augment.errors import LostRankError
from prefect_augment.params import Budget, GanModel
from prefect_augment.storage import open_store

pytestmark = pytest.mark.faults

#: LOST_RANKS_RUNS=5 makes ten kills of them.
N_RUNS, KILLS_A_RUN = int(os.environ.get("LOST_RANKS_RUNS", "1")), 2
MODEL = GanModel(width=16, depth=1, critic_steps=1)  # takes all its steps
BUDGET = Budget(steps=200, batch_size=32, device="cpu", devices=2, checkpoint_seconds=0.0)


def ranks() -> list[psutil.Process]:
    """Processes below this one that train."""
    own = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any("synthesis.ranks" in word for word in process.cmdline()):
                own.append(process)
    return own


def trained(folder: Path) -> tuple[bytes, bytes]:
    """The model of a folder: its weights, and its configuration."""
    store = open_store(str(folder))
    dataset = stage_parts(store, {"training": people()})
    ref = train_people(dataset, store, model=MODEL, budget=BUDGET)
    return store.read(ref.checkpoint), store.read(ref.config)


def newest_step(folder: Path) -> int:
    """Step of the last checkpoint."""
    steps = [int(path.stem) for path in folder.glob("_staging/train/*/resume/[0-9]*.json")]
    return max(steps, default=0)


@contextmanager
def killing(folder: Path, step: int, rng: random.Random) -> Iterator[None]:
    """Kill a rank when there is a checkpoint of this step, or a moment later."""
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.01):
            if newest_step(folder) >= step and (those := ranks()):
                stop.wait(rng.uniform(0.0, 0.1))
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(those).pid, signal.SIGKILL)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_killed_ranks_change_no_byte(tmp_path: Path) -> None:
    rng = random.Random("ranks")
    undisturbed = trained(tmp_path / "whole")
    for i in range(N_RUNS):
        folder = tmp_path / f"out-{i}"
        for step in sorted(rng.randrange(BUDGET.steps - 20) for _ in range(KILLS_A_RUN)):
            with (
                pytest.raises(LostRankError, match=r"rank [01] of 2 was lost \(signal 9\) while"),
                killing(folder, step, rng),
            ):
                trained(folder)
            assert not ranks(), "the others end too"
            assert newest_step(folder) >= step
        assert trained(folder) == undisturbed


FLOW = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from faults.test_lost_ranks import trained
trained(Path(sys.argv[1]))
"""


def test_no_rank_outlives_a_killed_flow(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    with subprocess.Popen([sys.executable, "-c", FLOW, str(tmp_path), tests]) as flow:
        until = time.monotonic() + 120
        while len(those := ranks()) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        flow.kill()
    gone, alive = psutil.wait_procs(those, timeout=60)
    for process in alive:
        process.kill()
    assert len(gone) == 2
