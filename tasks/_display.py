"""What people see of a run while it works: one progress bar for all of it, and artifacts on its page.

Outside a Prefect run there are no artifacts, and the bar moves only for who listens, such as the command line.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import PrefectException

from prefect_augment.text import duration

Progress = Callable[[float, str], None]

# Steps of `rebalance` in their order, and about how much of its time each takes.
STEPS = {
    "ingest": 4,
    "first comparison": 6,
    "compare models": 10,
    "train": 15,
    "sample": 4,
    "filter": 8,
    "try settings": 27,
    "score the best settings": 12,
    "score with further seeds": 6,
    "confirm on the hold-out": 6,
    "write the report": 2,
    "augment": 2,
    "publish": 2,
}
BEAT_SECONDS = 3.0  # between two signs of life, of which a busy machine delays some
LEFT_FROM = 0.1  # share of the work from which the time left is told


def in_run() -> bool:
    """Whether this code runs inside a Prefect flow or task run."""
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


class _Bar:
    """The bar of one run: the step at work, since when the run works, and how long it may still take."""

    artifact: UUID | None = None
    is_lent = False

    def __init__(
        self, steps: Sequence[str], show: Progress, *, done: float = 0.0, seconds: float = 0.0
    ) -> None:
        self.steps = tuple(steps)
        ends = list(accumulate(STEPS.get(step, 10) for step in steps))
        starts = [0, *ends]
        self._span = {s: (starts[i] / ends[-1], ends[i] / ends[-1]) for i, s in enumerate(steps)}
        self._show = show
        self._started = time.monotonic() - seconds
        self.done = done
        self._text = "starting"
        self._stop = threading.Event()
        self._shown = threading.Lock()

    @property
    def seconds(self) -> float:
        """Since the run started."""
        return time.monotonic() - self._started

    def move(self, step: str, fraction: float, text: str) -> None:
        """Go to a place in a step; a bar never goes back."""
        low, high = self._span.get(step, (self.done, self.done))
        self.done = max(self.done, low + (high - low) * min(1.0, fraction))
        changed = self._text.partition(":")[0] != step
        self._text = f"{step}: {text}" if text else step
        if changed:  # a new step is shown at once, the rest with the next beat
            self.show()

    def show(self) -> None:
        """Show the state; nothing is waited for where another thread does so."""
        if not self._shown.acquire(blocking=False):
            return
        try:
            seconds = self.seconds
            line = f"{self._text} · {duration(seconds)} so far"
            if self.done >= LEFT_FROM:
                left = seconds * (1.0 - self.done) / self.done
                line += f", about {duration(left)} left"
            self._show(self.done, line)
        finally:
            self._shown.release()

    def beat(self) -> None:
        """Show the state every few seconds until the run ends."""
        while not self._stop.wait(BEAT_SECONDS):
            self.show()

    def stop(self) -> None:
        """Show nothing more by itself."""
        self._stop.set()

    def end(self, text: str) -> None:
        """Show the last state."""
        self.stop()
        with self._shown:
            self._show(self.done, f"{text} after {duration(self.seconds)}")


_bar: ContextVar[_Bar | None] = ContextVar("the run's progress bar", default=None)
_listener: ContextVar[Progress | None] = ContextVar("who else is told", default=None)


@contextmanager
def listening(listener: Progress) -> Iterator[None]:
    """Tell ``listener`` the share that is done, in [0, 1], and a line of text every few seconds of a run."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def run_progress(uri: str, steps: Sequence[str] = tuple(STEPS)) -> Iterator[None]:
    """Show one bar for a run of these ``steps``; one inside another run's bar moves that one."""
    listener, artifact = _listener.get(), None
    if _bar.get() is not None or not (listener or in_run()):
        yield
        return
    if in_run():
        # Typed as if it might be a coroutine; called from synchronous code it is not.
        key = artifact_key("progress", dataset_slug(uri))
        artifact = cast("UUID", create_progress_artifact(0.0, key=key, description="starting"))

    def show(done: float, text: str) -> None:
        if artifact is not None and not bar.is_lent:
            _update(artifact, done, text)
        if listener is not None:
            listener(done, text)

    bar = _Bar(steps, show)
    bar.artifact = artifact
    ended = "stopped"
    try:
        with _beating(bar):
            yield
        bar.move(steps[-1], 1.0, "")
        ended = "done"
    finally:
        bar.end(ended)


@contextmanager
def _beating(bar: _Bar) -> Iterator[None]:
    """Make this the run's bar while the block works, and show it every few seconds."""
    token = _bar.set(bar)
    threading.Thread(target=copy_context().run, args=(bar.beat,), daemon=True).start()
    try:
        yield
    finally:
        bar.stop()
        _bar.reset(token)


@dataclass(frozen=True)
class LentBar:
    """The run's bar as it is sent to a worker, which alone moves it for the time of a task."""

    artifact: UUID
    steps: tuple[str, ...]
    done: float
    seconds: float  # since the run started


@contextmanager
def lend_bar() -> Iterator[LentBar | None]:
    """Yield the run's bar for a worker; None where it has no artifact, which workers could reach."""
    bar = _bar.get()
    if bar is None or bar.artifact is None:
        yield None
        return
    bar.is_lent = True
    try:
        yield LentBar(bar.artifact, bar.steps, bar.done, bar.seconds)
    finally:
        bar.is_lent = False


@contextmanager
def borrowed_bar(lent: LentBar | None) -> Iterator[None]:
    """Move the run's bar from a worker."""
    if lent is None:
        yield
        return
    artifact = lent.artifact
    bar = _Bar(
        lent.steps,
        lambda done, text: _update(artifact, done, text),
        done=lent.done,
        seconds=lent.seconds,
    )
    with _beating(bar):
        yield


@contextmanager
def progress(step: str, uri: str = "") -> Iterator[Progress]:
    """Yield a callback ``(fraction in [0, 1], text)`` that moves the run's bar through a step.

    A task in a flow of somebody else's has a bar of its own, named after the dataset at ``uri``.
    """
    with run_progress(uri, (step,)) if uri else nullcontext():
        bar = _bar.get()

        def move(fraction: float, text: str) -> None:
            if bar is not None:
                bar.move(step, fraction, text)

        move(0.0, "")
        yield move


def _update(artifact: UUID, done: float, text: str) -> None:
    try:
        update_progress_artifact(artifact, min(100.0, 100.0 * done), description=text)
    except (httpx.HTTPError, PrefectException, OSError, RuntimeError) as exc:
        # A server that restarts must not end hours of training.
        logging.getLogger("prefect_augment").debug("The progress bar could not be moved: %s", exc)


def artifact_key(*words: str) -> str:
    """Return a key of lower-case letters, digits and dashes, the only ones that Prefect takes.

    >>> artifact_key("Plan", "s3://Lake/Defects_2026/")
    'plan-s3-lake-defects-2026'
    """
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:120]


def dataset_slug(uri: str) -> str:
    """The last two segments of a location: enough to tell one dataset's artifacts from another's.

    >>> dataset_slug("s3://lake/2026/shop.db#orders")
    '2026-shop.db-orders'
    >>> dataset_slug("shop.db#SELECT * FROM orders WHERE price > 0")
    'shop.db'
    """
    base, _, part = uri.partition("#")
    segments = [segment for segment in re.split(r"[/:]+", base) if segment][-2:]
    return "-".join([*segments, part] if re.fullmatch(r"[\w.-]+", part) else segments)


def table_artifact(key: str, rows: Iterable[dict[str, Any]], description: str) -> None:
    """Show a table on the run's page."""
    if in_run():
        create_table_artifact(list(rows), key=key, description=description)


def markdown_artifact(key: str, markdown: str, description: str) -> None:
    """Show a page on the run's page."""
    if in_run():
        create_markdown_artifact(markdown, key=key, description=description)
