"""Where networks compute: device, precision and threads; and torch.compile with a fallback.

The choice changes bits, so a run stores it (:class:`.budget.Calibration`) and reruns reuse it.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from subprocess import SubprocessError
from typing import Literal

import torch
from torch import Tensor, nn

from prefect_augment.errors import ParameterError
from prefect_augment.nn.machine import cpu_multiplies_bf16

Precision = Literal["float32", "bfloat16"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """Where and how a network computes."""

    name: str = "cpu"  # or "cuda"
    precision: Precision = "float32"  # bfloat16 is autocast; weights and losses stay float32
    threads: int = 1  # of one CPU operation; sums are split among them, so bits depend on it

    @property
    def torch(self) -> torch.device:
        """The device as PyTorch names it."""
        return torch.device(self.name)

    def autocast(self) -> AbstractContextManager[object]:
        """Context of forward passes."""
        return torch.autocast(self.name, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Set threads and deterministic kernels inside the block, and restore the settings after it."""
        cudnn = torch.backends.cudnn
        before = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
        torch.set_num_threads(self.threads)
        # Benchmark mode may choose another kernel in the next run.
        cudnn.benchmark, cudnn.deterministic = False, True
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            cudnn.benchmark, cudnn.deterministic = before[1:]

    def synchronize(self) -> None:
        """Wait for the device, so that a timer measures the computation."""
        if self.name == "cuda":
            torch.cuda.synchronize()


def choose_device(requested: str = "auto", *, threads: int = 0, precision: str = "") -> Device:
    """Choose the device, with bf16 where the hardware multiplies it natively.

    ``requested`` is ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``. Zero ``threads`` takes
    the available cores; an empty ``precision`` lets the hardware decide. Raises ParameterError if a
    GPU is requested and there is none.
    """
    if requested not in ("auto", "cpu", "cuda"):
        raise ParameterError(f"device {requested!r} is unknown; choose auto, cpu or cuda.")
    has_gpu = torch.cuda.is_available()
    if requested == "cuda" and not has_gpu:
        raise ParameterError(
            "device is 'cuda', but PyTorch finds no GPU; choose device 'auto' or 'cpu', or install "
            "a PyTorch build for the GPU's driver."
        )
    name = "cuda" if has_gpu and requested != "cpu" else "cpu"
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if name == "cuda"
        else cpu_multiplies_bf16()
    )
    chosen: Precision = (
        "bfloat16" if (precision == "bfloat16" or (not precision and native)) else "float32"
    )
    return Device(name, chosen, threads or available_cores())


def gpu_in_turn(i: int) -> AbstractContextManager[object]:
    """Context in which "cuda" is GPU ``i``, counted from the first again after the last."""
    n = torch.cuda.device_count()
    return torch.cuda.device(i % n) if n > 1 else nullcontext()


def available_cores() -> int:
    """Cores available to this process: ``OMP_NUM_THREADS``, else those it is bound to."""
    n_threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if n_threads.isdigit() and int(n_threads) > 0:
        return int(n_threads)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compiled(network: nn.Module, loss: Callable[[], Tensor], device: Device) -> bool:
    """Compile a network in place; return whether it worked.

    Runs one backward pass of ``loss`` at once, because compilers fail late: for want of a C++
    compiler or of Triton, or on an unknown operation. Weights and their names stay as they are.
    """
    network.compile()
    try:
        with device.settings(), device.autocast():
            loss().backward()
    # The compiler raises RuntimeErrors, the programs it calls raise others.
    except (RuntimeError, ImportError, OSError, SubprocessError) as exc:
        network._compiled_call_impl = None
        logger.warning(
            "the network cannot be compiled here and is trained uncompiled: %s",
            f"{type(exc).__name__}: {exc}".splitlines()[0],
        )
    network.zero_grad(set_to_none=True)
    return network._compiled_call_impl is not None
