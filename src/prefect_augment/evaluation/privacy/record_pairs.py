"""All pairs of real and synthetic records, compared column by column in bounded memory.

Attacks see records through a *view*: the columns of a table, their ranks, or whole images. A view of
``n_parts`` gives differences in each of them; from these come distances over any subset of the parts.

Singling out, linkability and inference are the three risks that European regulators name. Each attack says of every
real record whether it succeeds on it. What it succeeds with on records that the generator never saw is what chance and
the population give. Giomi et al. 2022, "A Unified Framework for Quantifying Privacy Risk in Synthetic Data"
(Anonymeter); Article 29 Working Party 2014, Opinion 05.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from scipy.stats import rankdata

from prefect_augment.array_types import Bool, Float, Float32, Int, Int32
from prefect_augment.evaluation.neighbours import Points, Space
from prefect_augment.nn.threads import single_threaded

BLOCK_VALUES = 4_000_000  # 16 MB of differences at a time
FARTHEST = 1e6  # of a scaled column: single precision can square it
N_SPLITS = 6  # into halves, of which each is a subset
N_SMALL = 6  # pairs and as many threes


@dataclass(frozen=True)
class Columns:
    """A table's records: scaled numbers with their nulls, and level codes."""

    numbers: Float32  # (n, n_numeric)
    nulls: Float32  # (n, n_numeric) 1 for a null
    levels: Int32  # (n, n_category)

    @classmethod
    def of(cls, points: Points, columns: Int) -> "Columns":
        """These columns of records in a table's feature space; numbers come before categories."""
        n_numeric = points.numbers.shape[1] // 2
        numeric, category = columns[columns < n_numeric], columns[columns >= n_numeric]
        numbers = np.clip(points.numbers[:, numeric], -FARTHEST, FARTHEST)
        return cls(
            numbers.astype(np.float32),
            points.numbers[:, n_numeric + numeric].astype(np.float32),
            points.levels[:, category - n_numeric],
        )

    @property
    def n_parts(self) -> int:
        """Numeric columns, then categories."""
        return self.numbers.shape[1] + self.levels.shape[1]

    def __len__(self) -> int:
        return len(self.numbers)

    def differences(self, other: "Columns", rows: slice) -> Float32:
        """Absolute ones of numbers, 1 more beside a null; 0 or 1 of levels."""
        n, m = len(self), rows.stop - rows.start
        differences = np.empty((self.n_parts, n, m), dtype=np.float32)
        n_numeric = self.numbers.shape[1]
        for j in range(n_numeric):
            of = differences[j]
            np.subtract(self.numbers[:, j, None], other.numbers[None, rows, j], out=of)
            np.abs(of, out=of)
            a, b = self.nulls[:, j], other.nulls[rows, j]
            if a.any() or b.any():
                of += a[:, None] != b
        for j in range(self.levels.shape[1]):
            differences[n_numeric + j] = self.levels[:, j, None] != other.levels[None, rows, j]
        return differences

    def ranked(self) -> "Columns":
        """Numbers as their ranks in this set, from 0 to 1; any increasing change of a column keeps them."""
        if not self.numbers.size:
            return self
        ranks = (rankdata(self.numbers, axis=0) - 0.5) / len(self)
        ranks[self.nulls > 0] = 0.5
        return Columns(ranks.astype(np.float32), self.nulls, self.levels)


@dataclass(frozen=True)
class Whole:
    """Records with distances as a whole: images."""

    space: Space
    points: Any
    n_parts: ClassVar[int] = 1

    def __len__(self) -> int:
        return len(self.points)

    def differences(self, other: "Whole", rows: slice) -> Float32:
        """The root of the distance, since 1 - correlation grows with the square of a change."""
        distances = self.space.distances(self.points, other.points[rows])
        return np.sqrt(np.maximum(distances, 0.0))[None].astype(np.float32)


@dataclass(frozen=True)
class Pairs:
    """Records of one view compared with those of another."""

    nearest: Float32  # (n_subsets, n) distance to the nearest, over each subset of parts
    rows: Int  # (n_subsets, n) the nearest one; the first of equals
    squares: Float32  # (n, m) squared distances over all parts; infinite to itself


View = TypeVar("View", Columns, Whole)


def compare(a: View, b: View, subsets: Float32) -> Pairs:
    """Compare all records of ``a`` with those of ``b``; with themselves if both are one object.

    ``subsets``, shape (n_subsets, n_parts), has the weight of each part.
    """
    n, m = len(a), len(b)
    nearest = np.full((len(subsets), n), np.inf, dtype=np.float32)
    nearest_rows = np.zeros((len(subsets), n), dtype=np.int64)
    squares = np.empty((n, m), dtype=np.float32)
    with single_threaded():
        size = max(1, BLOCK_VALUES // max(1, n * (a.n_parts + len(subsets))))
        for start in range(0, m, size):
            rows = slice(start, min(start + size, m))
            differences = a.differences(b, rows).reshape(a.n_parts, -1)
            distances = (subsets @ differences).reshape(len(subsets), n, rows.stop - rows.start)
            squares[:, rows] = np.einsum("ij,ij->j", differences, differences).reshape(n, -1)
            if a is b:
                own = np.arange(rows.start, rows.stop)
                distances[:, own, own - rows.start] = np.inf
                squares[own, own] = np.inf
            best = distances.argmin(axis=2)
            values = np.take_along_axis(distances, best[:, :, None], axis=2)[:, :, 0]
            better = values < nearest
            nearest[better] = values[better]
            nearest_rows[better] = best[better] + rows.start
    return Pairs(nearest, nearest_rows, squares)


def random_subsets(n_parts: int, rng: np.random.Generator) -> Float32:
    """Subsets of the columns as 0 and 1, shape (n_subsets, n_parts): halves, and random twos and threes.

    The first two are the halves in the columns' order, and each half is followed by its complement.
    """
    chosen = []
    for split in range(N_SPLITS if n_parts > 1 else 0):
        order = np.arange(n_parts) if split == 0 else rng.permutation(n_parts)
        chosen += [order[: n_parts // 2], order[n_parts // 2 :]]
    for size in (2, 3):
        if size < n_parts:
            chosen += [rng.permutation(n_parts)[:size] for _ in range(N_SMALL)]
    subsets = np.zeros((len(chosen), n_parts), dtype=np.float32)
    for row, parts in zip(subsets, chosen, strict=True):
        row[parts] = 1.0
    return subsets


N_SECRETS = 6
CLOSE = 0.05  # of the range between the 5 % and 95 % quantiles: a number guessed right
N_PREDICATES = 300  # tried per class
MOST_COLUMNS = 4  # in a predicate


def singled_out(real: Columns, synthetic: Columns, rng: np.random.Generator) -> Bool:
    """Which real records a predicate of the synthetic table singles out, shape (n,).

    A predicate takes one to four columns of a synthetic record: at least its number where that is above the
    median, else at most, and its level. It is used if it holds for that record alone among the synthetic
    ones, and succeeds on a real record if it holds for that one alone among the real ones. These are members
    and others together; Giomi et al. look at each by itself, which asks for as many of both.
    """
    singled = np.zeros(len(real), dtype=bool)
    median = np.median(synthetic.numbers, axis=0)
    sizes = rng.integers(1, min(MOST_COLUMNS, real.n_parts) + 1, size=N_PREDICATES)
    for row, size in zip(rng.integers(0, len(synthetic), size=N_PREDICATES), sizes, strict=True):
        columns = rng.choice(real.n_parts, size=size, replace=False)
        if _holds(synthetic, synthetic, row, columns, median).sum() == 1:
            matched = np.flatnonzero(_holds(real, synthetic, row, columns, median))
            if len(matched) == 1:
                singled[matched] = True
    return singled


def _holds(of: Columns, synthetic: Columns, row: int, columns: Int, median: Float32) -> Bool:
    """For which records the predicate of a synthetic record holds."""
    holds = np.ones(len(of), dtype=bool)
    n_numeric = of.numbers.shape[1]
    for j in columns:
        if j >= n_numeric:
            holds &= of.levels[:, j - n_numeric] == synthetic.levels[row, j - n_numeric]
            continue
        value, null = synthetic.numbers[row, j], synthetic.nulls[row, j]
        numbers = of.numbers[:, j]
        holds &= of.nulls[:, j] == null
        if not null:
            holds &= numbers >= value if value >= median[j] else numbers <= value
    return holds


def without_each(n_parts: int, rng: np.random.Generator) -> tuple[Int, Float32]:
    """Columns that are kept secret in turn, and the other columns of each, (n_secrets, n_parts)."""
    secrets = np.sort(rng.permutation(n_parts)[:N_SECRETS]) if n_parts > 1 else np.zeros(0, int)
    known = np.ones((len(secrets), n_parts), dtype=np.float32)
    known[np.arange(len(secrets)), secrets] = 0.0
    return secrets, known


def inferred_shares(real: Columns, synthetic: Columns, secrets: Int, nearest: Int) -> Float:
    """Share of the secret columns that are guessed right of each record, shape (n,).

    The guess is the value of the synthetic record that is nearest by the other columns, ``nearest`` of
    shape (n_secrets, n).
    """
    right = np.zeros(len(real))
    n_numeric = real.numbers.shape[1]
    for j, rows in zip(secrets, nearest, strict=True):
        if j >= n_numeric:
            right += real.levels[:, j - n_numeric] == synthetic.levels[rows, j - n_numeric]
        else:
            off = np.abs(real.numbers[:, j] - synthetic.numbers[rows, j])
            right += (off <= CLOSE) & (real.nulls[:, j] == synthetic.nulls[rows, j])
    return right / max(1, len(secrets))
