"""Random numbers of :mod:`.counter_rng` as tensors, taken block by block."""

import numpy as np
import torch
from torch import Tensor

from prefect_augment.array_types import Uint64
from prefect_augment.genmodels.counter_rng import normal, uniform


class RecordNumbers:
    """The random numbers of a micro-batch's records, taken block by block.

    ``keys`` (n,) come from :func:`.counter_rng.record_keys`; the numbers go to ``device``.
    """

    def __init__(self, keys: Uint64, device: torch.device) -> None:
        self.keys = keys
        self.used = 0  # numbers taken per record
        self._device = device

    def normals(self, n_values: int) -> Tensor:
        """Standard normal numbers, float32 of shape (n, n_values)."""
        values = normal(self.keys, n_values, self.used)
        self.used += n_values + n_values % 2
        return torch.from_numpy(values).to(self._device)

    def uniforms(self, n_values: int) -> Tensor:
        """Numbers in [0, 1), float64 of shape (n, n_values)."""
        values = np.empty((len(self.keys), n_values))
        for i in range(n_values):
            values[:, i] = uniform(self.keys, self.used + i)
        self.used += n_values
        return torch.from_numpy(values).to(self._device)
