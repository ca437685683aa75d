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
from prefect_augment.params import Budget, FlowModel
from prefect_augment.schema import ModelRef
from prefect_augment.storage import open_store

pytestmark = pytest.mark.faults

#: Kills in all; LOST_RANKS_KILLS=10 takes minutes.
N_KILLS = int(os.environ.get("LOST_RANKS_KILLS", "2"))
MODEL = FlowModel(width=16, depth=1, epochs=1000)
BUDGET = Budget(steps=200, batch_size=32, device="cpu", devices=2, checkpoint_seconds=0.0)


def ranks() -> list[psutil.Process]:
    """Processes below this one that train."""
    own = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any("synthesis.ranks" in word for word in process.cmdline()):
                own.append(process)
    return own


def trained(folder: Path) -> tuple[ModelRef, dict[str, bytes]]:
    """The model of a folder, and its files but for the checkpoints in between."""
    store = open_store(str(folder))
    ref = train_people(
        stage_parts(store, {"training": people()}), store, model=MODEL, budget=BUDGET
    )
    paths = (ref.checkpoint, ref.config)
    return ref, {path: store.read(path) for path in paths}


@contextmanager
def killing(after: float, rng: random.Random) -> Iterator[None]:
    """Kill a rank so many seconds after the block began."""
    stop = threading.Event()

    def kill() -> None:
        if not stop.wait(after) and (those := ranks()):
            with suppress(ProcessLookupError):
                os.kill(rng.choice(those).pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_killed_ranks_change_no_byte(tmp_path: Path) -> None:
    started = time.monotonic()
    _, undisturbed = trained(tmp_path / "whole")
    seconds, rng = time.monotonic() - started, random.Random("ranks")
    lost: list[str] = []
    n_runs = n_resumed = 0
    while len(lost) < N_KILLS:
        n_runs, published = n_runs + 1, None
        folder = tmp_path / f"out-{n_runs}"
        while published is None:
            n_resumed += any(folder.glob("_staging/train/*/resume/*.json"))
            try:
                with killing(rng.uniform(0.0, seconds), rng):
                    _, published = trained(folder)
            except LostRankError as exc:
                lost.append(str(exc))
            assert not ranks(), "the others end too"
        assert published == undisturbed
    assert all("of 2 was lost (signal 9) while training; run again" in text for text in lost)
    print(f"{len(lost)} kills in {n_runs} runs, {n_resumed} resumed; {seconds:.0f} s undisturbed")


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
