"""Latent vectors interpolated between a record and a neighbour of its class.

The draws lie near to records: they look like their class, and may be close to a copy. Dablain,
Krawczyk & Chawla 2021, "DeepSMOTE: Fusing Deep Learning and SMOTE for Imbalanced Data"; the
interpolation and its five neighbours are those of Chawla et al. 2002, "SMOTE".
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor

from prefect_augment.array_types import Float32, Int
from prefect_augment.genmodels.base import Arrays
from prefect_augment.genmodels.record_numbers import RecordNumbers

N_NEIGHBOURS = 5
MAX_RECORDS = 4000  # kept per class


_NAMES = ("vectors", "neighbours", "starts", "counts")


@dataclass(frozen=True)
class ClassNeighbours:
    """Latent vectors of records, sorted by class, and the neighbours of each."""

    vectors: Float32  # (n, n_latent)
    neighbours: Int  # (n, N_NEIGHBOURS) rows of the same class, the nearest first; few repeat
    starts: Int  # (n_classes,) first row of each class; an empty class has all rows
    counts: Int  # (n_classes,)

    @classmethod
    def fit(cls, Z: Float32, y: Int, n_classes: int, *, seed: int) -> Self:
        """Keep at most ``MAX_RECORDS`` vectors per class and find their neighbours."""
        rng = np.random.default_rng([seed & 0xFFFFFFFF, 3])
        rows, neighbours = [], []
        starts, counts = np.zeros((2, n_classes), dtype=np.int64)
        n = 0
        for k in range(n_classes):
            own = np.flatnonzero(y == k)
            own = own[np.sort(rng.permutation(len(own))[:MAX_RECORDS])]
            starts[k], counts[k] = n, len(own)
            rows.append(own)
            neighbours.append(n + _nearest(Z[own]))
            n += len(own)
        starts[counts == 0], counts[counts == 0] = 0, n
        return cls(Z[np.concatenate(rows)], np.concatenate(neighbours), starts, counts)

    def draw(self, y: Tensor, numbers: RecordNumbers) -> Tensor:
        """One vector per class index, (n, n_latent) of float32, on the device of ``y``."""
        device = y.device
        vectors, neighbours, starts, counts = (
            torch.from_numpy(a).to(device)
            for a in (self.vectors, self.neighbours, self.starts, self.counts)
        )
        uniforms = numbers.uniforms(3)
        row = starts[y] + (uniforms[:, 0] * counts[y]).long()
        which = (uniforms[:, 1] * neighbours.shape[1]).long()
        other = neighbours[row, which]
        return torch.lerp(vectors[row], vectors[other], uniforms[:, 2:].float())

    def arrays(self) -> Arrays:
        """The arrays by name, for storage."""
        return {f"latent.{name}": getattr(self, name) for name in _NAMES}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Inverse of :meth:`arrays`."""
        return cls(*(arrays[f"latent.{name}"] for name in _NAMES))


def _nearest(Z: Float32) -> Int:
    """Each vector's nearest others, (n, N_NEIGHBOURS); the vector itself where it is alone."""
    n = min(N_NEIGHBOURS, len(Z) - 1)
    if n < 1:
        return np.zeros((len(Z), N_NEIGHBOURS), dtype=np.int64)
    with threadpool_limits(1):
        nearest = NearestNeighbors(n_neighbors=n).fit(Z).kneighbors(return_distance=False)
    return nearest[:, np.arange(N_NEIGHBOURS) % n].astype(np.int64)
