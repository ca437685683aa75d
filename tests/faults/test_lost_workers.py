"""Workers that are killed at random points: a run's bytes are those of an undisturbed one."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.engine_runs import published_shards, short_run

from prefect_augment.params import Compute
from prefect_augment.tasks import _engines

pytestmark = pytest.mark.faults

#: Runs of each engine; LOST_WORKERS_RUNS=5 makes ten kills of them.
N_RUNS, KILLS_A_RUN = int(os.environ.get("LOST_WORKERS_RUNS", "1")), 2


@pytest.fixture(scope="module")
def source(make_table: Callable[..., pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lost") / "in.parquet"
    pq.write_table(make_table(), path)
    return path


def run(source: Path, folder: Path, **compute: object) -> dict[str, bytes]:
    short_run(str(source), str(folder), Compute.model_validate(compute))
    return published_shards(folder)


@pytest.fixture(scope="module")
def undisturbed(
    source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], float]:
    """What a run in threads publishes, and its seconds; the engines' runs take longer."""
    started = time.monotonic()
    published = run(source, tmp_path_factory.mktemp("lost") / "out")
    return published, time.monotonic() - started


def workers() -> list[psutil.Process]:
    """Processes below this one that take tasks."""
    own = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            # Ray's agents are named alike, and the node ends with them.
            is_rays = line.startswith("ray::") and "Agent" not in line
            if is_rays or "spawn_main" in line:
                own.append(process)
    return own


class _Opened(logging.Handler):
    """Notes that the run's engine has started: a cluster whose workers die before they register does not start."""

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.event.set()


@contextmanager
def killing(at: list[float], rng: random.Random) -> Iterator[list[float]]:
    """Kill a worker at each of these seconds after the engine has started; yield when that was."""
    killed: list[float] = []
    stop, opened, logger = threading.Event(), _Opened(), logging.getLogger(_engines.__name__)
    logger.addHandler(opened)
    logger.setLevel(logging.INFO)

    def kill() -> None:
        while not opened.event.wait(0.05) and not stop.is_set():
            pass
        started = time.monotonic()
        for seconds in at:
            if stop.wait(max(0.0, started + seconds - time.monotonic())):
                return
            if those := workers():
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(those).pid, signal.SIGKILL)
                    killed.append(time.monotonic() - started)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()
        logger.removeHandler(opened)


@pytest.mark.parametrize("engine", ["processes", "dask", "ray"])
def test_killed_workers_change_no_byte(
    engine: str, source: Path, undisturbed: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    if engine != "processes":
        pytest.importorskip(f"prefect_{engine}", reason=f"needs the extra {engine}")
    published, seconds = undisturbed
    rng = random.Random(engine)
    for i in range(N_RUNS):
        at = sorted(rng.uniform(0.0, seconds) for _ in range(KILLS_A_RUN))
        with killing(at, rng) as killed:
            assert run(source, tmp_path / f"out-{i}", engine=engine) == published, killed
        assert killed, "no kill met the run"


FLOW = """
import os, sys, time
from prefect_augment.params import Compute
from prefect_augment.tasks._engines import engine, open_engine, plain_call
if __name__ == "__main__":
    with open_engine(Compute(engine=sys.argv[1], workers=1)):
        print(plain_call(engine(), os.getpid), flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("name", ["processes", "dask", "ray"])
def test_no_worker_outlives_a_killed_flow(name: str, tmp_path: Path) -> None:
    if name != "processes":
        pytest.importorskip(f"prefect_{name}", reason=f"needs the extra {name}")
    script = tmp_path / "flow.py"
    script.write_text(FLOW)
    command = [sys.executable, str(script), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flow:
        assert flow.stdout is not None
        worker = psutil.Process(int(flow.stdout.readline()))
        flow.kill()
    gone, alive = psutil.wait_procs([worker], timeout=60)
    for process in alive:
        process.kill()
    assert gone
