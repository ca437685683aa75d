"""The trees of a table in sequence, and how a record is drawn from them.

:mod:`.model` fits them; :mod:`.conditional` draws with fixed column values.
"""

import numpy as np

from prefect_augment.array_types import Bool, Float, Int, Int32, Uint64
from prefect_augment.genmodels.base import TableSpec
from prefect_augment.genmodels.counter_rng import uniform
from prefect_augment.genmodels.trees.nodes import Tree
from prefect_augment.params import TreesModel


class TreeSequence:
    """Trees by place in the sequence: the class, then categories, then numbers."""

    def __init__(self, params: TreesModel, spec: TableSpec) -> None:
        self.params = params
        self.spec = spec
        # Place 0 of the sequence is the class, then categories, then numbers; fit orders these.
        columns = range(spec.n_columns)
        self._sequence = [j for j in columns if spec.is_category[j]] + [
            j for j in columns if not spec.is_category[j]
        ]
        # Codes a place can take: classes, levels and one for null; 0 for a number.
        self._sizes = [spec.n_classes] + [
            spec.n_levels[j] + 1 if spec.is_category[j] else 0 for j in self._sequence
        ]
        self._trees: list[Tree] = []
        self._grids: list[Float] = []  # per number: its distinct training values, sorted
        self._shared: list[Bool] = []  # whether several records share the value
        self._atoms: list[Bool] = []

    def _number(self, place: int) -> int:
        """Index among the numbers of a place of the sequence."""
        return place - 1 - sum(self.spec.is_category)

    def _draw(self, place: int, leaf: Int, keys: Uint64) -> tuple[Float, Int32]:
        """Draw a value and its code for one place from each record's leaf."""
        tree, j = self._trees[place - 1], self._sequence[place - 1]
        size = tree.size[leaf]
        drawn = (uniform(keys, 2 * j) * size).astype(np.int32)
        code = tree.values[tree.start[leaf] + drawn]
        if self._sizes[place]:
            return np.where(code == self.spec.n_levels[j], np.nan, code), code
        move = uniform(keys, 2 * j + 1) - 0.5
        side = np.where(move > 0, 1, -1)
        # At the end of a leaf, and beside a null, towards the inside.
        inside = (drawn + side >= 0) & (drawn + side < size)
        first = tree.start[leaf]
        inside &= tree.values[first + np.clip(drawn + side, 0, size - 1)] >= 0
        beside = np.clip(drawn + np.where(inside, side, -side), 0, size - 1)
        return self._between(self._number(place), code, tree.values[first + beside], move)

    def _descend(self, place: int, codes: Int32, keys: Uint64) -> Int:
        """Leaf of each record, given the codes of the places before, (place, n)."""
        tree, n = self._trees[place - 1], codes.shape[1]
        predictors = np.empty(codes.shape, dtype=np.int32)
        for q in np.unique(tree.feature):
            predictors[q] = tree.order_of(q)[codes[q]] if self._sizes[q] else codes[q]
        flat, columns = predictors.ravel(), np.arange(n)
        # Counters behind those of values and of fixed values.
        chance = uniform(keys, 3 * self.spec.n_columns + place)
        node = tree.roots[(chance * len(tree.roots)).astype(np.int64)].astype(np.int64)
        for _ in range(tree.depth):
            value = flat[tree.feature[node] * np.int64(n) + columns]
            node = tree.children[2 * node + (value > tree.threshold[node])].astype(np.int64)
        return node

    def _between(
        self, number: int, rank: Int32, neighbour: Int32, move: Float
    ) -> tuple[Float, Int32]:
        """Value ``|move|`` (at most half) of the way to its neighbour, and its rank.

        Missing values and atoms are separate: nothing is interpolated to or from them. A value that
        a single record has and that has no neighbour in its leaf is moved towards the next value of
        the column, so that no such value is returned.
        """
        grid, shared, atoms = self._grids[number], self._shared[number], self._atoms[number]
        if not grid.size:
            return np.full(len(rank), np.nan), np.full(len(rank), -1, dtype=np.int32)
        missing, share = rank < 0, np.abs(move)
        alone = (neighbour < 0) | atoms[rank] | atoms[neighbour]
        step = np.where(alone, 0, neighbour - rank)
        stays = ~missing & (step == 0) & ~shared[rank]
        towards = np.where(move > 0, 1, -1)
        ends = (rank + towards < 0) | (rank + towards >= len(grid))
        step = np.where(stays, np.where(ends, -towards, towards), step)
        position = np.clip(np.where(missing, 0.0, rank + share * step), 0.0, len(grid) - 1.0)
        low = position.astype(np.int64)
        high = np.minimum(low + 1, len(grid) - 1)
        fraction = position - low
        nearest = np.where(fraction < 0.5, low, high)
        # A value that several records share is returned exactly (a price, an integer); one of a single
        # record never is.
        exact = shared[nearest]
        # Weights on both ends: high - low alone can overflow.
        value = np.where(exact, grid[nearest], grid[low] * (1.0 - fraction) + grid[high] * fraction)
        return np.where(missing, np.nan, value), np.where(missing, -1, nearest).astype(np.int32)
