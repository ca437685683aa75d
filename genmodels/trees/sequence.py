"""The trees of a table in sequence, and how records are drawn from them; :mod:`.model` fits them.

Columns are drawn in the model's order. At a fixed column the record takes the value and is kept
with probability (its leaf's share of the value) / (the highest share among leaves reachable with
the class and the fixed values so far). This is rejection sampling (von Neumann 1951): columns
before a fixed one follow it as they should, later ones are drawn from it. A record is dropped at
the first column that rejects it.

A value that enough training records have, and any atom, is matched exactly. Otherwise the share is
that of the nearest training records by rank, because hardly any leaf holds the exact value of a
continuous column.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prefect_augment.array_types import Bool, Float, Int, Int32, Uint64
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import TableSpec
from prefect_augment.genmodels.counter_rng import record_keys, uniform
from prefect_augment.genmodels.trees.nodes import Tree
from prefect_augment.params import TreesModel

MIN_NEAR = 30  # training records with the value; below, the nearest ones count too
NEAR_SHARE = 0.01  # of all training records, that then match
BATCH = 16_384  # records descending together: fits the cache, changes no draw


@dataclass(frozen=True)
class _Condition:
    """A fixed value at its place in the sequence."""

    value: float
    code: int
    share: Float  # (n_nodes,) share of the leaf's training records that match
    bound: Float  # (n_classes,) highest share reachable by the class


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

    def drawn(self, classes: Int, seeds: Int, values: Mapping[int, float]) -> tuple[Int, Float]:
        """Indices of the records kept, and these; see :class:`.SamplesWithValues`.

        Raises ParameterError if no training record of a class has a fixed value together with the
        others.
        """
        conditions = self._conditions(np.unique(classes), values)
        kept, parts = [np.empty(0, dtype=np.int64)], [np.empty((0, self.spec.n_columns))]
        for start in range(0, len(classes), BATCH):
            rows = slice(start, start + BATCH)
            own, X = self._drawn(classes[rows], seeds[rows], conditions)
            kept.append(own + start)
            parts.append(X)
        return np.concatenate(kept), np.concatenate(parts)

    def _drawn(
        self, classes: Int, seeds: Int, conditions: Mapping[int, _Condition]
    ) -> tuple[Int, Float]:
        """Draw column by column, with fewer records after each fixed one."""
        rows, keys = np.arange(len(classes)), record_keys(seeds)
        codes = np.empty((len(self._sizes), len(rows)), dtype=np.int32)
        codes[0] = classes
        X = np.empty((len(rows), self.spec.n_columns))
        for place, j in enumerate(self._sequence, start=1):
            leaf = self._descend(place, codes[:place], keys)
            if place not in conditions:
                X[:, j], codes[place] = self._draw(place, leaf, keys)
                continue
            condition = conditions[place]
            # Own counters: a record's other numbers are the same with and without fixed values.
            chance = uniform(keys, 2 * self.spec.n_columns + place)
            stays = chance * condition.bound[codes[0]] < condition.share[leaf]
            rows, keys, codes, X = rows[stays], keys[stays], codes[:, stays], X[stays]
            X[:, j], codes[place] = condition.value, condition.code
        return rows, X

    def _conditions(self, classes: Int, values: Mapping[int, float]) -> dict[int, _Condition]:
        """Conditions by place, with the shares and bounds of each place's leaves."""
        conditions: dict[int, _Condition] = {}
        for place, j in enumerate(self._sequence, start=1):
            if j not in values:
                continue
            tree = self._trees[place - 1]
            code, is_match = self._matching(place, values[j])
            hits = np.concatenate([[0], np.cumsum(is_match)])
            inside = hits[tree.start + tree.size] - hits[tree.start]
            share = inside / np.maximum(tree.size, 1)
            bound = np.zeros(self.spec.n_classes)
            for k in map(int, classes):
                known = {0: k} | {q: condition.code for q, condition in conditions.items()}
                bound[k] = share[self._reachable(tree, place, known)].max()
                if bound[k] == 0:
                    raise ParameterError(
                        f"no training record of class {self.spec.classes[k]!r} has the requested value in "
                        f"column {self.spec.names[j]!r}"
                        f"{' together with the other requested values' if conditions else ''}; choose "
                        "another value, or leave the column out.",
                        column=self.spec.names[j],
                    )
            conditions[place] = _Condition(values[j], code, share, bound)
        return conditions

    def _matching(self, place: int, value: float) -> tuple[int, Bool]:
        """A value's code, and which of the tree's leaf values count as a match."""
        values, j = self._trees[place - 1].values, self._sequence[place - 1]
        if self._sizes[place]:
            code = self.spec.n_levels[j] if np.isnan(value) else int(value)
            return code, values == code
        if np.isnan(value):
            return -1, values == -1
        number = self._number(place)
        grid, atoms = self._grids[number], self._atoms[number]
        if not grid.size:
            return 0, np.zeros(len(values), dtype=bool)
        after = int(np.searchsorted(grid, value))
        exact = after < len(grid) and grid[after] == value
        counts = np.bincount(values[values >= 0], minlength=len(grid))
        if atoms.all() and not exact:  # all values repeat, so nothing lies between
            return 0, np.zeros(len(values), dtype=bool)
        if exact and (atoms[after] or counts[after] >= MIN_NEAR or atoms.all()):
            return after, values == after
        enough = max(MIN_NEAR, NEAR_SHARE * len(values))
        # Between two ranks where the value itself was not seen.
        away = np.abs(np.arange(len(grid)) - (after if exact else after - 0.5)).astype(np.float64)
        away[atoms] = np.inf
        order = np.argsort(away, kind="stable")
        needed = int(np.searchsorted(np.cumsum(counts[order]), enough))
        farthest = away[order[min(needed, len(order) - 1 - int(atoms.sum()))]]
        near = away <= farthest
        return int(order[0]), (values >= 0) & near[values]

    def _reachable(self, tree: Tree, place: int, known: Mapping[int, int]) -> Int:
        """Leaves that records with these codes at these places can reach."""
        value_of, is_known = np.zeros(place, dtype=np.int64), np.zeros(place, dtype=bool)
        for q in set(tree.feature.tolist()) & set(known):
            is_known[q] = True
            value_of[q] = tree.order_of(q)[known[q]] if self._sizes[q] else known[q]
        nodes = tree.roots.astype(np.int64)
        for _ in range(tree.depth):
            feature, threshold = tree.feature[nodes], tree.threshold[nodes]
            left = ~is_known[feature] | (value_of[feature] <= threshold)
            right = ~is_known[feature] | (value_of[feature] > threshold)
            nodes = np.unique(
                np.concatenate(
                    [tree.children[2 * nodes[left]], tree.children[2 * nodes[right] + 1]]
                )
            ).astype(np.int64)
        return nodes

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
