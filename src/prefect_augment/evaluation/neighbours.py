"""Distances between records, which candidates are near copies, and exact tests of whether they lie as real ones do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.stats import hypergeom

from prefect_augment.array_types import Array, Bool, Float, Int, Int32

FEATURE_SPACE = (
    "mean over the columns of |difference| / (95 % - 5 % quantile) for numbers and 0 or 1 for "
    "categories; a null counts as the median, plus 1 beside a value"
)
BLOCK_BYTES = 8 << 20  # of each thread
MOST_THREADS = 4
# Of tables, whose distances are sums over columns: a block stays in the cache.
CACHED_BYTES = 2 << 20
# A 5 % quantile of fewer records is little more than their minimum.
MIN_VALIDATION = 20
# A tree beats comparing all pairs on purely numeric records, while there are few columns.
TREE_MAX_COLUMNS = 12
TREE_MIN_PAIRS = 2_000_000


class Space(Protocol):
    """A space in which records of some kind have distances; equal records alone have distance 0.

    Points are a class of the space's own that has a length and can be indexed by rows.
    """

    @property
    def name(self) -> str:
        """What the report calls the space."""
        ...

    def place(self, X: Array, /) -> Any:
        """Records, shape (n_records, ...), as points."""
        ...

    def distances(self, a: Any, b: Any, /) -> Float:
        """All distances, shape (len(a), len(b))."""
        ...

    def nearest(self, a: Any, b: Any, /) -> Float:
        """Distance of each of ``a`` to its nearest one in ``b``; infinite where ``b`` is empty."""
        return nearest_by_blocks(self.distances, a, b) if len(b) else np.full(len(a), np.inf)

    def nearest_others(self, a: Any, /) -> Float:
        """Distance of each to the nearest other one; infinite where there is none."""
        if len(a) < 2:
            return np.full(len(a), np.inf)
        return nearest_by_blocks(self.distances, a, a, to_others=True)


@dataclass(frozen=True)
class Points:
    """Records in the feature space of tables."""

    numbers: Float  # (n, n_numeric + n_numeric_with_nulls) scaled numbers, then null indicators
    levels: Int32  # (n, n_category) level codes, -1 for null

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Int | Bool | slice) -> "Points":
        return Points(self.numbers[rows], self.levels[rows])


LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class FeatureSpace:
    """Scaled columns of tables, fitted to *training* records and used for all."""

    is_category: Bool  # (n_columns,)
    # (n_numeric,) of finite training values; infinite values count as the nearest finite one
    median: Float
    scale: Float
    low: Float
    high: Float

    @classmethod
    def of(cls, X: Float, is_category: Bool) -> "FeatureSpace":
        """The space of these records, shape (n_records, n_columns), NaN for null."""
        summaries = np.array([_summary(column) for column in X[:, ~is_category].T]).reshape(-1, 4)
        return cls(is_category, *summaries.T)

    @property
    def name(self) -> str:
        """What the report calls the space."""
        return FEATURE_SPACE

    def place(self, X: Float) -> Points:
        """Records in this space."""
        values = X[:, ~self.is_category]
        # Only infinite values are limited: an outlier keeps its distance.
        values = np.where(np.isinf(values), np.clip(values, self.low, self.high), values)
        null = np.isnan(values)
        with np.errstate(over="ignore"):
            numbers = (np.where(null, self.median, values) - self.median) / self.scale
        numbers = np.clip(numbers, -LARGEST, LARGEST)
        codes = X[:, self.is_category]
        levels = np.where(np.isnan(codes), -1, codes).astype(np.int32)
        return Points(np.hstack([numbers, null]), levels)

    def distances(self, a: Points, b: Points) -> Float:
        """All distances, shape (len(a), len(b)); the caller bounds the size."""
        total: Float = cdist(a.numbers, b.numbers, "cityblock")
        # Mismatches are counted in small integers, which the processor adds many at a time.
        count = np.zeros(total.shape, dtype=np.min_scalar_type(a.levels.shape[1]))
        for x, y in zip(a.levels.T, np.ascontiguousarray(b.levels.T), strict=True):
            count += (x[:, None] != y).view(np.uint8)
        total += count
        total /= max(1, len(self.is_category))
        return total

    def nearest(self, a: Points, b: Points) -> Float:
        """Distance of each record of ``a`` to its nearest one in ``b``; takes at most 100 MiB."""
        return self._nearest(a, b, to_others=False)

    def nearest_others(self, a: Points) -> Float:
        """Distance of each record to the nearest other one of the same set, shape (len(a),)."""
        return self._nearest(a, a, to_others=True)

    def _nearest(self, a: Points, b: Points, *, to_others: bool) -> Float:
        if len(b) == 0 or (to_others and len(b) == 1):
            return np.full(len(a), np.inf)
        # Most null indicators are 0 throughout.
        used = (a.numbers != 0).any(axis=0) | (b.numbers != 0).any(axis=0)
        a, b = Points(a.numbers[:, used], a.levels), Points(b.numbers[:, used], b.levels)
        numeric = a.levels.shape[1] == 0 and 0 < a.numbers.shape[1] <= TREE_MAX_COLUMNS
        if numeric and len(a) * len(b) >= TREE_MIN_PAIRS:
            k = 2 if to_others else 1  # the nearest of all is the record itself, or its twin
            distances, _ = cKDTree(b.numbers).query(a.numbers, k=[k], p=1)
            return distances[:, 0] / len(self.is_category)
        return nearest_by_blocks(
            self.distances, a, b, to_others=to_others, block_bytes=CACHED_BYTES
        )


def nearest_by_blocks(
    distances: Callable[[Any, Any], Float],
    a: Any,
    b: Any,
    *,
    to_others: bool = False,
    k: int = 1,
    block_bytes: int = BLOCK_BYTES,
) -> Float:
    """Distance of each point of ``a`` to its k-th nearest in ``b``, in a bounded amount of memory and several threads.

    With ``to_others``, ``b`` is ``a`` and a point is not its own neighbour. ``b`` has at least k points.
    """
    size = max(1, block_bytes // (8 * len(b)))

    def nearest(start: int) -> Float:
        rows = np.arange(start, min(start + size, len(a)))
        block = distances(a[rows], b)
        if to_others:
            block[np.arange(len(rows)), rows] = np.inf
        best: Float = block.min(axis=1) if k == 1 else np.partition(block, k - 1, axis=1)[:, k - 1]
        return best

    # numpy and scipy release the interpreter; as many threads as Arrow has, which OMP_NUM_THREADS bounds.
    with ThreadPoolExecutor(min(MOST_THREADS, pa.cpu_count())) as pool:
        return np.concatenate([np.empty(0), *pool.map(nearest, range(0, len(a), size))])


def real_distances(space: Space, training: Any, validation: Any) -> Float:
    """Distances of real records to the nearest training record, to compare candidates' with.

    Those of validation records; with fewer than 20, those of training records to one another.
    """
    is_enough = len(validation) >= MIN_VALIDATION
    distances = space.nearest(validation, training) if is_enough else space.nearest_others(training)
    return distances[np.isfinite(distances)]


def near_limit(real: Float, quantile: float) -> float:
    """Distance below which a record that is no exact copy counts as too near.

    The quantile of ``real``; where that is 0 (real records are exact copies themselves), the
    quantile of the positive distances. 0 where there are none.
    """
    limit = float(np.quantile(real, quantile))
    positive = real[real > 0]
    return limit if limit > 0 or not len(positive) else float(np.quantile(positive, quantile))


def near_copies(
    distance: Float, real: Float, quantile: float, ordinals: Int, remaining: Bool
) -> Bool:
    """Which candidates are nearer to a training record than the quantile of real records.

    Where that quantile is 0, real records are exact copies themselves. Then exact copies among the
    ``remaining`` candidates may make up the same share, first ordinals first, and the others are
    compared with the quantile of the positive distances.
    """
    limit = near_limit(real, quantile)
    near: Bool = distance < limit
    if limit == 0 or np.quantile(real, quantile) > 0:
        return near
    # Real records are exact copies themselves: as large a share of copies may stay.
    positive = real[real > 0]
    near &= distance > 0
    n_others = int((remaining & (distance > 0) & ~near).sum())
    # The share s is of copies and others together: n / (n + n_others) <= s.
    n_allowed = (len(real) - len(positive)) * n_others // len(positive)
    exact = np.flatnonzero(remaining & (distance == 0))
    in_order = exact[np.argsort(ordinals[exact], kind="stable")]
    near[in_order[n_allowed:]] = True
    return near


def _summary(column: Float) -> tuple[float, float, float, float]:
    """Median, scale, smallest and largest finite value; a column without any lies at 0."""
    finite = column[np.isfinite(column)]
    if not len(finite):
        return 0.0, 1.0, 0.0, 0.0
    q05, median, q95 = np.quantile(finite, [0.05, 0.5, 0.95])
    low, high = float(finite.min()), float(finite.max())
    # Mostly one value (an inflated zero): the whole range. Constant: any difference is large.
    with np.errstate(over="ignore"):
        scale = (q95 - q05) or (np.float64(high) - low) or 1.0
    return float(median), float(min(scale, LARGEST)), low, high


def more_below(candidates: Float, real: Float, share: float) -> float:
    """P-value of as many candidates below the ``share`` quantile of real values, if all were alike.

    By the negative hypergeometric distribution: of the first x + r - 1 of all m + n values in order, at
    most r - 1 are real. Ties count as not below, which makes the test conservative.
    """
    n, m = len(real), len(candidates)
    r = max(1, int(np.ceil(share * n)))
    x = int((candidates < np.partition(real, r - 1)[r - 1]).sum())
    return float(hypergeom.cdf(r - 1, m + n, n, x + r - 1)) if x else 1.0


def more_true(candidates: Bool, real: Bool) -> float:
    """P-value of as many true candidates, if candidates and real records were alike (Fisher's exact test)."""
    n_true, n_all = int(candidates.sum() + real.sum()), len(candidates) + len(real)
    return float(hypergeom.sf(int(candidates.sum()) - 1, n_all, n_true, len(candidates)))
