"""What a Prefect run adds to the plain functions: tasks, their log, blocks and the state at the end.

Everything also works outside a run, so that ``task.fn`` is a plain
function call in a notebook or under another orchestrator.
"""

import logging
import math
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from copy import copy
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast
from uuid import uuid4

import pyarrow as pa
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
from prefect_augment.storage.spill import give_back
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
from prefect_augment.tasks._engines import again_if_lost, check_workers, engine, plain_call

P = ParamSpec("P")
T = TypeVar("T")

LOGGER = "prefect_augment"
RETRY_SECONDS = (2, 10, 30)  # before each further try


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
    with lend_bar() if engine() else nullcontext() as lent:
        return _run(task, lent, *args, **kwargs)


def _run(task: Task[P, T], lent: LentBar | None, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a task, where there is an engine on a worker, which moves the run's bar if that is lent to it."""
    opened = engine()
    if opened is None:
        return task(*args, **kwargs) if in_run() else _patiently(task.fn, *args, **kwargs)

    def on_worker() -> T:
        done: T
        if in_run():
            done = _for_worker(task, lent).submit(*args, **kwargs).result()
        else:
            done = plain_call(opened, _patiently, task.fn, *args, **kwargs)
        return done

    return again_if_lost(opened, task.name, on_worker)


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


def call(task: Task[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
    """Return a call of a task that is made later; a type checker sees its arguments."""
    return partial(_run, task, None, *args, **kwargs)


def run_each(calls: Sequence[Callable[[], T]], *, workers: int, step: str) -> list[T]:
    """Make the calls, at most ``workers`` at the same time; return their results in order.

    ``step`` is what the progress bar calls them. Each waits in a thread of its own, wherever it works. Strategies
    come simplest first, so several workers begin with the last: a long one at the end would leave the others idle.
    """
    if not calls:
        return []
    order = 1 if workers == 1 else -1
    with progress(step) as report, ThreadPoolExecutor(workers) as pool:
        pending = [pool.submit(copy_context().run, one) for one in calls[::order]]
        try:
            for i, done in enumerate(as_completed(pending), 1):
                done.result()
                report(i / len(calls), f"{i} of {len(calls)}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what waits is not started
            raise
        return [one.result() for one in pending[::order]]


def share(
    part: Callable[[int, int], Callable[[], int]], *, step: str, most: float = math.inf
) -> int:
    """Let the workers of the run's engine share a step, before the task that finds what they did.

    ``part`` returns the call of a part, of its number and that of all parts; ``most`` is how many there may be.
    Returns the sum of what the calls return; 0 without an engine, or with one worker.
    """
    opened = engine()
    n = 1 if opened is None else int(min(opened.n_workers, most))
    return sum(run_each([part(i, n) for i in range(n)], workers=n, step=step)) if n > 1 else 0


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
    # Arrow's own pool keeps 50 MB and more per thread after use. A pool chosen in the environment stays.
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        pa.set_memory_pool(pa.system_memory_pool())
    _change_log_users(+1)
    try:
        yield
    finally:
        _change_log_users(-1)
        give_back()  # 100 MB and more after reading images


def _change_log_users(change: int) -> None:
    global _log_users
    logger = logging.getLogger(LOGGER)
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
    for uri in (destination.uri, destination.workspace, source.uri, source.holdout_uri):
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
