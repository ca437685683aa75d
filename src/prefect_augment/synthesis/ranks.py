"""Fit a model in several processes of this machine, one per GPU; they exchange :mod:`.nn.ranks`.

The ranks get records and settings from the process that starts them, and tell it of progress and
checkpoints. So they open no storage and need no credentials. They are plain processes: a worker of
Dask is a daemon, which multiprocessing refuses to let start others.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from prefect_augment.errors import AugmentError, LostRankError, ParameterError
from prefect_augment.genmodels.base import FitContext, GenerativeModel, ImageData, TableData
from prefect_augment.params import Budget

_COMMAND = "import sys; from prefect_augment.synthesis.ranks import work; work(*sys.argv[1:])"
# Between a rank's word that another is silent, and that one's end.
CUT_OFF_SECONDS = 30


def check_devices(budget: Budget) -> None:
    """Refuse more ranks than there are GPUs."""
    # Imported here: it loads torch, which tables do without.
    import torch

    from prefect_augment.nn.devices import choose_device

    n = torch.cuda.device_count()
    if choose_device(budget.device).name == "cuda" and budget.devices > n:
        raise ParameterError(
            f"budget.devices is {budget.devices}, and this machine has {n} GPU{'s' * (n > 1)}; lower it, or set "
            "budget.device to 'cpu'."
        )


def fit_on_ranks(
    model: GenerativeModel, data: TableData | ImageData, ctx: FitContext, n_ranks: int
) -> GenerativeModel:
    """Return the model, fitted by several processes; ``model`` itself stays untrained.

    Reports and checkpoints reach ``ctx`` as from one process. On a CPU the ranks share its threads.
    Raises LostRankError if one of them ends early, and what one of them raises.
    """
    settings = {k: v for k, v in vars(ctx).items() if k not in ("report", "checkpoint")}
    settings["threads"] = max(1, ctx.threads // n_ranks)
    heard: dict[str, Callable[..., object]] = {
        "report": ctx.report,
        "log": lambda record: logging.getLogger(record.name).handle(record),
    }
    if ctx.checkpoint is not None:
        heard["checkpoint"] = ctx.checkpoint
    # Imported here: it loads torch, which tables do without.
    import torch

    torch.cuda.empty_cache()  # what the calibration took of the first GPU is the first rank's
    job = ForkingPickler.dumps((model, data, settings, ctx.checkpoint is not None))
    with (
        TemporaryDirectory(prefix="prefect-augment-") as folder,
        _started(n_ranks, f"{folder}/store") as ranks,
    ):
        for rank in ranks:
            with suppress(OSError):  # it has died, which is seen below
                rank.connection.send_bytes(job)
        del job
        config, arrays = _listen(ranks, heard)
    return type(model).from_state(config, arrays, device=ctx.device)


@dataclass(frozen=True)
class _Rank:
    """A rank, as seen by the process that started it."""

    name: str
    process: subprocess.Popen[bytes]
    connection: Connection


@contextmanager
def _started(n_ranks: int, store: str) -> Iterator[list[_Rank]]:
    """Start the ranks; end them with the block, however it ends."""
    # Their ports are for this machine alone.
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    # Modules are found as here: with the folder of a script, and without that of the process.
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    names = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback, "PYTHONPATH": path}
    ranks: list[_Rank] = []
    try:
        for i in range(n_ranks):
            ours, theirs = Pipe()
            with theirs:
                given = [str(i), str(n_ranks), store, str(theirs.fileno())]
                process = subprocess.Popen(  # noqa: S603 - this interpreter and our own words
                    [sys.executable, "-P", "-c", _COMMAND, *given],
                    env=os.environ | names,
                    pass_fds=[theirs.fileno()],
                )
            ranks.append(_Rank(f"rank {i} of {n_ranks}", process, ours))
        yield ranks
    finally:
        for rank in ranks:
            rank.process.kill()
        for rank in ranks:
            rank.process.wait()
            rank.connection.close()


def _listen(ranks: list[_Rank], heard: dict[str, Callable[..., object]]) -> Any:
    """Pass on what the ranks tell until the first is done; return its model's state."""
    talking = {rank.connection: rank for rank in ranks}
    silence = ""  # how a rank noticed that another is gone
    while ready := wait(list(talking), timeout=CUT_OFF_SECONDS if silence else None):
        for connection in ready:
            assert isinstance(connection, Connection)
            try:
                name, content = connection.recv()
            except (EOFError, OSError) as exc:
                raise _lost(talking[connection]) from exc
            if name == "done":
                return content
            if name == "failed":
                raise content
            if name == "cut off":
                silence = content
                del talking[connection]
            else:
                heard[name](*content)
    raise LostRankError(
        f"the {len(ranks)} processes that train together lost touch with one another: {silence}; run again: training "
        "resumes from the last checkpoint."
    )


def _lost(rank: _Rank) -> LostRankError:
    status = rank.process.wait()
    end = f"signal {-status}" if status < 0 else f"exit status {status}"
    return LostRankError(
        f"{rank.name} was lost ({end}) while training; run again: training resumes from the last checkpoint. If memory "
        "ran out, lower budget.devices or budget.batch_size.",
        rank=rank.name,
        status=status,
    )


# --- in a rank ----------------------------------------------------------------------------------


def work(rank: str, n_ranks: str, store: str, descriptor: str) -> None:
    """Train as one of several ranks; the last thing that this process does."""
    connection = Connection(int(descriptor))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that started this one
    is_first = rank == "0"
    model, data, settings, checkpoints = connection.recv()
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()

    def tell(name: str, *content: Any) -> None:
        connection.send((name, content))

    # A queue whose records are told at once.
    handler = QueueHandler(SimpleNamespace(put_nowait=partial(tell, "log")))
    logger = logging.getLogger("prefect_augment")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if is_first else logging.WARNING)
    # Imported here: the process that starts the ranks does without torch.
    from prefect_augment.nn.devices import choose_device
    from prefect_augment.nn.ranks import CutOffError, join

    try:
        join(int(rank), int(n_ranks), store, choose_device(settings["device"]).name)
        if is_first:
            settings["report"] = lambda step, scalars: tell("report", step, dict(scalars))
            if checkpoints:
                settings["checkpoint"] = lambda state: tell("checkpoint", state)
        model.fit(data, FitContext(**settings))
        if is_first:
            connection.send(("done", model.state()))
    except CutOffError as exc:
        connection.send(("cut off", str(exc)))
    except AugmentError as exc:
        connection.send(("failed", exc))
    except Exception:  # noqa: BLE001 - whatever it is, the process that waits has to know
        failed = RuntimeError(f"rank {rank} of {n_ranks} failed:\n{traceback.format_exc()}")
        connection.send(("failed", failed))
    # The others may still talk to this process; it ends with the one that started it, or by that.
    threading.Event().wait()


def _end_with(connection: Connection) -> None:
    """End this process when the one that started it does, even by a kill."""
    with suppress(EOFError, OSError):
        connection.recv()
    os._exit(1)
