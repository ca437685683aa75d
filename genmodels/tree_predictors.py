"""Which columns a tree of a wide table is grown on: those that tell most of its column.

A tree looks at every predictor in every node, so that trees on all columns before theirs would take
time with the square of the number of columns. Each column is summed up in a few features (the rank,
the distance from the middle, whether there is a value; the most frequent levels of a category), on
some records; a column tells as much of another as the largest squared correlation of their features.
Features are small whole numbers, whose products add up to the same number in any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Predictors"]

MAX_RECORDS = 2000
N_FEATURES = 3
LARGEST = 100

Ints = NDArray[np.int32]


class Predictors:
    """The predictors of each place of the sequence.

    Parameters
    ----------
    codes : ndarray of int32, shape (n_records, n_places)
        Level codes and ranks; place 0 is the class.
    sizes : sequence of int
        Codes a place can take, 0 for a number.
    most : int
        Predictors of a tree at most; with fewer places before it takes all.
    wide : int
        A table of no more columns is not wide: its trees are grown on all places before theirs.
    """

    def __init__(self, codes: Ints, sizes: Sequence[int], *, most: int, wide: int = 0) -> None:
        self._most = most if len(sizes) - 1 > max(most, wide) else len(sizes)
        self._features = np.empty((0, 0, 0))
        if self._most == len(sizes):
            return
        # At even distances: records come in the order of their ids, which say nothing.
        rows = np.linspace(0, len(codes) - 1, min(MAX_RECORDS, len(codes))).astype(np.int64)
        features = np.zeros((len(sizes), N_FEATURES, len(rows)))
        for q, size in enumerate(sizes):
            make = _of_levels if size else _of_ranks
            features[q] = make(codes[rows, q])
        # Sum of squares about the mean, times n: whole numbers still.
        self._sums = features.sum(axis=2)
        self._squares = len(rows) * (features**2).sum(axis=2) - self._sums**2
        self._features = features

    def of(self, place: int) -> list[int]:
        """Return the places that the tree of a place is grown on, ascending; the class is always one."""
        if place <= self._most:
            return list(range(place))
        n = self._features.shape[2]
        before = self._features[1:place].reshape(-1, n)
        products = (before @ self._features[place].T).reshape(place - 1, N_FEATURES, N_FEATURES)
        covariance = n * products - self._sums[1:place, :, None] * self._sums[place]
        scale = self._squares[1:place, :, None] * self._squares[place]
        told = (covariance**2 / np.where(scale > 0, scale, 1.0)).max(axis=(1, 2))
        chosen = 1 + np.argsort(-told, kind="stable")[: self._most - 1]
        return [0, *sorted(chosen.tolist())]


def _of_ranks(ranks: Ints) -> NDArray[np.float64]:
    """Return rank, distance from the middle and whether there is a value, shape (3, n)."""
    missing = ranks < 0
    order = np.unique(ranks[~missing], return_inverse=True)[1]
    place = np.zeros(len(ranks))
    if order.size:
        counts = np.bincount(order)
        middle = np.cumsum(counts) - counts / 2
        place[~missing] = (2 * middle[order] / len(order) - 1) * LARGEST
    place = np.rint(place)
    return np.stack([place, np.where(missing, 0, np.abs(place) - LARGEST // 2), missing * LARGEST])


def _of_levels(codes: Ints) -> NDArray[np.float64]:
    """Return which records have each of the most frequent levels, shape (3, n)."""
    levels, counts = np.unique(codes, return_counts=True)
    most = levels[np.argsort(-counts, kind="stable")[:N_FEATURES]]
    found = np.zeros((N_FEATURES, len(codes)))
    found[: len(most)] = (codes == most[:, None]) * LARGEST
    return found
