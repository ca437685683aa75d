"""Where networks compute: device, precision and threads, chosen once and written down.

The choice changes bits, so a run keeps it (:class:`.budget.Calibration`) and reruns obey it.

torch.compile with a way back: where it cannot be done, training goes on without.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from subprocess import SubprocessError
from typing import Literal

import torch
from torch import Tensor, nn

from prefect_augment.errors import ParameterError
from prefect_augment.nn.machine import cpu_multiplies_bf16

__all__ = ["Device", "choose_device", "compiled", "usable_cores"]

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Device:
    """Where and how a network computes.

    Parameters
    ----------
    name : str
        ``cpu`` or ``cuda``.
    precision : str
        ``bfloat16`` is autocast: weights, optimiser and losses stay in float32.
    threads : int
        Threads of one operation on the CPU; sums are split among them, so bits depend on it.
    """

    name: str = "cpu"
    precision: Precision = "float32"
    threads: int = 1

    @property
    def torch(self) -> torch.device:
        """The device as PyTorch names it."""
        return torch.device(self.name)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of forward passes."""
        return torch.autocast(self.name, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Set threads and repeatable kernels inside the block, and restore what was there."""
        cudnn = torch.backends.cudnn
        before = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
        torch.set_num_threads(self.threads)
        # The fastest kernel by a trial may be another one in the next run.
        cudnn.benchmark, cudnn.deterministic = False, True
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            cudnn.benchmark, cudnn.deterministic = before[1:]

    def synchronize(self) -> None:
        """Wait for the device, so that a clock reads what was computed."""
        if self.name == "cuda":
            torch.cuda.synchronize()


def choose_device(wish: str = "auto", *, threads: int = 0, precision: str = "") -> Device:
    """Return the device for a wish, with bf16 where the hardware multiplies it natively.

    Parameters
    ----------
    wish : str
        ``auto`` takes a GPU where there is one; ``cpu``; ``cuda``.
    threads : int
        On the CPU; 0 takes the cores that this process may use.
    precision : str
        ``float32`` or ``bfloat16``; empty lets the hardware decide.

    Raises
    ------
    ParameterError
        If a GPU is asked for and there is none.
    """
    if wish not in ("auto", "cpu", "cuda"):
        raise ParameterError(f"device {wish!r} is unknown; choose auto, cpu or cuda.")
    has_gpu = torch.cuda.is_available()
    if wish == "cuda" and not has_gpu:
        raise ParameterError(
            "device 'cuda' was asked for and PyTorch finds no GPU; choose device 'auto' or 'cpu', "
            "or install a PyTorch build for the GPU's driver."
        )
    name = "cuda" if has_gpu and wish != "cpu" else "cpu"
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if name == "cuda"
        else cpu_multiplies_bf16()
    )
    chosen: Precision = (
        "bfloat16" if (precision == "bfloat16" or (not precision and native)) else "float32"
    )
    return Device(name, chosen, threads or usable_cores())


def usable_cores() -> int:
    """Return the cores that this process may use: ``OMP_NUM_THREADS``, else those it is bound to."""
    wish = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wish.isdigit() and int(wish) > 0:
        return int(wish)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


logger = logging.getLogger(__name__)


def compiled(network: nn.Module, loss: Callable[[], Tensor], device: Device) -> bool:
    """Compile a network in place; return whether it is.

    The first step is tried at once: compilers fail late, for want of a C++ compiler, of Triton or of an
    operation that they know.

    Parameters
    ----------
    network : nn.Module
        Its weights and their names stay as they are.
    loss : callable
        Returns a loss of the network, to be differentiated.
    device : Device
        Where the network is.
    """
    network.compile()
    try:
        with device.settings(), device.autocast():
            loss().backward()
    # The compiler's own errors are RuntimeErrors; those of the programs that it calls are not.
    except (RuntimeError, ImportError, OSError, SubprocessError) as exc:
        network._compiled_call_impl = None
        logger.warning(
            "the network cannot be compiled here, and is trained as it is: %s",
            f"{type(exc).__name__}: {exc}".splitlines()[0],
        )
    network.zero_grad(set_to_none=True)
    return network._compiled_call_impl is not None
