"""Numbers of :mod:`.counter_random` as tensors, taken block by block."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefect_augment.genmodels.counter_rng import normal, uniform

__all__ = ["RecordNumbers"]


class RecordNumbers:
    """The random numbers of the records of a micro-batch, one block after the other.

    Parameters
    ----------
    keys : ndarray of uint64, shape (n,)
        From :func:`.counter_random.record_keys`.
    device : torch.device
        Where the numbers go.
    """

    def __init__(self, keys: NDArray[np.uint64], device: torch.device) -> None:
        self.keys = keys
        self.used = 0  # numbers of each record
        self._device = device

    def normals(self, n_values: int) -> Tensor:
        """Return standard normal numbers, float32 of shape (n, n_values)."""
        found = normal(self.keys, n_values, self.used)
        self.used += n_values + n_values % 2
        return torch.from_numpy(found).to(self._device)

    def uniforms(self, n_values: int) -> Tensor:
        """Return numbers in [0, 1), float64 of shape (n, n_values)."""
        found = np.empty((len(self.keys), n_values))
        for i in range(n_values):
            found[:, i] = uniform(self.keys, self.used + i)
        self.used += n_values
        return torch.from_numpy(found).to(self._device)
