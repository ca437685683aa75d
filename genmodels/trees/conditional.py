"""Sequential trees with given values: the other columns as they are where these hold.

Columns are drawn in the model's order. At a given column the record takes the given value, and is
kept with the probability that its leaf has of it, over the highest one among the leaves that the
class and the given values so far can reach: rejection sampling with the leaf's share as the weight
(von Neumann 1951), so that columns *before* a given one follow it as they should, and those after it
are drawn from it. Records are dropped at the first given column that refuses them, which is early
for categories.

A value that enough training records have, and any atom, is taken as it is. For the others, the share is
that of the nearest training records by rank: where a column is continuous, hardly any leaf holds the very
value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.counter_rng import record_keys, uniform
from prefect_augment.genmodels.trees.nodes import Tree
from prefect_augment.genmodels.trees.sequence import TreeSequence

__all__ = ["draw_given"]

MIN_NEAR = 30  # training records with the very value: fewer, and the nearest ones join in
NEAR_SHARE = 0.01  # of all training records, that then stand for it
BATCH = 16_384  # as in table_trees

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Condition:
    """A given value at its place of the sequence."""

    value: float
    code: int
    share: Floats  # (n_nodes,) of the leaf's training records that have it
    bound: Floats  # (n_classes,) the highest share that a record of the class can meet


def draw_given(
    model: TreeSequence,
    classes: NDArray[np.int64],
    seeds: NDArray[np.int64],
    given: Mapping[int, float],
) -> tuple[NDArray[np.int64], Floats]:
    """Return which records are kept, and these; see :class:`.SamplesGiven`.

    Raises
    ------
    ParameterError
        If no training record of a class has a given value where the other given ones hold.
    """
    wishes = _wishes(model, np.unique(classes), given)
    kept, made = [np.empty(0, dtype=np.int64)], [np.empty((0, model.spec.n_columns))]
    for start in range(0, len(classes), BATCH):
        rows, X = _draw(model, classes[start : start + BATCH], seeds[start : start + BATCH], wishes)
        kept.append(rows + start)
        made.append(X)
    return np.concatenate(kept), np.concatenate(made)


def _draw(
    model: TreeSequence,
    classes: NDArray[np.int64],
    seeds: NDArray[np.int64],
    wishes: Mapping[int, _Condition],
) -> tuple[NDArray[np.int64], Floats]:
    """Draw column by column, with fewer records after each given one."""
    rows, keys = np.arange(len(classes)), record_keys(seeds)
    codes = np.empty((len(model._sizes), len(rows)), dtype=np.int32)
    codes[0] = classes
    X = np.empty((len(rows), model.spec.n_columns))
    for place, j in enumerate(model._sequence, start=1):
        leaf = model._descend(place, codes[:place], keys)
        if place not in wishes:
            X[:, j], codes[place] = model._draw(place, leaf, keys)
            continue
        wish = wishes[place]
        # Counters of their own: a record's other numbers are the same with and without params.
        chance = uniform(keys, 2 * model.spec.n_columns + place)
        stays = chance * wish.bound[codes[0]] < wish.share[leaf]
        rows, keys, codes, X = rows[stays], keys[stays], codes[:, stays], X[stays]
        X[:, j], codes[place] = wish.value, wish.code
    return rows, X


def _wishes(
    model: TreeSequence, classes: NDArray[np.int64], given: Mapping[int, float]
) -> dict[int, _Condition]:
    """Return the given values by place, with what is to be known of each place's leaves."""
    wishes: dict[int, _Condition] = {}
    for place, j in enumerate(model._sequence, start=1):
        if j not in given:
            continue
        tree = model._trees[place - 1]
        code, stands_for_it = _matching(model, place, given[j])
        hits = np.concatenate([[0], np.cumsum(stands_for_it)])
        inside = hits[tree.start + tree.size] - hits[tree.start]
        share = inside / np.maximum(tree.size, 1)
        bound = np.zeros(model.spec.n_classes)
        for k in map(int, classes):
            known = {0: k} | {q: wish.code for q, wish in wishes.items()}
            bound[k] = share[_reachable(model, tree, place, known)].max()
            if bound[k] == 0:
                raise ParameterError(
                    f"no training record of class {model.spec.classes[k]!r} has the value that is given "
                    f"for column {model.spec.names[j]!r}"
                    f"{' where the other given values hold' if wishes else ''}; give another value, "
                    "or leave the column out.",
                    column=model.spec.names[j],
                )
        wishes[place] = _Condition(given[j], code, share, bound)
    return wishes


def _matching(model: TreeSequence, place: int, value: float) -> tuple[int, NDArray[np.bool_]]:
    """Return a value's code, and which of the tree's leaf values stand for it."""
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
    if atoms.all() and not exact:  # between values that come again and again there are none
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


def _reachable(
    model: TreeSequence, tree: Tree, place: int, known: Mapping[int, int]
) -> NDArray[np.int64]:
    """Return the leaves that records with these codes at these places can end in."""
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
