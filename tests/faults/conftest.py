"""A warm process that forks runs (`warm.py`), and the small table that they rebalance."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

DEADLINE_SECONDS = 600  # for one run, on a machine that does ten other things


class Warm:
    """The program `warm.py`: :meth:`run` does one job to its end, :meth:`start` lets it run."""

    def __init__(self, folder: Path, *words: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._n_jobs = 0
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py")), *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == {"ready": True}

    def run(self, call: str, **job: Any) -> tuple[int, str]:
        """Do a job; return its exit code (less than 0: the signal that ended it) and its output."""
        log = self._log()
        answer = self._ask({"call": call, "log": str(log), **job})
        return answer["code"], log.read_text()

    def start(self, call: str, **job: Any) -> tuple[int, Path]:
        """Start a job; return its process id, and its log as it grows."""
        log = self._log()
        log.touch()
        return self._ask({"call": call, "log": str(log), "wait": False, **job})["pid"], log

    def join(self, pid: int, *, stopped: bool = False) -> int:
        """Wait until a started job has ended, or was stopped by a signal; return its exit code."""
        code: int = self._ask({"call": "join", "pid": pid, "stopped": stopped})["code"]
        return code

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=DEADLINE_SECONDS)
        self._process.stdout.close()

    def _log(self) -> Path:
        self._n_jobs += 1
        return self.folder / f"{self._n_jobs}.log"

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        there, _, _ = select.select([self._process.stdout], [], [], DEADLINE_SECONDS)
        assert there, f"no answer within {DEADLINE_SECONDS} s"
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """For runs that need no API."""
    process = Warm(tmp_path_factory.mktemp("warm"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def warm_with_api(
    prefect_harness: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Warm]:
    """For the command line: its runs share one API, which starts once and not in each of them."""
    from prefect.settings import PREFECT_API_URL

    url = str(PREFECT_API_URL.value())
    process = Warm(tmp_path_factory.mktemp("warm-api"), env={"PREFECT_API_URL": url})
    yield process
    process.close()


@pytest.fixture(scope="session")
def warm_with_images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """For runs on images, with torch."""
    pytest.importorskip("torch", reason="the extra 'torch'")
    process = Warm(tmp_path_factory.mktemp("warm-images"), "images")
    yield process
    process.close()


def two_classes(n: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    rare = np.arange(n) % 10 == 0
    return pa.table(
        {
            "width": rng.normal(rare * 1.5),
            "height": rng.normal(rare * 1.0),
            "site": rng.choice(["north", "south"], n),
            "kind": np.where(rare, "rare", "usual"),
        }
    )


@pytest.fixture(scope="session")
def write_source() -> Any:
    """Write a table of two classes; equal seeds give equal records."""

    def write(path: Path, n: int = 300, seed: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(two_classes(n, seed), path)

    return write
