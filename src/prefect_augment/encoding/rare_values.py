"""Values that stand for a person: levels of few records, and numbers of one record.

A value that one person has shows whoever sees it that the person is in the data, so none comes out
of a generator. Of a category, only levels that enough records share are learnt (as in k-anonymity,
Sweeney 2002, Int. J. Uncertain. Fuzz. 10(5)); a record with a rare one is learnt with a frequent
one. Of a number, a draw that meets a value of a single record is moved to the nearest free value.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from prefect_augment.array_types import Array, Bool, Float, Int
from prefect_augment.encoding.codecs import NumberCodec

MIN_LEVEL_RECORDS = 5
# Distinct numbers of a column that are kept for this, where only those learnt can be drawn.
MAX_NUMBERS = 1_000_000
AT_ONCE = 1 << 20  # numbers that are sorted together
MAX_STEPS = 64  # of a grid, that a number may move; then to the nearest shared value


@dataclass(frozen=True)
class RareValues:
    """Values of training records, by column of the matrix.

    ``numbers`` has a column's distinct values, sorted, and which of them one record alone has;
    columns without such a value are left out. ``levels`` has the codes that enough records share.
    """

    numbers: Mapping[int, tuple[Float, Bool]]
    levels: Mapping[int, Int]
    _targets: dict[int, tuple[Float, Float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, X: Float, is_category: Bool, *, min_records: int = MIN_LEVEL_RECORDS) -> Self:
        """Count the values of records (n_records, n_columns) in matrix form; NaN is no value.

        ``min_records`` is what a level needs to be frequent; 1 takes every value for frequent, numbers too.
        """
        numbers: dict[int, tuple[Float, Bool]] = {}
        levels: dict[int, Int] = {}
        for j in range(X.shape[1]):
            values, counts = np.unique(X[~np.isnan(X[:, j]), j], return_counts=True)
            if is_category[j]:
                levels[j] = values[counts >= min_records].astype(np.int64)
            elif min_records > 1 and (counts == 1).any():
                numbers[j] = (values, counts == 1)
        return cls(numbers, levels)

    def apart(self, j: int, x: Float, codec: NumberCodec) -> Float:
        """Draws (n,) of a number's column, moved where one would be written as a unique value.

        Halfway to the next value, or where that is taken to the nearest free place of the grid or value that several
        records have. A grid of single records without a free place stays as it is: it tells nobody apart.
        """
        if j not in self.numbers:
            return x
        if j not in self._targets:
            values, is_unique = self.numbers[j]
            self._targets[j] = _targets(values, is_unique, codec)
        rare, targets = self._targets[j]
        shown = codec.snapped(x)
        place = np.searchsorted(rare, shown).clip(0, len(rare) - 1)
        hit = rare[place] == shown
        return np.where(hit, targets[(x < shown).astype(np.int64), place], x)

    @property
    def without_level(self) -> list[int]:
        """Categories of which no level is frequent: synthetic records have none."""
        return [j for j, levels in self.levels.items() if not levels.size]

    def arrays(self) -> dict[str, Array]:
        """The values by name, for storage."""
        stored: dict[str, Array] = {}
        for j, (values, is_unique) in self.numbers.items():
            stored |= {f"rare.{j:05d}.values": values, f"rare.{j:05d}.unique": is_unique}
        return stored | {f"rare.{j:05d}.levels": levels for j, levels in self.levels.items()}

    @classmethod
    def from_arrays(cls, stored: Mapping[str, Array]) -> Self:
        """Inverse of :meth:`arrays`; other names are left alone."""
        names = sorted(name.split(".") for name in stored if name.startswith("rare."))
        of = {(int(j), what): stored[f"rare.{j}.{what}"] for _, j, what in names}
        return cls(
            {j: (of[j, "values"], of[j, "unique"]) for j, what in of if what == "values"},
            {j: of[j, what] for j, what in of if what == "levels"},
        )


def count_values(
    batches: Callable[[], Iterator[Float]], learnt: Float, *, most: int = 0
) -> tuple[Float, Int]:
    """Distinct numbers, sorted, and how many records have each; NaN is no value.

    Each call of ``batches`` yields a column's numbers from the start. Above ``most`` distinct ones (0: no limit)
    only those of the records ``learnt`` (n,) are counted.
    """
    values, counts = np.zeros(0), np.zeros(0, dtype=np.int64)
    waiting: list[Float] = []
    for x in batches():
        waiting.append(x[~np.isnan(x)])
        if sum(map(len, waiting)) >= max(AT_ONCE, len(values)):
            values, counts = _merged(values, counts, waiting)
            waiting = []
        if 0 < most < len(values):
            break
    values, counts = _merged(values, counts, waiting)
    if not 0 < most < len(values):
        return values, counts
    values = np.unique(learnt[~np.isnan(learnt)])
    counts = np.zeros(len(values), dtype=np.int64)
    for x in batches():
        place = np.searchsorted(values, x).clip(0, len(values) - 1)
        counts += np.bincount(place[values[place] == x], minlength=len(values))
    return values, counts


def _merged(values: Float, counts: Int, more: list[Float]) -> tuple[Float, Int]:
    distinct, n = np.unique(np.concatenate([np.zeros(0), *more]), return_counts=True)
    every, place = np.unique(np.concatenate([values, distinct]), return_inverse=True)
    total = np.bincount(place, np.concatenate([counts, n]), len(every))
    return every, total.astype(np.int64)


def _targets(values: Float, is_unique: Bool, codec: NumberCodec) -> tuple[Float, Float]:
    """Values of single records, and where a draw of each goes: (2, n), from above and from below."""
    rare, shared = values[is_unique], values[~is_unique]
    targets = np.stack([rare, rare])
    n_places = 1 + round((values[-1] - values[0]) / codec.spacing) if codec.spacing else math.inf
    for row, side in enumerate((1.0, -1.0)):
        left = np.arange(len(rare) if n_places > len(values) else 0)
        # First halfway to the next value, then step by step along the grid.
        for steps in range(MAX_STEPS if codec.spacing else 1):
            if not left.size:
                break
            for sign in (side, -side):
                moved = codec.snapped(_moved(values, rare[left], sign, steps * codec.spacing))
                is_free = ~np.isnan(moved) & ~np.isin(moved, rare)
                targets[row, left[is_free]] = moved[is_free]
                left = left[~is_free]
    stuck = targets == rare
    if shared.size and stuck.any():
        after = np.searchsorted(shared, rare)
        ends = shared[np.maximum(after - 1, 0)], shared[np.minimum(after, len(shared) - 1)]
        nearest = np.where(np.abs(ends[0] - rare) <= np.abs(ends[1] - rare), *ends)
        targets = np.where(stuck, nearest, targets)
    return rare, targets


def _moved(values: Float, shown: Float, away: float, distance: float) -> Float:
    """Values at a distance to one side, NaN beyond the ends; without one, halfway to the next."""
    if distance:
        moved = shown + away * distance
        inside = (moved >= values[0] - distance / 4) & (moved <= values[-1] + distance / 4)
        return np.where(inside, moved, np.nan)
    place = np.searchsorted(values, shown) + int(away)
    inside = (place >= 0) & (place < len(values))
    return np.where(inside, shown / 2 + values[place.clip(0, len(values) - 1)] / 2, np.nan)


def without_rare_levels(
    X: Float, y: Int, is_category: Bool, *, min_records: int = MIN_LEVEL_RECORDS, seed: int
) -> Float:
    """Records (n_records, n_columns) without levels that fewer than ``min_records`` of them have.

    Each gets a frequent level in its place, drawn as in its class ``y``, or as in all where the
    class has none; null where the column has no frequent level.
    """
    rare = RareValues.of(X, is_category, min_records=min_records)
    X = X.copy()
    for j, levels in rare.levels.items():
        frequent = np.isin(X[:, j], levels)
        rows = np.flatnonzero(~frequent & ~np.isnan(X[:, j]))
        if not rows.size:
            continue
        if not levels.size:
            X[rows, j] = np.nan
            continue
        rng = np.random.default_rng([seed & 0xFFFFFFFF, j])
        chance = rng.random(len(rows))
        for k in np.unique(y[rows]):
            own = X[frequent & (y == k), j]
            own = own if own.size else X[frequent, j]
            of = y[rows] == k
            X[rows[of], j] = np.sort(own)[(chance[of] * len(own)).astype(np.int64)]
    return X
