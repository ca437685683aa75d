"""Where the tasks of a run work: in its own process, in others of this machine, or on a Dask or Ray cluster.

A flow's task runner is fixed before its parameters are known. So :func:`open_engine` opens the one that
``compute`` asks for and makes it the flow run's, until the flow ends. Outside a run the same engines take
plain calls, without a server.
"""

import logging
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from importlib import import_module
from logging.handlers import QueueHandler
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from queue import SimpleQueue
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import cloudpickle
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner

from prefect_augment.errors import (
    AugmentError,
    CrashedTooOftenError,
    MissingExtraError,
    ParameterError,
    StorageError,
)
from prefect_augment.params import Compute, Destination

T = TypeVar("T")

DEFAULT_WORKERS = 2
# A task whose workers die so often is likely to kill the next one too.
MAX_LOST = 3
CONNECT_SECONDS = 20
STATES_SECONDS = 20
FIRST_WORKER_SECONDS = 60  # of a cluster that starts workers when there is work

logger = logging.getLogger(__name__)


class Engine(ABC):
    """Processes that take tasks, on this machine or on others."""

    n_workers: int  # tasks at the same time
    lost: tuple[type[BaseException], ...] = ()  # what a call raises whose workers died

    @abstractmethod
    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Return what the function returns on a worker."""

    @abstractmethod
    def runner(self) -> TaskRunner[Any]:
        """Return a task runner of Prefect's, not yet started, that submits to the same workers."""

    def everywhere(self, function: Callable[..., T], *args: Any) -> Mapping[str, T | BaseException]:
        """Call a function once on each machine or worker; what it returns or raises, by the worker's address.

        Empty where all workers are on this machine, as its own processes.
        """
        return {}

    def renew(self, generation: int) -> bool:
        """Replace workers of this generation, which have died; False where the cluster has done what it can."""
        return False

    generation = 0


class _Processes(Engine):
    """Processes of this machine; a new one for each that dies."""

    lost = (BrokenProcessPool,)

    def __init__(self, n_workers: int, runner: TaskRunner[Any] | None = None) -> None:
        self.n_workers = n_workers
        self._lock = threading.Lock()
        self._runner = runner
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.n_workers, mp_context=get_context("spawn"), initializer=_end_with_parent
        )

    def call(self, function: Callable[..., T], *args: Any) -> T:
        return self._pool.submit(function, *args).result()

    def runner(self) -> TaskRunner[Any]:
        self._runner = ProcessPoolTaskRunner(self.n_workers, initializer=_end_with_parent)
        return self._runner

    def renew(self, generation: int) -> bool:
        with self._lock:
            if generation != self.generation:  # another thread was quicker
                return True
            self.generation += 1
            self._pool.shutdown(wait=False)
            self._pool = self._new_pool()
            if self._runner is not None:  # stays the flow run's
                self._runner.__exit__(None, None, None)
                self._runner.__enter__()
            return True

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Have a worker process end when the flow's does, even by a kill: a pool's workers would wait for ever."""
    parent = parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


class _Dask(Engine):
    """A Dask cluster; its scheduler gives what a lost worker had to another."""

    def __init__(self, client: Any, compute: Compute) -> None:
        self._client = client
        self.lost = (import_module("distributed").KilledWorker,)
        try:
            client.wait_for_workers(1, timeout=FIRST_WORKER_SECONDS)
        except TimeoutError as exc:
            raise AugmentError(
                f"the Dask cluster at {client.scheduler.address} has no worker after {FIRST_WORKER_SECONDS} s; start "
                "one with: dask worker ADDRESS"
            ) from exc
        self.n_workers = compute.workers or sum(client.nthreads().values())

    def call(self, function: Callable[..., T], *args: Any) -> T:
        done: T = self._client.submit(function, *args, pure=False).result()
        return done

    def runner(self) -> TaskRunner[Any]:
        runner: TaskRunner[Any] = import_module("prefect_dask").DaskTaskRunner(
            address=self._client.scheduler.address
        )
        return runner

    def everywhere(self, function: Callable[..., T], *args: Any) -> Mapping[str, T | BaseException]:
        done: dict[str, T | BaseException] = self._client.run(function, *args, on_error="return")
        closed = import_module("distributed").comm.CommClosedError
        # A worker that dies meanwhile is lost, as any other is later.
        return {
            address: answer for address, answer in done.items() if not isinstance(answer, closed)
        }


class _Ray(Engine):
    """A Ray cluster; it runs the task of a lost worker again."""

    def __init__(self, compute: Compute) -> None:
        self._ray = import_module("ray")
        self.lost = (
            self._ray.exceptions.WorkerCrashedError,
            self._ray.exceptions.NodeDiedError,
            self._ray.exceptions.OutOfMemoryError,
        )
        self._address = compute.address
        self.n_workers = compute.workers or int(self._ray.cluster_resources().get("CPU", 1))

    def call(self, function: Callable[..., T], *args: Any) -> T:
        done: T = self._ray.get(self._ray.remote(function).remote(*args))
        return done

    def runner(self) -> TaskRunner[Any]:
        # Ray is connected already, which the runner sees.
        runner: TaskRunner[Any] = import_module("prefect_ray").RayTaskRunner(
            address=self._address or None
        )
        return runner

    def everywhere(self, function: Callable[..., T], *args: Any) -> Mapping[str, T | BaseException]:
        strategies = import_module("ray.util.scheduling_strategies")
        calls = {}
        for node in self._ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU"):
                here = strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = self._ray.remote(function).options(scheduling_strategy=here, num_cpus=0)
                calls[node["NodeManagerAddress"]] = task.remote(*args)
        done: dict[str, T | BaseException] = {}
        for address, call in calls.items():
            try:
                done[address] = self._ray.get(call)
            except self.lost:
                logger.warning("The worker at %s died.", address)
            except self._ray.exceptions.RayError as exc:
                done[address] = exc
        return done


# --- open ---------------------------------------------------------------------------------------

_engine: ContextVar[Engine | None] = ContextVar("the run's engine", default=None)


def engine() -> Engine | None:
    """Return the engine of this run; None where tasks are threads of the flow's own process."""
    return _engine.get()


@contextmanager
def open_engine(compute: Compute) -> Iterator[int]:
    """Run the tasks of this block where ``compute`` says; yield how many may run at the same time.

    With ``threads`` a flow keeps the task runner that ``with_options`` gave it; one of Dask, Ray or processes
    is the run's engine then.

    Raises MissingExtraError where the engine is not installed; AugmentError where the address does not answer,
    or has no worker.
    """
    context = FlowRunContext.get()
    with ExitStack() as stack:
        if compute.engine == "threads":
            opened = _of_runner(context.task_runner, compute) if context is not None else None
            if opened is None:
                yield compute.workers or DEFAULT_WORKERS
                return
        else:
            opened = _open(compute, stack)
            if context is not None:
                runner = stack.enter_context(opened.runner())
                stack.enter_context(context.model_copy(update={"task_runner": runner}))
        token = _engine.set(opened)
        stack.callback(_engine.reset, token)
        where = f" at {compute.address}" if compute.address else ""
        logger.info(
            "Tasks run on %s%s, up to %d at the same time.",
            {"processes": "processes", "dask": "Dask", "ray": "Ray", "threads": "the task runner"}[compute.engine],
            where,
            opened.n_workers,
        )  # fmt: skip
        yield opened.n_workers
        if context is not None and context.flow_run is not None:
            _await_states(context.flow_run.id)


def _await_states(flow_run: UUID) -> None:
    """Wait until the server knows how the run's tasks ended, for a few seconds at most.

    A worker sends that in the background, and one that is ended before it did leaves a task that runs for ever
    on the run's page.
    """
    running = TaskRunFilter(
        state=TaskRunFilterState(
            type=TaskRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
        )
    )
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
    until = time.monotonic() + STATES_SECONDS
    with get_client(sync_client=True) as client:
        while client.read_task_runs(flow_run_filter=of_run, task_run_filter=running, limit=1):
            if time.monotonic() > until:
                return
            time.sleep(0.2)


def _open(compute: Compute, stack: ExitStack) -> Engine:
    n_workers = compute.workers or DEFAULT_WORKERS
    if compute.engine == "processes":
        processes = _Processes(n_workers)
        stack.callback(processes.close)
        return processes
    if compute.engine == "dask":
        return _open_dask(compute, n_workers, stack)
    return _open_ray(compute, n_workers, stack)


def _open_dask(compute: Compute, n_workers: int, stack: ExitStack) -> Engine:
    _require("prefect_dask", extra="dask")
    distributed = import_module("distributed")
    cluster = compute.address or stack.enter_context(
        distributed.LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            memory_limit=0,  # none: as for the other engines
            dashboard_address="127.0.0.1:0",  # any free port
            silence_logs=logging.ERROR,
            env=_own_threads(),
        )
    )
    try:
        client = distributed.Client(cluster, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as exc:
        raise _no_answer(compute, exc) from exc
    return _Dask(stack.enter_context(client), compute)


def _open_ray(compute: Compute, n_workers: int, stack: ExitStack) -> Engine:
    _require("prefect_ray", extra="ray")
    ray = import_module("ray")
    if not ray.is_initialized():
        own = {"num_cpus": n_workers, "include_dashboard": False}
        options = {"address": compute.address} if compute.address else {"address": "local", **own}
        # Logs come through Prefect; Ray would print every line of a worker once more.
        environment = {} if compute.address else {"runtime_env": {"env_vars": _own_threads()}}
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **options, **environment)
        except (ConnectionError, RuntimeError, ValueError) as exc:
            raise _no_answer(compute, exc) from exc
        stack.callback(ray.shutdown)
    return _Ray(compute)


def _of_runner(runner: TaskRunner[Any], compute: Compute) -> Engine | None:
    """Return the engine behind a task runner that ``with_options`` gave the flow; None for threads."""
    kind = type(runner).__name__
    if kind == "DaskTaskRunner":
        return _Dask(runner.client, compute)  # type: ignore[attr-defined]
    if kind == "RayTaskRunner":
        return _Ray(compute)
    if isinstance(runner, ProcessPoolTaskRunner):
        return _Processes(runner._max_workers, runner)
    return None


def _require(module: str, *, extra: str) -> None:
    try:
        import_module(module)
    except ImportError as exc:
        raise MissingExtraError(
            f"compute.engine is {extra!r}, which needs: pip install 'prefect-augment[{extra}]'",
            extra=extra,
        ) from exc


def _no_answer(compute: Compute, exc: BaseException) -> AugmentError:
    why = " ".join(str(exc).split())[:200] or type(exc).__name__
    return AugmentError(
        f"no {compute.engine.capitalize()} cluster answers at {compute.address or 'this machine'}: {why}. Start it, "
        "correct compute.address, or leave the address empty for a cluster of this machine alone."
    )


def _own_threads() -> dict[str, str]:
    """Numeric libraries of workers use as many threads as this process, since Dask and Ray would set one.

    A network's sums depend on it, in their last bits.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(cores or 1)}


# --- call ---------------------------------------------------------------------------------------


def again_if_lost(opened: Engine, name: str, call: Callable[[], T]) -> T:
    """Return what the call returns; made again where processes of this machine died under it.

    Dask and Ray do so themselves. Raises CrashedTooOftenError where the workers die each time.
    """
    for i in range(MAX_LOST):
        generation = opened.generation
        try:
            return call()
        except opened.lost as exc:
            if i == MAX_LOST - 1 or not opened.renew(generation):
                raise CrashedTooOftenError(
                    f"{name} lost its worker {MAX_LOST} times and was not started again. Mostly the worker was out of "
                    "memory: give it more, or lower compute.workers or budget.batch_size; then run the same again, "
                    "which goes on from what is staged.",
                    n_crashes=MAX_LOST,
                ) from exc
            logger.warning("A worker process died; %s is done again.", name)
    raise AssertionError


def plain_call(opened: Engine, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Return what a function returns on a worker, without Prefect; its log lines come at its end."""
    done, records = opened.call(_unpacked, cloudpickle.dumps((function, args, kwargs)))
    for record in records:
        logging.getLogger(record.name).handle(record)
    result: T = cloudpickle.loads(done)
    return result


def _unpacked(packed: bytes) -> tuple[bytes, list[logging.LogRecord]]:
    """Make a call by its pickle, with functions that plain pickle cannot name: the tasks' own."""
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    handler, root = QueueHandler(records), logging.getLogger("prefect_augment")
    thread = threading.get_ident()
    handler.addFilter(lambda record: record.thread == thread)  # a worker of Dask has several
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        function, args, kwargs = cloudpickle.loads(packed)
        done: bytes = cloudpickle.dumps(function(*args, **kwargs))
    finally:
        root.removeHandler(handler)
    return done, [records.get() for _ in range(records.qsize())]


# --- what workers see ---------------------------------------------------------------------------


def check_address(compute: Compute, destination: Destination) -> None:
    """Refuse a folder of this machine as the destination of workers on others, before anything is started."""
    uri = destination.uri
    if not is_here(compute.address) and ("://" not in uri or uri.startswith(("file:", "local:"))):
        raise ParameterError(
            f"destination {uri} is a folder of {socket.gethostname()}, and the workers at compute.address "
            f"{compute.address} are on other machines; give a destination in an object store, such as "
            "s3://bucket/folder, or leave compute.address empty."
        )


def check_workers(look: Callable[[], str]) -> None:
    """Raise StorageError if any worker says that something is missing, and name it.

    ``look`` returns what a worker lacks, in words; empty if nothing.
    """
    opened = engine()
    if opened is None:
        return
    for address, lacks in opened.everywhere(_unpacked_call, cloudpickle.dumps(look)).items():
        if isinstance(lacks, BaseException):
            lacks = f"it cannot run a task of prefect-augment ({type(lacks).__name__}: {lacks})"
        if lacks:
            raise StorageError(f"the worker at {address} cannot do its part: {lacks}")


def _unpacked_call(packed: bytes) -> str:
    lacks: str = cloudpickle.loads(packed)()
    return lacks


def is_here(address: str) -> bool:
    """Whether a cluster's address names this machine.

    >>> is_here("tcp://127.0.0.1:8786"), is_here("auto")
    (True, True)
    """
    if address in ("", "auto", "local"):
        return True
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    try:
        places = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, protocol, _, place in places:
        try:  # an address of another machine cannot be bound
            with socket.socket(family, kind, protocol) as trial:
                trial.bind(place)
                return True
        except OSError:
            continue
    return False
