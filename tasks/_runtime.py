"""What a Prefect run adds to the plain functions: tasks, their log, blocks and the state at the end.

Everything also works outside a run, so that ``task.fn`` is a plain
function call in a notebook or under another orchestrator.
"""

import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import copy_context
from copy import copy
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, cast
from uuid import uuid4

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import with_context
from prefect.logging.handlers import APILogHandler
from prefect.states import Completed
from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_attempt,
    wait_chain,
    wait_fixed,
)

from prefect_augment.catalogue.openlineage import is_traced, record_outcome
from prefect_augment.errors import AugmentError, LostRankError, ParameterError, TransientError
from prefect_augment.params import Destination, Publish, Source
from prefect_augment.report.run_summary import outcome_sentence, run_page
from prefect_augment.schema import DatasetRef, RunResult
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Store, keep_apart, open_store, read_manifest, with_workspace
from prefect_augment.storage.workspace import POINTER
from prefect_augment.tasks._blocks import storage_options
from prefect_augment.tasks._display import (
    LentBar,
    artifact_key,
    borrowed_bar,
    dataset_slug,
    in_run,
    lend_bar,
    markdown_artifact,
    progress,
)
from prefect_augment.tasks._engines import Engine, again_if_lost, check_workers, engine, plain_call

P = ParamSpec("P")
T = TypeVar("T")

LOGGER = "prefect_augment"
RETRY_SECONDS = (2, 10, 30)  # before each further try
MAX_LISTED = 10  # classes in the name of a task


# What may pass on another try, which goes on from what is staged.
RETRIED = (TransientError, LostRankError)


def _may_pass(task: Task[Any, Any], task_run: Any, state: State[Any]) -> bool:
    """Retry what may pass only."""
    return isinstance(state.result(raise_on_failure=False), RETRIED)


# Receipts in the destination are the only memory of a run, so Prefect keeps no results.
TASK_OPTIONS: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": len(RETRY_SECONDS),
    "retry_delay_seconds": list(RETRY_SECONDS),
    "retry_condition_fn": _may_pass,
}
# The same outside a run, where there is no Prefect to do so.
_patiently = Retrying(
    retry=retry_if_exception_type(RETRIED),
    wait=wait_chain(*map(wait_fixed, RETRY_SECONDS)),
    stop=stop_after_attempt(1 + len(RETRY_SECONDS)),
    before_sleep=before_sleep_log(logging.getLogger(LOGGER), logging.WARNING),
    reraise=True,
)


def run(task: Task[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a task as a task inside a flow run, and as its plain function elsewhere; on the run's engine."""
    opened = engine()
    if opened is None:
        return task(*args, **kwargs) if in_run() else _patiently(task.fn, *args, **kwargs)
    with lend_bar() as lent:
        return _run_on(opened, task, lent, *args, **kwargs)


def _run_on(
    opened: Engine, task: Task[P, T], lent: LentBar | None, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run a task on a worker, which moves the run's bar where that is lent to it."""

    def call() -> T:
        done: T
        if in_run():
            done = _for_worker(task, lent).submit(*args, **kwargs).result()
        else:
            done = plain_call(opened, _patiently, task.fn, *args, **kwargs)
        return done

    return again_if_lost(opened, task.name, call)


def _for_worker(task: Task[P, T], lent: LentBar | None) -> Task[P, T]:
    """The task as a worker runs it: with the run's bar, and its log lines sent before it ends."""
    fn = task.fn

    @wraps(fn)
    def on_worker(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with borrowed_bar(lent):
                return fn(*args, **kwargs)
        finally:
            APILogHandler().flush()  # a local cluster ends its workers with the run

    sent = copy(task)
    sent.fn = on_worker
    return sent


@dataclass(frozen=True)
class Call(Generic[T]):
    """A task with its arguments, to be run by :func:`run_each`."""

    task: Task[..., T]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call(task: Task[P, T], *args: P.args, **kwargs: P.kwargs) -> Call[T]:
    """Return a call of a task that is made later; a type checker sees its arguments."""
    return Call(task, args, kwargs)


def run_each(calls: Sequence[Call[T]], *, workers: int, step: str) -> list[T]:
    """Make the calls, at most ``workers`` at the same time; return their results in order.

    ``step`` is what the progress bar calls them. Each waits in a thread of its own, wherever it works. Strategies
    come simplest first, so several workers begin with the last: a long one at the end would leave the others idle.
    """
    if not calls:
        return []
    opened = engine()
    with progress(step) as report, ThreadPoolExecutor(workers) as pool:
        pending: list[Future[T]] = []
        for one in calls if workers == 1 else calls[::-1]:
            make = run if opened is None else partial(_run_on, opened)
            args = (one.task, *one.args) if opened is None else (one.task, None, *one.args)
            pending.append(pool.submit(copy_context().run, partial(make, *args, **one.kwargs)))
        try:
            for i, done in enumerate(as_completed(pending), 1):
                done.result()
                report(i / len(calls), f"{i} of {len(calls)}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what waits is not started
            raise
        return [one.result() for one in (pending if workers == 1 else pending[::-1])]


# --- log ----------------------------------------------------------------------------------------


_log_lock = threading.Lock()
_log_users = 0


@contextmanager
def run_log() -> Iterator[None]:
    """Send the package's log lines to the run's page; Prefect shows only its own loggers.

    Tasks of one process run in threads and share one logger, so the handler is counted: the first user
    attaches it, the last one removes it. At the end unused memory goes back to the system.
    """
    if not in_run():
        yield
        return
    _use_system_memory()
    logger = logging.getLogger(LOGGER)
    _change_log_users(logger, +1)
    try:
        yield
    finally:
        _change_log_users(logger, -1)
        _give_memory_back()


def _use_system_memory() -> None:
    """Let Arrow allocate from the C library: its own pool keeps 50 MB and more per thread after use.

    A pool chosen in the environment stays.
    """
    if "pyarrow" in sys.modules and "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        import pyarrow as pa

        pa.set_memory_pool(pa.system_memory_pool())


def _give_memory_back() -> None:
    """Return unused memory to the system: 100 MB and more after reading images."""
    if "pyarrow" in sys.modules:  # else nothing was read, and the flow's form does without it
        from prefect_augment.storage.spill import give_back

        give_back()


def _change_log_users(logger: logging.Logger, change: int) -> None:
    global _log_users
    with _log_lock:
        _log_users += change
        attached = [h for h in logger.handlers if isinstance(h, APILogHandler)]
        if _log_users and not attached:
            logger.addHandler(APILogHandler())
            if not logger.isEnabledFor(logging.INFO):
                logger.setLevel(logging.INFO)
        elif not _log_users:
            for handler in attached:
                logger.removeHandler(handler)


def step(run_name: str | Callable[[dict[str, Any]], str]) -> Callable[[Callable[P, T]], Task[P, T]]:
    """Return a decorator that makes a task of a function, whose name and log lines the task shows.

    ``run_name`` is Prefect's template, or makes the name of a task run of its parameters.
    """

    def decorate(fn: Callable[P, T]) -> Task[P, T]:
        @wraps(fn)
        def logged(*args: P.args, **kwargs: P.kwargs) -> T:
            with run_log():
                return fn(*args, **kwargs)

        name = run_name if isinstance(run_name, str) else _named(run_name)
        return Task(logged, name=fn.__name__, task_run_name=name, **TASK_OPTIONS)

    return decorate


def _named(text: Callable[[dict[str, Any]], str]) -> Callable[..., str]:
    """Return a function that names a task run by its parameters, in one line of at most 120 characters.

    Unexpected parameters are no error here: the task itself raises it.
    """

    def name(*, parameters: dict[str, Any]) -> str:
        try:
            line = " ".join(text(parameters).split())
        except (AttributeError, KeyError, TypeError, ValueError):
            return "with unexpected parameters"
        return line if len(line) <= 120 else f"{line[:119]}…"

    return name


def class_list(counts: Mapping[str, int]) -> str:
    """Return classes with their numbers of records, the largest first; the rest beyond ten is one number.

    Examples
    --------
    >>> class_list({"lost": 2, "cracked": 1400, "ok": 0})
    'cracked (1,400), lost (2)'
    """
    ordered = sorted(((name, n) for name, n in counts.items() if n), key=lambda item: -item[1])
    listed = [f"{name} ({n:,})" for name, n in ordered[:MAX_LISTED]]
    if rest := ordered[MAX_LISTED:]:
        listed.append(f"{len(rest):,} more classes ({sum(n for _, n in rest):,})")
    return ", ".join(listed) or "no class"


def conclude(result: RunResult, dataset: DatasetRef) -> RunResult:
    """Finish a run: write the summary on its page and its outcome into its state."""
    sentence = outcome_sentence(result, dataset.root)
    if not (in_run() or is_traced()):
        return result
    store = open_root(dataset)
    manifest = None if result.version is None else read_manifest(store, result.version)
    if is_traced():
        record_outcome(load_info(dataset, store), manifest)
    if not in_run():
        return result
    key = artifact_key("answer", dataset_slug(dataset.root))
    markdown_artifact(key, run_page(result, dataset.root, manifest), sentence)
    return finish(result, sentence)


def finish(result: T, sentence: str) -> T:
    """Return a flow's result with a sentence for the run's state.

    Inside a run this is a state that holds the result; Prefect unpacks it for the flow's caller. The
    state's name stays Completed, because automations wait for that name.
    """
    if not in_run():
        return result
    logging.getLogger(LOGGER).info("%s", sentence)
    return cast("T", Completed(message=sentence, data=result))


# --- storage ----------------------------------------------------------------------------------


def open_destination(destination: Destination) -> Store:
    """Open the destination's root."""
    return open_block_store(destination.uri, destination.storage_block)


def prepare_destination(destination: Destination, publish: Publish) -> None:
    """Give a destination for synthetic records alone its workspace, before anything is written."""
    only_synthetic = set(publish.origins) == {"synthetic"}
    store = open_store(destination.uri, options=storage_options(destination.storage_block))
    if only_synthetic or destination.workspace or store.exists(POINTER):
        keep_apart(store, destination.workspace, only_synthetic=only_synthetic)


def open_root(dataset: DatasetRef) -> Store:
    """Open the root that a dataset lies under."""
    return open_block_store(dataset.root, dataset.block)


def open_block_store(uri: str, block: str) -> Store:
    """Open ``uri`` with the credentials of ``block``, or with the environment's where there is none."""
    return with_workspace(open_store(uri, options=storage_options(block)))


def check_shared(destination: Destination, source: Source) -> None:
    """Raise where a worker of the run's engine does not see the destination, its workspace or a local source.

    Call it in a run's first seconds, once the destination has its workspace.
    """
    if engine() is None:
        return
    uris = (destination.uri, destination.workspace, source.uri, source.holdout_uri)
    for uri in uris:
        if uri.startswith("memory:"):
            raise ParameterError(
                f"{uri} lies in the memory of the flow's own process, which no worker sees; give a folder or a URL, "
                "or set compute.engine to 'threads'."
            )
    token = f"_staging/.seen-{uuid4().hex}"
    store = open_destination(destination)
    store.put(token, b"")
    try:
        look = partial(_lacks, destination, source, token)
        check_workers(with_context(look) if in_run() else look)
    finally:
        store.delete(token)


def _lacks(destination: Destination, source: Source, token: str) -> str:
    """What the machine that this runs on does not see, and what to do; empty if it sees all."""
    host = socket.gethostname()
    todo = "Give a folder that all machines share, at the same path, or an object store such as s3://bucket/folder."
    try:
        seen = open_destination(destination).exists(token)
        why = "what the flow wrote there is not there"
    except AugmentError as exc:
        seen, why = False, str(exc)
    if not seen:
        workspace = f" or its workspace {destination.workspace}" if destination.workspace else ""
        return f"{host} does not see the destination {destination.uri}{workspace}: {why}. {todo}"
    for uri in filter(None, (source.uri, source.holdout_uri)):
        folder = re.split(r"[*?[#]", uri)[0]
        if "://" not in uri and not Path(folder).expanduser().exists():
            return f"{host} does not see the source {uri}. {todo}"
    return ""
