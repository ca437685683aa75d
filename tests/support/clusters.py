"""Dask clusters of a scheduler and workers as processes of their own, on this machine or in a network of their own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

START_SECONDS = 180  # a worker imports for seconds, and for a minute on a busy machine


class DaskCluster:
    """A scheduler, and workers that can be killed and are not replaced."""

    def __init__(
        self, folder: Path, *, host: str, inside: Sequence[str], env: dict[str, str]
    ) -> None:
        self._folder, self._host, self._inside = folder, host, list(inside)
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
        self._processes: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.address"
        self._start(
            "scheduler",
            ["--host", host, "--port", "0", "--no-dashboard", "--scheduler-file", str(file)],
        )
        wait_until(lambda: file.exists() and '"address"' in file.read_text(), "a Dask scheduler")
        text = file.read_text()
        self.address = text.partition('"address": "')[2].partition('"')[0]

    def add_worker(self, *around: str) -> subprocess.Popen[bytes]:
        """Start a worker, by the command ``around`` it if there is one."""
        words = [
            self.address,
            "--host",
            self._host,
            "--nworkers",
            "1",
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
        ]
        return self._start("worker", [*words, "--local-directory", str(self._folder)], around)

    def _start(
        self, what: str, words: Sequence[str], around: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        command = [
            *self._inside,
            *around,
            sys.executable,
            "-m",
            "distributed.cli.dask_" + what,
            *words,
        ]
        with (self._folder / f"{what}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._env, start_new_session=True
            )
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def dask_cluster(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    inside: Sequence[str] = (),
    env: dict[str, str] | None = None,
) -> Iterator[DaskCluster]:
    """Start a scheduler below ``folder``, by the command ``inside`` if there is one."""
    folder.mkdir(exist_ok=True)
    cluster = DaskCluster(folder, host=host, inside=inside, env=env or {})
    try:
        yield cluster
    finally:
        cluster.close()


@contextmanager
def network_namespace() -> Iterator[tuple[str, str, str]]:
    """A network of its own: its name, this machine's address in it and the other side's."""
    name = f"pa{os.getpid() % 100000}"
    here, there = "10.87.59.1", "10.87.59.2"
    commands = [
        f"ip netns add {name}",
        f"ip link add {name}a type veth peer name {name}b netns {name}",
        f"ip addr add {here}/30 dev {name}a",
        f"ip link set {name}a up",
        f"ip -n {name} addr add {there}/30 dev {name}b",
        f"ip -n {name} link set {name}b up",
        f"ip -n {name} link set lo up",
    ]
    if shutil.which("ip") is None:
        pytest.skip("no program ip: no network namespace can be made")
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True)
            if done.returncode:
                pytest.skip(
                    f"no network namespace can be made here: {command}: {done.stderr.strip()}"
                )
        yield name, here, there
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{name}a"], capture_output=True)


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + START_SECONDS
    while not is_so():
        assert time.monotonic() < until, f"{what} did not come within {START_SECONDS} s"
        time.sleep(0.05)
