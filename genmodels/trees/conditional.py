"""Draw from sequential trees with fixed column values.

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

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.counter_rng import record_keys, uniform
from prefect_augment.genmodels.trees.nodes import Tree
from prefect_augment.genmodels.trees.sequence import TreeSequence

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


def draw_with_values(
    model: TreeSequence,
    classes: Int,
    seeds: Int,
    values: Mapping[int, float],
) -> tuple[Int, Float]:
    """Indices of the records kept, and these; see :class:`.SamplesWithValues`.

    Raises ParameterError if no training record of a class has a fixed value together with the
    others.
    """
    conditions = _conditions(model, np.unique(classes), values)
    kept, drawn = [np.empty(0, dtype=np.int64)], [np.empty((0, model.spec.n_columns))]
    for start in range(0, len(classes), BATCH):
        rows, X = _draw(
            model, classes[start : start + BATCH], seeds[start : start + BATCH], conditions
        )
        kept.append(rows + start)
        drawn.append(X)
    return np.concatenate(kept), np.concatenate(drawn)


def _draw(
    model: TreeSequence,
    classes: Int,
    seeds: Int,
    conditions: Mapping[int, _Condition],
) -> tuple[Int, Float]:
    """Draw column by column, with fewer records after each fixed one."""
    rows, keys = np.arange(len(classes)), record_keys(seeds)
    codes = np.empty((len(model._sizes), len(rows)), dtype=np.int32)
    codes[0] = classes
    X = np.empty((len(rows), model.spec.n_columns))
    for place, j in enumerate(model._sequence, start=1):
        leaf = model._descend(place, codes[:place], keys)
        if place not in conditions:
            X[:, j], codes[place] = model._draw(place, leaf, keys)
            continue
        condition = conditions[place]
        # Own counters: a record's other numbers are the same with and without fixed values.
        chance = uniform(keys, 2 * model.spec.n_columns + place)
        stays = chance * condition.bound[codes[0]] < condition.share[leaf]
        rows, keys, codes, X = rows[stays], keys[stays], codes[:, stays], X[stays]
        X[:, j], codes[place] = condition.value, condition.code
    return rows, X


def _conditions(
    model: TreeSequence, classes: Int, values: Mapping[int, float]
) -> dict[int, _Condition]:
    """Conditions by place, with the shares and bounds of each place's leaves."""
    conditions: dict[int, _Condition] = {}
    for place, j in enumerate(model._sequence, start=1):
        if j not in values:
            continue
        tree = model._trees[place - 1]
        code, is_match = _matching(model, place, values[j])
        hits = np.concatenate([[0], np.cumsum(is_match)])
        inside = hits[tree.start + tree.size] - hits[tree.start]
        share = inside / np.maximum(tree.size, 1)
        bound = np.zeros(model.spec.n_classes)
        for k in map(int, classes):
            known = {0: k} | {q: condition.code for q, condition in conditions.items()}
            bound[k] = share[_reachable(model, tree, place, known)].max()
            if bound[k] == 0:
                raise ParameterError(
                    f"no training record of class {model.spec.classes[k]!r} has the requested value in "
                    f"column {model.spec.names[j]!r}"
                    f"{' together with the other requested values' if conditions else ''}; choose "
                    "another value, or leave the column out.",
                    column=model.spec.names[j],
                )
        conditions[place] = _Condition(values[j], code, share, bound)
    return conditions


def _matching(model: TreeSequence, place: int, value: float) -> tuple[int, Bool]:
    """A value's code, and which of the tree's leaf values count as a match."""
    values, j = model._trees[place - 1].values, model._sequence[place - 1]
    if model._sizes[place]:
        code = model.spec.n_levels[j] if np.isnan(value) else int(value)
        return code, values == code
    if np.isnan(value):
        return -1, values == -1
    number = model._number(place)
    grid, atoms = model._grids[number], model._atoms[number]
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


def _reachable(model: TreeSequence, tree: Tree, place: int, known: Mapping[int, int]) -> Int:
    """Leaves that records with these codes at these places can reach."""
    value_of, is_known = np.zeros(place, dtype=np.int64), np.zeros(place, dtype=bool)
    for q in set(tree.feature.tolist()) & set(known):
        is_known[q] = True
        value_of[q] = tree.order_of(q)[known[q]] if model._sizes[q] else known[q]
    nodes = tree.roots.astype(np.int64)
    for _ in range(tree.depth):
        feature, threshold = tree.feature[nodes], tree.threshold[nodes]
        left = ~is_known[feature] | (value_of[feature] <= threshold)
        right = ~is_known[feature] | (value_of[feature] > threshold)
        nodes = np.unique(
            np.concatenate([tree.children[2 * nodes[left]], tree.children[2 * nodes[right] + 1]])
        ).astype(np.int64)
    return nodes
