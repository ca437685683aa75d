"""Sequential trees: each column is drawn from trees given the class and the columns before it.

The idea of synthpop (Nowok et al. 2016, J. Stat. Softw. 74(11)): fit one CART per column on the
columns before it, drop each new record down the tree and draw one of the values in its leaf. Here

- categories come before numbers, numbers with more distinct values before those with fewer; nulls
  are a level, or the lowest rank;
- a column has several trees, of which each record takes one (:mod:`.growth`);
- every predictor is an integer: a number's rank among the training values, a level's rank in an
  order made for the target (Fisher 1958, "On grouping for maximum homogeneity"), so one comparison
  splits a category well and the descent is exact;
- records have weight n_k**-0.5 by class, so rare classes shape the trees too: on mammography the
  minority's C2ST AUC went from 0.68 to 0.62 (6 splits), the whole table's stayed at 0.54;
- numbers are drawn between neighbours in the leaf, on the rank scale, so gaps of the real values
  stay empty; a value that several records share is returned as it is, a unique one never.

scikit-learn fits the trees; they are kept as plain arrays.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np

from prefect_augment.array_types import Float, Int, Int32
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import (
    MIN_SAMPLED_RECORDS,
    Arrays,
    Config,
    FitContext,
    TableData,
    TableSpec,
)
from prefect_augment.genmodels.checks import check_not_empty, check_request
from prefect_augment.genmodels.trees.growth import GROWTH, Columns, Leaf, Predictors, grow, too_near
from prefect_augment.genmodels.trees.nodes import TREE_ARRAYS, Tree, level_order
from prefect_augment.genmodels.trees.sequence import TreeSequence
from prefect_augment.params import TreesModel

MIN_LEAF = 5  # synthpop's default; below it a draw is close to a copy
# Bounds on grown leaves: at most this many times params.min_leaf, and at least this many per tree.
MAX_GROWN, LEAST_LEAVES = 2, 4
# Of the smallest sampled class's weight: with more, the first split may leave it no leaf of its own.
FILLED = 0.6

CLASS_WEIGHT_POWER = 0.5
# A category with more levels is predicted as the rank in an order of its levels.
MAX_TARGET_LEVELS = 64
# A value of a number with this share of the records is an atom (zero, a code).
HEAVY_SHARE = 0.03
# In a table of more than WIDE columns a tree is grown on the most relevant predictors. 16 of them take
# 0.57 of the time of 32 (160 columns), at the same C2ST AUC (0.710 and 0.709).
WIDE, MAX_PREDICTORS = 32, 16
MAX_ATOMS = 4  # atoms with an output of their own
# Largest training set, rarer classes whole: bounds memory.
MAX_TRAINING_RECORDS = 100_000


class TableTrees(TreeSequence):
    """Sequential trees as a :class:`~prefect_augment.genmodels.base.GenerativeModel`."""

    trained_in_steps: ClassVar[bool] = False
    max_training_records: ClassVar[int] = MAX_TRAINING_RECORDS

    @classmethod
    def build(cls, params: Any, spec: TableSpec) -> Self:
        """Return an untrained model; raises ParameterError for another model's params."""
        if not isinstance(params, TreesModel):
            raise ParameterError(f"sequential trees take TreesModel, not {type(params).__name__}.")
        return cls(params, spec)

    @property
    def n_steps(self) -> int:
        """Columns whose trees are fitted."""
        return len(self._trees)

    def fit(self, data: TableData, ctx: FitContext) -> None:
        """Fit the trees of each column; ``ctx.report`` is called once per column.

        Leaves grow while draws lie too near to training records. Raises EmptyClassError without
        records.
        """
        n_records = len(data.y)
        check_not_empty(n_records)
        self._trees, self._grids, self._shared, self._atoms = [], [], [], []
        # Columns as integer codes, (n_records, n_places).
        self._sequence = self._order(data.X)
        codes = np.empty((n_records, len(self._sizes)), dtype=np.int32)
        codes[:, 0] = data.y
        for place, j in enumerate(self._sequence, start=1):
            codes[:, place] = self._column_codes(j, data.X[:, j])
        counts = np.bincount(data.y, minlength=self.spec.n_classes)
        weights = (counts[data.y] ** -CLASS_WEIGHT_POWER).astype(np.float64)
        weights = weights * (n_records / weights.sum())
        predictors = Predictors(codes, self._sizes, most=MAX_PREDICTORS, wide=WIDE)
        columns = Columns(codes, weights, predictors, ctx.seed)
        leaf = Leaf(self._leaf_size(counts))
        most = self._most_weight(data.y, weights)
        # Grow the trees; enlarge the leaves while draws lie too near to the records.
        for place in range(1, len(self._sizes)):
            self._trees.append(self._fit_tree(place, columns, leaf))
            ctx.report(place, {"columns": float(place)})
        while leaf.share < most and too_near(data, self.spec, self.sample, seed=ctx.seed):
            share = max(leaf.share, leaf.n_records / n_records)
            leaf = replace(leaf, share=min(most, share * GROWTH))
            places = range(1, len(self._sizes))
            self._trees = [self._fit_tree(place, columns, leaf) for place in places]

    def _leaf_size(self, counts: Int) -> int:
        """Leaf size that the smallest sampled class can fill by itself."""
        sampled = counts[counts >= MIN_SAMPLED_RECORDS]
        smallest = int(sampled.min()) if sampled.size else int(counts.sum())
        return min(self.params.min_leaf, max(MIN_LEAF, smallest // 2))

    def _most_weight(self, y: Int, weights: Float) -> float:
        """Largest share of the total weight that a leaf may grow to.

        Every sampled class must still fill a leaf by itself, or it would be drawn like its
        neighbours. Records of a rare class weigh more, so its leaf then holds fewer of them.
        """
        counts, total = np.bincount(y), np.bincount(y, weights=weights)
        sampled = total[counts >= MIN_SAMPLED_RECORDS]
        smallest = float(sampled.min() / total.sum()) if sampled.size else 1.0
        requested = MAX_GROWN * self.params.min_leaf / len(y)
        return min(1 / LEAST_LEAVES, requested, FILLED * smallest)

    def _order(self, X: Float) -> list[int]:
        """Columns in drawing order: categories, then numbers, most distinct values first.

        Coarse columns are predicted better from finer ones than the other way round: on mammography
        the minority's C2ST AUC went from 0.555 to 0.527 (8 splits), the whole table's from 0.542 to
        0.535.
        """
        numbers = [j for j in self._sequence if not self.spec.is_category[j]]
        n_values = {j: len(np.unique(X[:, j])) for j in numbers}
        categories = [j for j in self._sequence if self.spec.is_category[j]]
        return categories + sorted(numbers, key=lambda j: (-n_values[j], j))

    def _column_codes(self, j: int, x: Float) -> Int32:
        """Column as integers: level codes with null last, or ranks with null -1."""
        missing = np.isnan(x)
        if self.spec.is_category[j]:
            return np.where(missing, self.spec.n_levels[j], x).astype(np.int32)
        grid, ranks, counts = np.unique(x[~missing], return_inverse=True, return_counts=True)
        self._grids.append(grid)
        self._shared.append(counts >= 2)
        self._atoms.append(counts >= max(2.0, HEAVY_SHARE * len(x)))
        codes = np.full(len(x), -1, dtype=np.int32)
        codes[~missing] = ranks
        return codes

    def _fit_tree(self, place: int, columns: Columns, leaf: Leaf) -> Tree:
        """Fit the trees of one place on the most relevant places before it."""
        codes, weights, before = columns.codes, columns.weights, columns.predictors.of(place)
        outputs, is_classes = self._targets(place, codes, weights)
        if place not in columns.orders:
            columns.orders[place] = {
                q: level_order(codes[:, q], self._sizes[q], outputs, weights)
                for q in before
                if self._sizes[q]
            }
        depth = self.params.max_depth
        return grow(
            place, columns, before, outputs, is_classes=is_classes, leaf=leaf, max_depth=depth
        )

    def _targets(self, place: int, codes: Int32, weights: Float) -> tuple[Float, bool]:
        """What the tree predicts, (n_records, n_outputs), and whether these are classes."""
        target = codes[:, place]
        if not self._sizes[place]:
            return self._number_targets(self._number(place), target), False
        levels, indices = np.unique(target, return_inverse=True)
        if len(levels) <= MAX_TARGET_LEVELS:
            return np.eye(len(levels))[indices], True
        # Many levels: by their rank in an order that follows the classes.
        by_class = np.eye(self.spec.n_classes)[codes[:, 0]]
        order = level_order(target, self._sizes[place], by_class, weights)
        return order[target].astype(np.float64)[:, None] / len(order), False

    def _number_targets(self, number: int, ranks: Int32) -> Float:
        """Mid-rank, missingness and atom indicators, (n_records, n_outputs)."""
        missing = ranks < 0
        if missing.all():
            return np.ones((len(ranks), 1))
        counts = np.bincount(ranks[~missing])
        below = (np.cumsum(counts) - counts / 2) / counts.sum()  # mid-ranks
        outputs = [np.where(missing, 0.5, below[ranks])]
        if missing.any():
            outputs.append(missing.astype(np.float64))
        heaviest = np.argsort(-counts, kind="stable")[:MAX_ATOMS]
        # Factor 0.5: an atom counts about as much as the distance between two quartiles.
        outputs.extend(0.5 * (ranks == v) for v in np.sort(heaviest) if self._atoms[number][v])
        return np.stack(outputs, axis=1)

    def sample(self, conditions: Int, *, seeds: Int) -> Float:
        """Draw one record per condition; see :meth:`.GenerativeModel.sample`."""
        return self.sample_with_values(conditions, seeds=seeds, values={})[1]

    def sample_with_values(
        self, conditions: Int, *, seeds: Int, values: Mapping[int, float]
    ) -> tuple[Int, Float]:
        """Draw records with fixed column values; see :class:`.SamplesWithValues`."""
        conditions, seeds = np.asarray(conditions, np.int64), np.asarray(seeds, np.int64)
        if len(self._trees) != self.spec.n_columns:
            raise ParameterError("the model has not been fitted; call fit, or load a checkpoint.")
        check_request(conditions, seeds, self.spec.classes)
        return self.drawn(conditions, seeds, values)

    def state(self) -> tuple[Config, Arrays]:
        """Params, spec and depths as JSON, and the arrays of trees and grids."""
        config: Config = {
            "params": self.params.model_dump(mode="json"),
            "spec": self.spec.to_config(),
            "sequence": self._sequence,
            "depths": [tree.depth for tree in self._trees],
        }
        arrays: Arrays = {}
        for i, tree in enumerate(self._trees):
            for name in TREE_ARRAYS:
                arrays[f"tree.{i:05d}.{name}"] = getattr(tree, name)
        for i, grid in enumerate(self._grids):
            arrays[f"number.{i:05d}.grid"] = grid
            arrays[f"number.{i:05d}.shared"] = self._shared[i]
            arrays[f"number.{i:05d}.atoms"] = self._atoms[i]
        return config, arrays

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays, *, device: str = "cpu") -> Self:
        """The model of a stored state; trees ignore the device."""
        model = cls(TreesModel.from_stored(config["params"]), TableSpec.from_config(config["spec"]))
        model._sequence = list(config["sequence"])
        for i, depth in enumerate(config["depths"]):
            fields = {name: arrays[f"tree.{i:05d}.{name}"] for name in TREE_ARRAYS}
            model._trees.append(Tree(**fields, depth=depth))
        for i in range(model.spec.n_columns - sum(model.spec.is_category)):
            model._grids.append(arrays[f"number.{i:05d}.grid"])
            model._shared.append(arrays[f"number.{i:05d}.shared"])
            model._atoms.append(arrays[f"number.{i:05d}.atoms"])
        return model
