"""Trees of a column as flat arrays over their nodes, with the values in the leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from prefect_augment.array_types import Float, Int, Int32


@dataclass(frozen=True)
class Tree:
    """One column's trees as arrays over all their nodes, and the values of their leaves.

    A leaf is its own child, so all records descend the same number of steps. Leaf m holds
    ``values[start[m] : start[m] + size[m]]``, sorted: ranks or level codes.
    """

    roots: Int32  # (n_trees,) where each tree begins
    feature: Int32  # the predictor's place in the sequence; 0 is the class
    threshold: Int32  # left where predictor <= threshold
    children: Int32  # (2 * n_nodes,) left and right child
    start: Int32
    size: Int32
    values: Int32
    places: Int32  # of the categories among the predictors that the tree looks at
    starts: Int32  # where the order of each of them begins
    orders: Int32  # place of every level of these categories, one after the other
    depth: int

    def order_of(self, place: int) -> Int32:
        """Rank of each level of the category at ``place`` in the order the tree splits by."""
        i = int(np.searchsorted(self.places, place))
        return self.orders[self.starts[i] : self.starts[i + 1]]


TREE_ARRAYS = tuple(f.name for f in fields(Tree) if f.name != "depth")


def as_arrays(
    grown: Sequence[Any],
    leaves: Sequence[Int],
    target: Int32,
    before: Sequence[int],
    orders: Mapping[int, Int32],
) -> Tree:
    """Convert scikit-learn's trees, and the target's values by leaf, to arrays.

    ``leaves`` (n_records,) says per tree where each record ends. ``before`` are the predictors'
    places and ``orders`` the ranks of the levels of those that are categories.
    """
    n_nodes = [tree.node_count for tree in grown]
    roots = np.cumsum([0, *n_nodes[:-1]])
    parts = [
        _nodes(tree, of, target, before, root, k * len(target))
        for k, (tree, of, root) in enumerate(zip(grown, leaves, roots.tolist(), strict=True))
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    # Leaves refer to place 0, the class, too.
    places = sorted(set(joined["feature"].tolist()) & set(orders))
    return Tree(
        roots=roots.astype(np.int32),
        **joined,
        places=np.array(places, dtype=np.int32),
        starts=np.cumsum([0, *(len(orders[q]) for q in places)]).astype(np.int32),
        orders=np.concatenate([np.empty(0), *(orders[q] for q in places)]).astype(np.int32),
        depth=max(int(tree.max_depth) for tree in grown),
    )


def _nodes(
    grown: Any, leaves: Int, target: Int32, before: Sequence[int], root: int, first_value: int
) -> dict[str, Int32]:
    """One tree's arrays, with its nodes and values starting at these offsets."""
    is_leaf = grown.children_left < 0
    itself = np.arange(grown.node_count)
    sides = np.stack([grown.children_left, grown.children_right], axis=1)
    children = np.where(sides < 0, itself[:, None], sides)
    feature = np.asarray(before)[np.where(is_leaf, 0, grown.feature)]
    # Sorted by leaf and value: neighbours in the array are neighbours in the leaf.
    by_leaf = np.lexsort((target, leaves))
    arrays = {
        "feature": np.where(is_leaf, 0, feature),
        # Predictors are integers, so x <= 3.5 is x <= 3.
        "threshold": np.floor(np.where(is_leaf, 0, grown.threshold)),
        "children": children.ravel() + root,
        "start": np.searchsorted(leaves[by_leaf], itself) + first_value,
        "size": np.bincount(leaves, minlength=grown.node_count),
        "values": target[by_leaf],
    }
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def level_order(codes: Int32, size: int, outputs: Float, weights: Float) -> Int32:
    """Rank of each level of a predictor in the order that splits the outputs best, (size,).

    By mean output, which is optimal for one output (Fisher 1958); by the first principal component
    of the mean outputs for several (Coppersmith, Hong & Hosking 1999).
    """
    mass = np.bincount(codes, weights, minlength=size)
    sums = np.stack(
        [
            np.bincount(codes, weights * outputs[:, m], minlength=size)
            for m in range(outputs.shape[1])
        ],
        axis=1,
    )
    total = sums.sum(axis=0) / mass.sum()
    mean = np.where(mass[:, None] > 0, sums / np.where(mass > 0, mass, 1)[:, None], total)
    centred = (mean - total) * np.sqrt(mass)[:, None]
    # Power iteration with plain sums, no BLAS: the same bits on any number of threads.
    covariance = np.einsum("lm,ln->mn", centred, centred, optimize=False)
    direction = covariance[np.argmax(np.diag(covariance))]
    for _ in range(30):
        norm = np.sqrt((direction**2).sum())
        if norm == 0:
            break
        before, direction = direction, (covariance * (direction / norm)).sum(axis=1)
        if (direction == before).all():  # further steps change no bit
            break
    score = (mean * direction).sum(axis=1)
    # Rounded, so that levels equal up to rounding error keep the order of their codes.
    spread = np.abs(score).max()
    rounded = np.round(score / spread, 9) if spread > 0 else score
    order = np.empty(size, dtype=np.int32)
    order[np.argsort(rounded, kind="stable")] = np.arange(size, dtype=np.int32)
    return order
