"""Latent vectors between those of a record and of a neighbour of its class.

What is drawn lies near to records: it looks like its class, and may be close to a copy.

References
----------
Dablain, Krawczyk & Chawla 2021, "DeepSMOTE: Fusing Deep Learning and SMOTE for Imbalanced Data"; the
interpolation is that of Chawla et al. 2002, "SMOTE", with its five neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor

from prefect_augment.genmodels.base import Arrays
from prefect_augment.genmodels.record_numbers import RecordNumbers

__all__ = ["ClassNeighbours"]

N_NEIGHBOURS = 5
MAX_RECORDS = 4000  # of a class that are kept

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ClassNeighbours:
    """Vectors of records, class after class, and the neighbours of each.

    Parameters
    ----------
    vectors : ndarray of float32, shape (n, n_latent)
    neighbours : ndarray of int64, shape (n, n_neighbours)
        Rows of the same class, the nearest first; of a class of fewer records some repeat.
    starts, counts : ndarray of int64, shape (n_classes,)
        Where each class's rows are. A class without records has the rows of all.
    """

    vectors: Floats
    neighbours: Ints
    starts: Ints
    counts: Ints

    @classmethod
    def fit(cls, Z: Floats, y: Ints, n_classes: int, *, seed: int) -> Self:
        """Return the vectors that are kept, and their neighbours.

        Parameters
        ----------
        Z : ndarray of float32, shape (n, n_latent)
        y : ndarray of int64, shape (n,)
        n_classes, seed : int
        """
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
        """Return a vector of each class, (n, n_latent) of float32, on the device of ``y``."""
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
        """Return all four by name."""
        return {f"latent.{name}": getattr(self, name) for name in _NAMES}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Return what :meth:`arrays` wrote down."""
        return cls(*(arrays[f"latent.{name}"] for name in _NAMES))


_NAMES = ("vectors", "neighbours", "starts", "counts")


def _nearest(Z: Floats) -> Ints:
    """Return each vector's nearest others, int64 of shape (n, N_NEIGHBOURS); itself where it is alone."""
    n = min(N_NEIGHBOURS, len(Z) - 1)
    if n < 1:
        return np.zeros((len(Z), N_NEIGHBOURS), dtype=np.int64)
    with threadpool_limits(1):
        found = NearestNeighbors(n_neighbors=n).fit(Z).kneighbors(return_distance=False)
    return found[:, np.arange(N_NEIGHBOURS) % n].astype(np.int64)
