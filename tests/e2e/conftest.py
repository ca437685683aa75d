"""A real Prefect server and real process workers on loopback, for all tests of this folder.

`server` is started once; `server.worker(pool)` starts a worker, `server.deploy()` deploys what the
repository names, `server.add(name, …)` a deployment of a test's own, `server.run(name)` makes a run of
one, `server.wait(run)` waits for its end, `server.hold(folder, paths)` keeps one in the middle of a stage.
Everything that was started is killed at the end, with whatever it started itself.
"""

import ctypes
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL, temporary_settings

REPOSITORY = Path(__file__).resolve().parents[2]
HOLD = Path(__file__).parent / "hold"
TEMPLATE = REPOSITORY / "deployments/work-pools/process-cpu.json"
START_SECONDS = 180  # a busy machine of two cores has been seen to need a minute
RUN_SECONDS = 600
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

# What a worker of ours and its flow runs are told beside the API's address.
FAST = {
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_WORKER_PREFETCH_SECONDS": "1",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the least that Prefect takes
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "5",
    # On a busy machine sqlite was locked for longer than the 10 seconds that it is waited for.
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
}


class Process:
    """A program in a process group of its own, with its output in a file."""

    def __init__(self, words: Sequence[str], env: dict[str, str], log: Path, cwd: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                list(words),
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_in_the_child,
            )
        self.pid = self.popen.pid

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """End it with -9, together with everything that it started, at once."""
        for process in reversed(self.family()):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.popen.wait(timeout=30)

    def stop(self) -> None:
        """Ask it to end; after 20 seconds it is killed."""
        family = self.family()
        if self.popen.poll() is None:
            self.popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout=20)
        for process in reversed(family):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.popen.wait(timeout=30)

    def family(self) -> list[psutil.Process]:
        """The process and its descendants, eldest first."""
        try:
            eldest = psutil.Process(self.pid)
            return [eldest, *eldest.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


class Server:
    """A Prefect server on a free port of loopback, with an empty database."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ui_url = f"http://127.0.0.1:{_free_port()}"
        self.api_url = f"{self.ui_url}/api"
        #: Environment of everything that talks to this server.
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
            **FAST,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.api_url,
            # Without it the UI looks for its API on port 4200, whatever --port is.
            "PREFECT_SERVER_UI_API_URL": self.api_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_CLI_PROMPT": "false",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
            # A flow run starts in a temporary folder, where a relative path leads nowhere.
            "PYTHONPATH": os.pathsep.join(
                [str(REPOSITORY / "src"), str(HOLD), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "HOLD_WRITES": str(home / "barriers"),
            # The run of the README is as users have it (see hold/).
            "QUICK_RUNS": "1",
            "CLASSIFIER_STEPS": "20",
            # The embedded default of source and destination lies below the home folder.
            "HOME": str(home),
        }
        self._processes: list[Process] = []
        self._clients = ExitStack()
        self._client: SyncPrefectClient | None = None
        self.barriers = home / "barriers"
        self.barriers.mkdir()

    # --- processes ---

    def start(self) -> None:
        """Start the server and wait until it answers."""
        port = self.ui_url.rsplit(":", 1)[1]
        words = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
        process = self.spawn(words, "server")
        until = time.monotonic() + START_SECONDS
        while not self._healthy():
            assert process.popen.poll() is None, process.output()[-3000:]
            assert time.monotonic() < until, f"no answer; {process.output()[-3000:]}"
            time.sleep(0.5)

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.api_url}/health", trust_env=False, timeout=5).is_success
        except httpx.TransportError:
            return False

    def spawn(self, words: Sequence[str], name: str) -> Process:
        """Start `python -m words…` with this server's environment; killed at the end."""
        log = self.home / f"{name}-{len(self._processes)}.log"
        process = Process([sys.executable, "-m", *words], self.env, log, self.home)
        self._processes.append(process)
        return process

    def worker(self, pool: str = "local-process") -> Process:
        """Start a process worker; `.kill()` ends it with -9, flow runs and all; `.stop()` asks."""
        words = ["prefect", "worker", "start", "--pool", pool, "--type", "process"]
        return self.spawn([*words, "--limit", "3"], f"worker-{pool}")

    def close(self) -> None:
        """End everything that was started here."""
        self._clients.close()
        for process in reversed(self._processes):
            with suppress(psutil.NoSuchProcess, subprocess.TimeoutExpired):
                process.kill()

    # --- commands and the client ---

    def prefect(
        self, *words: object, cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of Prefect's own to its end; nobody is there to answer a prompt."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *map(str, words)],
            env=self.env,
            cwd=cwd or self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def script(self, path: Path, *words: object) -> str:
        """Run a Python file to its end against this server; return what it printed."""
        done = subprocess.run(
            [sys.executable, str(path), *map(str, words)],
            env=self.env,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def pool(self, name: str = "local-process", *, template: Path = TEMPLATE) -> None:
        """Make a work pool where there is none of that name; of which type says the template's name."""
        kind = template.stem.partition("-")[0]
        content = json.loads(template.read_text())
        with self.client() as client, suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=content))

    def deploy(self) -> subprocess.CompletedProcess[str]:
        """Deploy everything in the repository's prefect.yaml."""
        return self.prefect("--no-prompt", "deploy", "--all", cwd=REPOSITORY)

    def add(
        self,
        name: str,
        flow: str,
        parameters: dict[str, Any],
        *,
        pool: str = "local-process",
        **more: Any,
    ) -> None:
        """Make a deployment `flow/name` of one of our flows, and its pool."""
        self.pool(pool)
        with self.client() as client:
            client.create_deployment(
                flow_id=client.create_flow_from_name(flow),
                name=name,
                entrypoint=f"prefect_augment.flows.{flow}:{flow}",
                parameters=parameters,
                work_pool_name=pool,
                **more,
            )

    @contextmanager
    def here(self) -> Iterator[None]:
        """Make this the server of Prefect's own functions in the test process: blocks, deployments."""
        with temporary_settings({PREFECT_API_URL: self.api_url}):
            yield

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """Give the client of this server, which is made once: it costs more than what is asked."""
        if self._client is None:
            self._client = self._clients.enter_context(SyncPrefectClient(self.api_url))
        yield self._client

    # --- runs ---

    def deployment_id(self, name: str) -> UUID:
        """The id of a deployment called `flow/deployment`."""
        with self.client() as client:
            return client.read_deployment_by_name(name).id

    def run(self, name: str, parameters: dict[str, Any] | None = None, **options: Any) -> FlowRun:
        """Make a run of the deployment `flow/deployment`, due now."""
        with self.client() as client:
            return client.create_flow_run_from_deployment(
                client.read_deployment_by_name(name).id, parameters=parameters or {}, **options
            )

    def read(self, run: FlowRun | UUID) -> FlowRun:
        """Read the run as it is now."""
        with self.client() as client:
            return client.read_flow_run(run if isinstance(run, UUID) else run.id)

    def wait(
        self, run: FlowRun | UUID, states: Sequence[str] = FINAL, *, seconds: float = RUN_SECONDS
    ) -> FlowRun:
        """Wait until the run's state has one of these types or names (RUNNING, Suspended …)."""

        def there() -> FlowRun | None:
            now = self.read(run)
            kind = now.state_type.value if now.state_type else ""
            return now if kind in states or now.state_name in states else None

        return self.until(there, seconds=seconds, what=f"state {states} of run {run}")

    def until(self, look: Callable[[], Any], *, seconds: float = RUN_SECONDS, what: str) -> Any:
        """Call `look` once a second until it gives something, and return that."""
        end = time.monotonic() + seconds
        while not (found := look()):
            if time.monotonic() > end:
                tails = "\n".join(f"--- {p.log}\n{p.output()[-1500:]}" for p in self._processes)
                raise AssertionError(f"waited {seconds:.0f} s for {what}\n{tails}")
            time.sleep(1.0)
        return found

    @contextmanager
    def hold(self, below: Path, paths: str, *, after: int = 0) -> Iterator[Callable[[], int]]:
        """Hold the runs' writes to a pattern of paths below a folder, once some have gone through.

        What is given waits until a write is held, and returns the id of its process; at the end of the
        block it goes on.
        """
        barrier = self.barriers / f"{uuid4().hex}.json"
        whole = barrier.with_suffix(".new")
        whole.write_text(json.dumps({"paths": f"{below}/{paths}", "after": after}))
        whole.rename(barrier)
        held = barrier.with_suffix(".held")
        try:
            yield lambda: int(
                self.until(lambda: held.exists() and held.read_text(), what=f"a write to {paths}")
            )
        finally:
            barrier.unlink()

    def logs(self, run: FlowRun | UUID) -> list[str]:
        """The run's log lines, oldest first."""
        run_id = run if isinstance(run, UUID) else run.id
        with self.client() as client:
            found = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])))
        return [line.message for line in sorted(found, key=lambda line: line.timestamp)]

    @contextmanager
    def tracing(self, *runs: FlowRun) -> Iterator[None]:
        """Show the runs' log lines where a test fails."""
        try:
            yield
        except BaseException:
            for run in runs:
                print(f"--- {run.name}: {self.read(run).state}", *self.logs(run)[-40:], sep="\n")
            raise


def _in_the_child() -> None:
    # A shell that started the tests in the background has it ignored, children too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":  # nothing of ours outlives the tests, however they end
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests of this folder; give deployments and destinations names of your own."""
    home = tmp_path_factory.mktemp("prefect-server")
    shutil.copy(empty_database, home / "prefect.db")
    server = Server(home)
    try:
        server.start()
        yield server
    finally:
        server.close()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def deployed(server: Server) -> Server:
    """The server with the pool `local-process` and everything in the repository's prefect.yaml."""
    server.pool("local-process")
    server.deploy()
    return server


@pytest.fixture(scope="module")
def worker(server: Server) -> Iterator[Process]:
    """A worker of the pool `local-process` for the tests of a module."""
    server.pool("local-process")
    process = server.worker("local-process")
    yield process
    process.kill()


@pytest.fixture(scope="session")
def automations() -> ModuleType:
    """`deployments/automations.py`, which is a script and no part of the package."""
    path = REPOSITORY / "deployments/automations.py"
    spec = importlib.util.spec_from_file_location("prefect_augment_automations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
