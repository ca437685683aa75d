"""How a run ends that is told to stop: within seconds, and with one line.

Python tells its main thread of a signal when that comes back from C code, and Prefect waits for the tasks of
its threads. Both may take minutes, so a thread of its own hears of the signal at once, says what it means for
the user and ends the process where it has not ended by itself. What is cut off there is what a kill cuts off:
nothing incomplete is visible, and a rerun goes on.
"""

import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn
from uuid import UUID

#: What is left to a run to end by itself: to delete its temporary files, and to report its state.
GRACE_SECONDS = 6.0
LAST_SECONDS = 2.0
MESSAGE = "interrupted: nothing incomplete was published; run the same command again to continue."
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_watched = _is_reported = False
_heard = 0
_flow_run: UUID | None = None
_saying = threading.Lock()


@contextmanager
def stoppable(flow_run: UUID | None = None, *, command: bool = False) -> Iterator[None]:
    """End this process within ten seconds after SIGINT or SIGTERM, with one line, while the block runs.

    The signal raises KeyboardInterrupt as ever, or what Prefect raises. ``flow_run`` is told that it crashed
    where the process has to be ended before Prefect could. Does nothing where the signals are somebody else's:
    in a notebook, another thread, or under handlers of the user's own. ``command`` is True for the command line,
    which has SIGTERM raise KeyboardInterrupt too.
    """
    global _flow_run
    with ExitStack() as stack:
        if not _watched and _is_ours():
            stack.enter_context(_watch(command=command))
        _flow_run = flow_run or _flow_run
        try:
            yield
        except BaseException as exc:
            # The second is Prefect's, which is slow to import.
            interrupted = (
                isinstance(exc, KeyboardInterrupt) or type(exc).__name__ == "TerminationSignal"
            )
            if interrupted and _watched:
                say_interrupted()
            raise


@contextmanager
def stoppable_run() -> Iterator[None]:
    """The same for the flow run that this is, unless a worker started it, which ends its runs itself."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    mine = run.id if run is not None and run.deployment_id is None else None
    with stoppable(mine) if mine else ExitStack():
        yield


@contextmanager
def _watch(*, command: bool) -> Iterator[None]:
    """Have a thread hear of signals while the block runs."""
    global _watched
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    terminate = signal.signal(signal.SIGTERM, _interrupt) if command else None
    _watched = True
    threading.Thread(target=_end_after_signal, args=(read,), daemon=True).start()
    try:
        yield
    finally:
        _watched = False
        signal.set_wakeup_fd(before)
        if command:
            signal.signal(signal.SIGTERM, terminate)
        os.close(write)  # ends the thread, unless a signal came


def _is_ours() -> bool:
    main = sys.modules.get("__main__")
    return (
        os.name == "posix"
        and threading.current_thread() is threading.main_thread()
        # A shell has it ignored in what it runs in the background.
        and signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)
        and hasattr(main, "__file__")
        and not sys.flags.interactive
    )


def say_interrupted() -> None:
    """Say once, on stderr, that nothing is lost; what is logged or raised by the end is not shown."""
    global _is_reported
    with _saying:
        if _is_reported:
            return
        _is_reported = True
        logging.disable(logging.CRITICAL)
        sys.excepthook = _say_nothing_of_interrupts
        sys.stderr.write(f"{MESSAGE}\n")
        sys.stderr.flush()


def exit_code() -> int:
    """What a process ends with that was told to stop: 128 and the signal's number."""
    return 128 + (_heard or signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    global _heard
    _heard = number
    raise KeyboardInterrupt


def _end_after_signal(read: int) -> None:
    """Wait for a signal; then give the process its seconds, and end it."""
    number = 0
    while number not in SIGNALS:
        heard = os.read(read, 1)
        if not heard:  # the block ended before any signal
            os.close(read)
            return
        number = heard[0]
    say_interrupted()
    time.sleep(GRACE_SECONDS)
    last = threading.Thread(target=_leave_nothing_behind, daemon=True)
    last.start()
    last.join(LAST_SECONDS)
    os._exit(128 + number)


def _say_nothing_of_interrupts(kind: type[BaseException], exc: BaseException, trace: Any) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, exc, trace)


def _leave_nothing_behind() -> None:
    """Delete temporary folders, as the exit of a process does, and report the run's end."""
    with suppress(Exception):
        weakref.finalize._exitfunc()  # type: ignore[attr-defined]
        if _flow_run is not None:
            _report_crash(_flow_run)


def _report_crash(flow_run: UUID) -> None:
    """Tell the server that the run ended; without one nobody asks."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import State
    from prefect.settings import PREFECT_API_URL
    from prefect.states import Crashed

    if PREFECT_API_URL.value():
        with get_client(sync_client=True) as client:
            state: State[Any] = Crashed(message="The process was told to stop.")
            client.set_flow_run_state(flow_run, state, force=True)


def _leave_signals_to_the_parent() -> None:
    signal.set_wakeup_fd(-1)


if os.name == "posix":
    # A forked child has the pipe too, and its signals are not the run's.
    os.register_at_fork(after_in_child=_leave_signals_to_the_parent)
