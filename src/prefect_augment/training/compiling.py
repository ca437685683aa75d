"""torch.compile with a way back: where it cannot be done, training goes on without."""

from __future__ import annotations

import logging
from collections.abc import Callable
from subprocess import SubprocessError

from torch import Tensor, nn

from prefect_augment.training.devices import Device

__all__ = ["compiled"]

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
