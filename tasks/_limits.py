"""What runs share and wait for: GPUs, destinations, and a limit of restarts after crashes.

All of it needs a server that other runs use too, so it does nothing outside a run, nor where Prefect
starts an API for one process alone.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import State, StateType
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL

from prefect_augment.errors import CrashedTooOftenError
from prefect_augment.tasks._display import artifact_key, dataset_slug, in_run

logger = logging.getLogger(__name__)

# The limit's name, and the tag of runs that always take a slot of it.
GPU = "gpu"
# A process killed with -9 loses its slots when it has not renewed them for this long.
LEASE_SECONDS = 60
# Between two log lines of a run that waits.
SAY_AGAIN_SECONDS = 300
MAX_CRASHES = 3

_held: ContextVar[frozenset[str]] = ContextVar("held destinations", default=frozenset())


def has_server() -> bool:
    """Whether this is a run at a server that other runs know too."""
    return in_run() and bool(PREFECT_API_URL.value())


@contextmanager
def gpu_slot(device: str = "auto", *, network: bool = True, n: int = 1) -> Iterator[None]:
    """Hold a slot of the limit ``gpu`` while the block computes; ``network`` is False where no GPU is used.

    A network that is trained on ``n`` GPUs holds as many slots, or all that there are.
    A run with the tag ``gpu`` always takes a slot: for models of other packages, or to run one after
    the other on a machine that shows no GPU. The limit is created with a slot per GPU seen here;
    ``prefect gcl update gpu --limit N`` changes it.
    """
    if not (has_server() and (GPU in _tags() or (network and _n_gpus(device) > 0))):
        yield
        return
    n_gpus = max(1, _n_gpus(device))
    with _turn(GPU, n_gpus, "a GPU", strict=True, n=min(n, n_gpus) if network else 1):
        yield


@contextmanager
def destination_lease(uri: str) -> Iterator[None]:
    """Hold a destination while a run works towards a version of it; another run waits.

    Two runs that publish to one place do no harm, but one may have to start again. A subflow of a flow
    that holds the destination does not wait.
    """
    name = destination_limit(uri)
    if not has_server() or name in _held.get():
        yield
        return
    token = _held.set(_held.get() | {name})
    try:
        # A lost lease is no reason to stop: what is committed is checked again anyway.
        with _turn(name, 1, uri, strict=False):
            yield
    finally:
        _held.reset(token)


def destination_limit(uri: str) -> str:
    """Return the name of a destination's limit: readable, and the same for every way to write it.

    >>> destination_limit("s3://Lake/Defects/") == destination_limit("s3://Lake/Defects")
    True
    """
    # A local path is resolved; a URL only loses its last slash.
    whole = uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().resolve())
    whole = whole.removeprefix("file://")
    digest = hashlib.sha256(whole.encode()).hexdigest()[:12]
    return artifact_key("destination", dataset_slug(whole), digest)


@contextmanager
def _turn(name: str, limit: int, what: str, *, strict: bool, n: int = 1) -> Iterator[None]:
    """Wait for slots of a limit, created if missing, and hold them."""
    n = min(n, _make_limit(name, limit))  # more than there are would never be free
    with ExitStack() as stack:
        patience = 1.0  # short at first, so that a waiting run logs it at once
        while True:
            try:
                stack.enter_context(
                    concurrency(
                        name,
                        occupy=max(1, n),
                        timeout_seconds=patience,
                        lease_duration=LEASE_SECONDS,
                        strict=True,  # without it a missing limit is no limit
                        raise_on_lease_renewal_failure=strict,
                    )
                )
                break
            except TimeoutError:
                # The server may just be slow, so the message does not mention another run.
                logger.info("Waiting for %s (limit %r): it is not free yet.", what, name)
                patience = SAY_AGAIN_SECONDS
        logger.info("Holding %s (limit %r).", what, name)
        yield
    logger.info("Gave %s back.", what)


def _make_limit(name: str, limit: int) -> int:
    """Number of slots of a limit, created if missing."""
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(name).limit
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # another run was quicker
                client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=name, limit=limit)
                )
    return limit


def _tags() -> set[str]:
    tags: set[str] = set()
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if flow is not None and flow.flow_run is not None:
        tags |= set(flow.flow_run.tags)
    if task is not None:
        tags |= set(task.task_run.tags)
    return tags


def _n_gpus(device: str) -> int:
    """Return the number of GPUs visible to a network on this device; imports torch only where needed."""
    if device == "cpu":
        return 0
    try:
        import torch
    except ImportError:
        return 0
    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def check_crashes() -> None:
    """Raise CrashedTooOftenError after ``MAX_CRASHES`` crashes in a row; call it in a run's first second.

    An automation (deployments/automations.py) schedules crashed runs again, and a run that dies of too
    little memory would never end. The run then counts as failed; a retry by hand starts a new count.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    if run is None or run.deployment_id is None or not has_server():
        return
    with get_client(sync_client=True) as client:
        crashes = crashes_in_a_row(client.read_flow_run_states(run.id))
    if len(crashes) >= MAX_CRASHES:
        last = " ".join((crashes[-1].message or "no message").split()).rstrip(".")
        raise CrashedTooOftenError(
            f"this run crashed {len(crashes)} times in a row and is not started again by itself; the last time: "
            f"{last}. Look at the worker's log and memory, then retry the run: it goes on from what is "
            "staged. If it was out of memory, give the work pool more, or lower budget.batch_size.",
            n_crashes=len(crashes),
        )
    if crashes:
        logger.warning(
            "This run crashed and was started again, for the %s time; it goes on from what is staged.",
            ("first", "second", "third")[min(len(crashes), 3) - 1],
        )


def crashes_in_a_row(states: Sequence[State]) -> list[State]:
    """Return the crashes since the run last ended in any other way, oldest first."""
    ended = (StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.PAUSED)
    crashes: list[State] = []
    for state in sorted(states, key=lambda s: s.timestamp, reverse=True):
        if state.type in ended:
            break
        if state.type == StateType.CRASHED:
            crashes.append(state)
    return crashes[::-1]
