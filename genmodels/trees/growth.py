"""The trees of one column, grown with scikit-learn.

A single tree cuts the columns before it at a few values, which a classifier of real against drawn
records finds again: between the cuts nothing follows. Several trees on weights drawn anew, of which
each record takes one by chance, cut at other places, so that a record's values come from the average
of its neighbourhoods (as in quantile regression forests: Meinshausen 2006, JMLR 7). On mammography
the C2ST AUC went from 0.555 to 0.542 (8 splits), on the others of six tables it stayed or fell.

Which columns a tree of a wide table is grown on: those that tell most of its column.

A tree looks at every predictor in every node, so that trees on all columns before theirs would take
time with the square of the number of columns. Each column is summed up in a few features (the rank,
the distance from the middle, whether there is a value; the most frequent levels of a category), on
some records; a column tells as much of another as the largest squared correlation of their features.
Features are small whole numbers, whose products add up to the same number in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from prefect_augment.genmodels.trees.nodes import Floats, Ints, Tree, as_arrays

__all__ = ["Leaf", "Predictors", "grow", "n_trees"]

MAX_TREES = 4  # more make it no better, and take time and memory
# Records times columns times trees at most, but for one tree: the time that growing them takes.
MAX_VALUES = 1_000_000


@dataclass(frozen=True)
class Leaf:
    """How small a leaf may be: in records, and in the share of all weight."""

    n_records: int
    share: float = 0.0


def n_trees(n_records: int, n_columns: int) -> int:
    """Return how many trees a column has.

    Examples
    --------
    >>> n_trees(8000, 20), n_trees(20_000, 1000)
    (4, 1)
    """
    return max(1, min(MAX_TREES, MAX_VALUES // max(1, n_records * n_columns)))


def grow(
    target: Ints,
    outputs: Floats,
    before: Mapping[int, Ints],
    orders: Mapping[int, Ints],
    *,
    is_classes: bool,
    y: Ints,
    weights: Floats,
    leaf: Leaf,
    max_depth: int,
    n_trees: int,
    seed: Sequence[int],
) -> Tree:
    """Return the trees of one column.

    Parameters
    ----------
    target : ndarray of int32, shape (n_records,)
        The column, as codes.
    outputs : ndarray of float64, shape (n_records, n_outputs)
        What the trees predict; ``is_classes`` where each record has a one and else zeros.
    before : mapping of int to ndarray of int32, shape (n_records,)
        Codes of the predictors by their place in the sequence.
    orders : mapping of int to ndarray of int32
        Place of every level, of those that are categories.
    y : ndarray of int32, shape (n_records,)
        Classes, each of which keeps its share of the weight.
    weights : ndarray of float64, shape (n_records,)
    leaf : Leaf
    max_depth, n_trees : int
    seed : sequence of int
        Decides the weights of each tree, and between equally good splits.
    """
    predictors = np.empty((len(target), len(before)), dtype=np.float32)
    for i, (q, codes) in enumerate(before.items()):
        predictors[:, i] = orders[q][codes] if q in orders else codes
    wanted = outputs.argmax(axis=1) if is_classes else outputs
    grown, leaves = [], []
    for k in range(n_trees):
        # scikit-learn takes no Generator; the old kind is the only one with room for numbers.
        random = np.random.RandomState([*seed, k])
        grower = (DecisionTreeClassifier if is_classes else DecisionTreeRegressor)(
            max_depth=max_depth,
            min_samples_leaf=leaf.n_records,
            min_weight_fraction_leaf=leaf.share,
            random_state=random,
        )
        of_tree = _resampled(weights, y, random) if n_trees > 1 else weights
        grower.fit(predictors, wanted, sample_weight=of_tree)
        grown.append(grower.tree_)
        leaves.append(grower.apply(predictors))
    return as_arrays(grown, leaves, target, list(before), orders)


def _resampled(weights: Floats, y: Ints, random: np.random.RandomState) -> NDArray[np.float64]:
    """Return the weights under the Bayesian bootstrap (Rubin 1981), each class's sum as it was.

    No record is left out, so that leaves have as many as asked for and rare classes leaves of their own.
    """
    drawn: Floats = weights * random.exponential(size=len(weights))
    sums, new = np.bincount(y, weights), np.bincount(y, drawn)
    return drawn * (sums / np.where(new > 0, new, 1.0))[y]


MAX_RECORDS = 2000
N_FEATURES = 3
LARGEST = 100


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
