"""MST: a table under differential privacy, from noisy counts of columns and of pairs of columns.

McKenna, Miklau and Sheldon 2021, "Winning the NIST Contest" (J. Privacy and Confidentiality 11(3)), algorithm 2:

1. count each column's cells, with Gaussian noise;
2. choose the pairs of columns that depend most on one another, as a spanning tree, by the exponential mechanism on the
   distance of the pair's counts from those of independent columns;
3. count the cells of these pairs, with Gaussian noise.

Records are drawn by class here, so step 3 also counts every column's pair with the class, and the tree is one of
columns alone. What follows looks at no record again: counts are projected onto what counts can be, the three pairs of
class, column and neighbour are made one table of largest entropy, and records are drawn along the tree.

Every mechanism, its noise and its privacy loss are OpenDP's. Here are only the sensitivities, where neighbours
differ in one record: the counts of each column and pair change by one in one cell, and a score of step 2 by at most
one. Noise comes from the operating system, since whoever knows its seed can take it away: training again gives
another model, and spends the privacy loss again.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
import opendp.prelude as dp

from prefect_augment.array_types import Array, Float, Int
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import Arrays, Config, FitContext, TableData, TableSpec
from prefect_augment.genmodels.checks import check_not_empty, check_request
from prefect_augment.genmodels.counter_rng import record_keys, uniform
from prefect_augment.params import MstModel
from prefect_augment.schema import PrivacyGuarantee

# OpenDP offers mechanisms only to who asks for those that are not through its whole review.
dp.enable_features("contrib")
MAX_RHO = 1e4
FINE = 256  # cells of equal width of a number between its bounds, which are joined to bins
ROOT = 0  # place of the class; column j has place j + 1
SPLIT = (0.3, 0.1, 0.6)  # of the privacy loss, over the three steps
MAX_CELLS = 2_000_000  # of class, column and neighbour together; larger pairs are no candidates
N_RAKINGS = 30


class TableMst:
    """MST as a :class:`~prefect_augment.genmodels.base.GenerativeModel`."""

    trained_in_steps: ClassVar[bool] = False
    reproducible: ClassVar[bool] = False
    max_training_records: ClassVar[int] = 1_000_000  # of which counts alone are kept

    def __init__(self, params: MstModel, spec: TableSpec) -> None:
        self.params, self.spec = params, spec
        self._edges: list[tuple[int, int]] = []  # parent (or the class) and child, in drawing order
        self._cells: list[Float] = []  # per column, the ends of its fine cells, or its levels
        self._below: list[Float] = []  # per column, the share below each end; empty for a category
        self._cuts: list[Int] = []  # per column, which ends bound a bin; as above
        # Per edge, of the child's cells given the class (and the parent).
        self._shares: list[Float] = []
        self._is_fitted = False

    @classmethod
    def build(cls, params: Any, spec: TableSpec) -> Self:
        """Return an untrained model.

        Raises ParameterError for another model's params, or a number without bounds where they have to be given.
        """
        if not isinstance(params, MstModel):
            raise ParameterError(f"MST takes MstModel, not {type(params).__name__}.")
        params.check_bounds([n for n, c in zip(spec.names, spec.is_category, strict=True) if not c])
        return cls(params, spec)

    @property
    def n_steps(self) -> int:
        """Columns that are learnt."""
        return len(self._edges)

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """What the training promises, and what it does not."""
        return PrivacyGuarantee(
            epsilon=self.params.epsilon,
            delta=self.params.delta,
            rho=loss_of(self.params.epsilon, self.params.delta),
            mechanism="MST (McKenna et al. 2021), mechanisms and accounting by OpenDP",
            bounds_from=self.params.bounds_from,
        )

    def fit(self, data: TableData, ctx: FitContext) -> None:
        """Measure the training records; ``ctx.report`` is called once per column.

        Raises EmptyClassError without records.
        """
        check_not_empty(len(data.y))
        columns = range(self.spec.n_columns)
        self._cells = [self._domain(j, data.X[:, j]) for j in columns]
        codes = [data.y, *(self._codes(j, data.X[:, j]) for j in columns)]
        sizes = [self.spec.n_classes, *(self._size(j) for j in columns)]
        for_columns, for_tree, for_pairs = (share * self.guarantee.rho for share in SPLIT)
        counts = [np.bincount(c, minlength=n) for c, n in zip(codes, sizes, strict=True)]
        ones = _with_noise(counts, for_columns)
        total = max(1.0, float(np.mean([one.sum() for one in ones])))
        shares = [_normalised(_projected(one, total)) for one in ones]
        self._below, self._cuts = [], []
        for j in columns:
            codes[j + 1], shares[j + 1] = self._joined(j, codes[j + 1], shares[j + 1])
            sizes[j + 1] = len(shares[j + 1])

        def pair(a: int, b: int) -> Float:
            flat = np.bincount(codes[a] * sizes[b] + codes[b], minlength=sizes[a] * sizes[b])
            return flat.reshape(sizes[a], sizes[b]).astype(np.float64)

        tree = _spanning_tree(pair, shares, total, for_tree)
        self._edges = _directed(tree, len(sizes))
        counted = _with_noise(
            [pair(ROOT, j + 1) for j in columns] + [pair(*e) for e in tree], for_pairs
        )
        by_class = {ROOT: shares[ROOT][:, None]}
        by_class |= {
            j + 1: _by_class(counted[j], total * shares[ROOT], shares[j + 1]) for j in columns
        }
        joint = {
            e: _projected(c.ravel(), total).reshape(c.shape)
            for e, c in zip(tree, counted[len(columns) :], strict=True)
        }
        joint |= {(b, a): table.T for (a, b), table in joint.items()}
        self._shares = []
        for step, (a, b) in enumerate(self._edges, start=1):
            known = (
                by_class[b] if a == ROOT else _raked(by_class[a], by_class[b], joint[a, b] / total)
            )
            self._shares.append(_given(known, by_class[b]))
            ctx.report(step, {"columns": float(step)})
        self._is_fitted = True

    def _domain(self, j: int, x: Float) -> Float:
        """Ends of a number's fine cells, or the levels of a category; NaN at the end if values may be missing."""
        values = x[~np.isnan(x)]
        if self.spec.is_category[j]:
            cells = np.unique(values)
        else:
            given = [(b.low, b.high) for b in self.params.bounds if b.column == self.spec.names[j]]
            seen = [(values.min(), values.max())] if values.size else []
            cells = np.empty(0)
            for low, high in (given or seen)[:1]:
                # The first and the last cell are the bounds themselves: zeros of what is rarely above it.
                cells = np.array([low, *np.linspace(low, high, 1 + FINE), high])
        # The encoder cannot write a missing value where it has seen none.
        return np.append(cells, np.nan) if values.size < x.size else cells

    def _size(self, j: int) -> int:
        """Number of a column's cells, the missing one included."""
        cells = self._cells[j]
        n = int((~np.isnan(cells)).sum())
        return max(0, n if self.spec.is_category[j] else n - 1) + int(np.isnan(cells).any())

    def _codes(self, j: int, x: Float) -> Int:
        """Cells of values; numbers outside of the bounds are clipped to them."""
        cells = self._cells[j][~np.isnan(self._cells[j])]
        if self.spec.is_category[j]:
            codes = np.searchsorted(cells, x)
        else:
            inner = np.searchsorted(cells[1:-1], x, side="right")
            inner = np.clip(inner, 1, max(1, len(cells) - 3))
            at_ends = [x <= cells[:1], x >= cells[-1:]] if cells.size else [np.isnan(x)] * 2
            codes = np.select(at_ends, [0, len(cells) - 2], inner)
        return np.where(np.isnan(x), self._size(j) - 1, codes).astype(np.int64)

    def _joined(self, j: int, codes: Int, shares: Float) -> tuple[Int, Float]:
        """Join a number's fine cells to bins of about equal shares; what comes back are codes and shares of bins."""
        n_ends = int((~np.isnan(self._cells[j])).sum())
        if self.spec.is_category[j] or n_ends < 2:
            self._below.append(np.empty(0))
            self._cuts.append(np.empty(0, dtype=np.int64))
            return codes, shares
        fine, missing = shares[: n_ends - 1], shares[n_ends - 1 :]
        below = np.append(0.0, np.cumsum(_normalised(fine)))
        inner = np.searchsorted(below, np.arange(1, self.params.bins) / self.params.bins)
        cuts = np.unique(np.concatenate([[0], inner, [n_ends - 1]]))
        self._below.append(below)
        self._cuts.append(cuts)
        bins = np.searchsorted(cuts, codes, side="right") - 1  # the missing cell is the last
        return bins, np.append(np.add.reduceat(fine, cuts[:-1]), missing)

    def sample(self, conditions: Int, *, seeds: Int) -> Float:
        """Draw one record per condition; see :meth:`.GenerativeModel.sample`."""
        if not self._is_fitted:
            raise ParameterError("the model has not been fitted; call fit, or load a checkpoint.")
        y, seeds = np.asarray(conditions, np.int64), np.asarray(seeds, np.int64)
        check_request(y, seeds, self.spec.classes)
        keys = record_keys(seeds)
        codes: dict[int, Int] = {ROOT: y}
        X = np.empty((len(y), self.spec.n_columns))
        for (parent, child), shares in zip(self._edges, self._shares, strict=True):
            rows = shares[y] if parent == ROOT else shares[y, codes[parent]]
            u = uniform(keys, 2 * child)
            codes[child] = (u[:, None] >= np.cumsum(rows, axis=1)[:, :-1]).sum(axis=1)
            X[:, child - 1] = self._values(child - 1, codes[child], uniform(keys, 2 * child + 1))
        return X

    def _values(self, j: int, codes: Int, u: Float) -> Float:
        """Values of cells: a level, a number drawn between the ends of its bin, or NaN."""
        ends = self._cells[j][~np.isnan(self._cells[j])]
        if not ends.size:
            return np.full(len(codes), np.nan)
        below = self._below[j][self._cuts[j]]
        n_cells = len(ends) if self.spec.is_category[j] else len(below) - 1
        is_missing = codes >= n_cells
        inside = np.where(is_missing, 0, codes)
        if self.spec.is_category[j]:
            values = ends[inside]
        else:
            share = below[inside] + u * (below[inside + 1] - below[inside])
            values = np.interp(share, self._below[j], ends)
        return np.where(is_missing, np.nan, values)

    def state(self) -> tuple[Config, Arrays]:
        """Params, spec and tree as JSON; cells and shares as arrays.

        The guarantee covers all of it but which levels and missing values there are, and ranges read off the records.
        """
        config: Config = {
            "params": self.params.model_dump(mode="json"),
            # Without the counts, which are exact.
            "spec": self.spec.to_config() | {"class_counts": [0] * self.spec.n_classes},
            "edges": [list(edge) for edge in self._edges],
        }
        parts: dict[str, Sequence[Array]] = {
            "cells": self._cells,
            "below": self._below,
            "cuts": self._cuts,
            "shares": self._shares,
        }
        return config, {f"{k}.{i:05d}": a for k, part in parts.items() for i, a in enumerate(part)}

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays, *, device: str = "cpu") -> Self:
        """The model of a stored state; the device is ignored."""
        model = cls(MstModel.from_stored(config["params"]), TableSpec.from_config(config["spec"]))
        model._edges = [(int(a), int(b)) for a, b in config["edges"]]
        columns = range(model.spec.n_columns)
        model._cells = [arrays[f"cells.{i:05d}"] for i in columns]
        model._below = [arrays[f"below.{i:05d}"] for i in columns]
        model._cuts = [arrays[f"cuts.{i:05d}"] for i in columns]
        model._shares = [arrays[f"shares.{i:05d}"] for i in range(len(model._edges))]
        model._is_fitted = True
        return model


# --- what looks at records: OpenDP's mechanisms ------------------------------------------------


@cache
def loss_of(epsilon: float, delta: float) -> float:
    """The largest zero-concentrated privacy loss rho that is (epsilon, delta)-private, by OpenDP's conversion.

    Bun and Steinke 2016, "Concentrated Differential Privacy"; Canonne, Kamath and Steinke 2020, proposition 12.

    >>> round(loss_of(1.0, 1e-6), 4)
    0.0244
    """
    space = dp.atom_domain(T=int), dp.absolute_distance(T=float)

    def converted(rho: float) -> float:
        gaussian = dp.m.make_gaussian(*space, scale=(0.5 / rho) ** 0.5)
        return float(dp.c.make_zCDP_to_approxDP(gaussian).map(1.0).epsilon(delta))

    return float(dp.binary_search(lambda rho: converted(rho) <= epsilon, bounds=(1e-9, MAX_RHO)))


def _with_noise(counts: list[Array], rho: float) -> list[Float]:
    """Tables of counts with discrete Gaussian noise, at a privacy loss of ``rho`` for all of them.

    A record is in one cell of each, so neighbours' counts differ by the root of the number of tables.
    """
    if not counts:
        return []
    flat = np.concatenate([table.ravel() for table in counts]).astype(np.int64)
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)

    def make(scale: float) -> Any:
        return dp.m.make_gaussian(*space, scale=scale)

    d_in = float(len(counts)) ** 0.5
    mechanism = make(dp.binary_search_param(make, d_in=d_in, d_out=rho, T=float))
    noisy = np.array(mechanism(flat.tolist()), dtype=np.float64)
    ends = np.cumsum([table.size for table in counts])[:-1]
    return [part.reshape(t.shape) for part, t in zip(np.split(noisy, ends), counts, strict=True)]


def _spanning_tree(
    pair: Callable[[int, int], Float], shares: list[Float], total: float, rho: float
) -> list[tuple[int, int]]:
    """Pairs of columns that depend on one another, chosen at a loss of ``rho``.

    Kruskal's algorithm, where the next edge is drawn by the exponential mechanism. The score of a pair is the sum of
    the absolute differences of its counts from those of independent columns, of which only the first look at records.
    """
    places, n_classes = range(1, len(shares)), len(shares[ROOT])
    every = [
        (a, b)
        for a in places
        for b in range(a + 1, len(shares))
        if n_classes * len(shares[a]) * len(shares[b]) <= MAX_CELLS
    ]
    if not every:
        return []
    scores = {
        (a, b): float(np.abs(pair(a, b) - total * np.outer(shares[a], shares[b])).sum())
        for a, b in every
    }
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.linf_distance(T=float)
    measure = dp.zero_concentrated_divergence()

    def make(scale: float) -> Any:
        return dp.m.make_noisy_max(*space, measure, scale=scale)

    mechanism = make(dp.binary_search_param(make, d_in=1.0, d_out=rho / (len(places) - 1), T=float))
    part = {place: place for place in places}  # the tree that it is in
    edges = []
    while open_pairs := [(a, b) for a, b in every if part[a] != part[b]]:
        a, b = open_pairs[int(mechanism([scores[edge] for edge in open_pairs]))]
        edges.append((a, b))
        part = {p: part[a] if t == part[b] else t for p, t in part.items()}
    return edges


# --- what looks at no record -------------------------------------------------------------------


def _directed(tree: list[tuple[int, int]], n_places: int) -> list[tuple[int, int]]:
    """Parent and child of every column, parents first; the class is the parent of a tree's first column.

    >>> _directed([(2, 3), (1, 3)], 5)
    [(0, 1), (1, 3), (3, 2), (0, 4)]
    """
    ordered: list[tuple[int, int]] = []
    for first in range(1, n_places):
        if any(first == child for _, child in ordered):
            continue
        ordered.append((ROOT, first))
        reached = [first]
        for parent in reached:  # grows
            for edge in (edge for edge in tree if parent in edge):
                child = edge[0] if edge[1] == parent else edge[1]
                if all(child != known for _, known in ordered):
                    ordered.append((parent, child))
                    reached.append(child)
    return ordered


def _by_class(counted: Float, of_class: Float, of_column: Float) -> Float:
    """Joint shares of class and column: each class's counts projected onto what they can be.

    A class that hardly any record has takes the column's own shares.
    """
    rows = [
        _projected(row, n) if n >= 1 else n * of_column
        for row, n in zip(counted, of_class, strict=True)
    ]
    return _normalised(np.array(rows))


def _raked(with_a: Float, with_b: Float, joint: Float) -> Float:
    """The table of class, a and b of largest entropy with these pairs: iterative proportional fitting.

    Deming and Stephan 1940. The pairs are noisy and may contradict one another; the class's are fitted last.
    """
    shares = np.einsum("ka,kb->kab", with_a, with_b)
    for _ in range(N_RAKINGS):
        for axis, target in ((0, joint), (2, with_a), (1, with_b)):
            sums = shares.sum(axis=axis)
            factor = np.divide(target, sums, out=np.zeros_like(sums), where=sums > 0)
            shares = shares * np.expand_dims(factor, axis)
    return shares


def _given(shares: Float, fallback: Float) -> Float:
    """Shares of the last column given the others; those given the class where the others never meet."""
    sums = shares.sum(axis=-1, keepdims=True)
    if shares.ndim == 2:
        even = np.full_like(shares, 1.0 / max(1, shares.shape[-1]))
        return np.divide(shares, sums, out=even, where=sums > 0)
    instead = np.broadcast_to(_given(fallback, fallback)[:, None, :], shares.shape).copy()
    return np.divide(shares, sums, out=instead, where=sums > 0)


def _projected(noisy: Float, total: float) -> Float:
    """The nearest counts that are not negative and sum to ``total`` (Duchi et al. 2008, figure 1).

    >>> _projected(np.array([5.0, 3.0, -4.0]), 6.0)
    array([4., 2., 0.])
    """
    falling = np.sort(noisy)[::-1]
    excess = np.cumsum(falling) - total
    last = np.flatnonzero(falling - excess / np.arange(1, len(noisy) + 1) > 0)[-1]
    return np.maximum(noisy - excess[last] / (last + 1), 0.0)


def _normalised(counts: Float) -> Float:
    """Shares of counts, even where all are zero."""
    sums = counts.sum()
    return counts / sums if sums > 0 else np.full(counts.shape, 1.0 / max(1, counts.size))
