"""Classic augmentation of tables: the SMOTE family of imbalanced-learn, and random oversampling.

Works on the matrix form of :mod:`prefect_augment.encoding.tables` (float64, NaN for null, level codes in category
columns); the encoder's decoding rounds whole numbers, dates and grids. imbalanced-learn finds the neighbours and draws
the pairs; the values are made here, in the columns' own units, because imbalanced-learn

- fails on nulls and on classes smaller than ``k_neighbors + 1``,
- needs (new records x neighbours x one-hot width) numbers for category columns, seen at 135 GiB
  (imbalanced-learn issue 768),
- would scale values to and fro and so change their last digits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from imblearn.over_sampling import SMOTE, SMOTEN
from scipy import sparse
from sklearn import config_context
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import check_random_state

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.nn.threads import single_threaded

MIB = 1024 * 1024
# scikit-learn's blocks of distances; its default of 1 GiB would be most of the memory.
DISTANCES_MIB = 32
VOTES_BYTES = 16 * MIB  # counted at a time
DANGER_NEIGHBORS = 10  # imbalanced-learn's m_neighbors


@dataclass(frozen=True)
class StratifiedTable:
    """Records in matrix form with their strata, and what the search for neighbours sees of them.

    ``X`` has NaN for null, and codes 0 … n_levels - 1 in category columns.
    """

    X: Float  # (n_records, n_columns)
    strata: Int  # (n_records,)
    is_category: Bool  # (n_columns,)
    n_levels: Int  # (n_columns,) 0 for numbers

    @cached_property
    def missing(self) -> Bool:
        """Which values are null or infinite."""
        return ~np.isfinite(self.X)

    @cached_property
    def levels(self) -> Int:
        """The categories; null is the level after the last, so that two nulls are alike and unlike any value."""
        levels = np.where(self.missing, self.n_levels.astype(np.float64), self.X)
        return levels[:, self.is_category].astype(np.int64)

    @cached_property
    def numbers(self) -> Float:
        """The numbers with unit variance, NaN for null; constant and empty columns unscaled."""
        numbers = np.where(self.missing, np.nan, self.X)[:, ~self.is_category]
        for column in numbers.T:
            known = column[~np.isnan(column)]
            # Divide by the peak first, or values near 1e308 would square to infinity.
            peak = np.abs(known).max(initial=0.0) or 1.0
            spread = float(np.std(known / peak)) if known.size else 0.0
            column /= peak
            column /= spread or 1.0
        return numbers


@dataclass(frozen=True)
class SmoteRecords:
    """New records, by stratum and then in the order they were drawn."""

    X: Float  # (n_new, n_columns)
    strata: Int  # (n_new,)
    parents: Int  # (n_new,) rows of the records they start from
    notes: dict[int, str] = field(default_factory=dict)  # strata treated otherwise, and why


def smote(
    table: StratifiedTable,
    counts: Mapping[int, int],
    *,
    k_neighbors: int,
    seed: int,
    max_memory_mib: int,
    start: Float | None = None,
) -> SmoteRecords:
    """Return new records between neighbours of the same stratum.

    A new record starts from a parent p and one of its ``k_neighbors`` nearest neighbours q. Numbers lie on the line
    from p to q, at one random place for all columns; a category is the most frequent one among p's neighbours, the
    nearest neighbour's in a tie. Distances are Euclidean over columns scaled to unit variance, with categories as in
    SMOTENC; where no number varies, they are SMOTEN's value difference metric.

    Nulls: the search sees the stratum's median, and null as a level of its own. The new record is null
    exactly where its parent is; where only q is null, it keeps p's value. Infinite values are treated
    likewise. A stratum of one record, or one where nothing varies, is copied instead and noted.

    If the table is sorted (by ``aug_id``), the result does not depend on the order of the source. ``counts`` are
    new records per stratum, each of which draws from its own stream; at most its records less one are
    neighbours. ``start`` (n_records,) is the relative frequency of each record as a parent, within its stratum;
    uniform by default. Raises ParameterError if :func:`smote_memory_bytes` is above ``max_memory_mib``, and
    EmptyClassError if records are requested of a stratum that has none.

    Chawla et al. 2002, "SMOTE: Synthetic Minority Over-sampling Technique", sections 4.2 (SMOTE),
    6.1 (SMOTE-NC) and 6.2 (SMOTE-N).
    """
    requested = {code: n for code, n in sorted(counts.items()) if n > 0}
    _check_memory(smote_memory_bytes(table, requested, k_neighbors), table, max_memory_mib)
    parts: list[tuple[Float, Int]] = []
    notes: dict[int, str] = {}
    for code, n_new in requested.items():
        rows = np.flatnonzero(table.strata == code)
        if rows.size == 0:
            raise EmptyClassError(
                f"{n_new} SMOTE records are requested of stratum {code}, which has no record to start "
                "from; leave it out of the plan.",
                stratum=code,
            )
        own_seed = stratum_seed(seed, code)
        drawn, notes_of_code = draw(table, rows, n_new, k_neighbors, own_seed)
        if drawn is not None and start is not None:
            drawn = started(drawn, rows, start[rows], own_seed)
        if notes_of_code:
            notes[code] = notes_of_code
        if drawn is None:
            parents = random_oversample_indices(table.strata, {code: n_new}, seed)
            parts.append((table.X[parents], parents))
        else:
            parts.append((_combine(table, drawn), drawn.parents))
    return SmoteRecords(
        X=np.concatenate([values for values, _ in parts] or [table.X[:0]]),
        strata=np.repeat(np.array(list(requested), np.int64), list(requested.values())),
        parents=np.concatenate([parents for _, parents in parts] or [np.empty(0, np.int64)]),
        notes=notes,
    )


def random_oversample_indices(strata: Int, counts: Mapping[int, int], seed: int) -> Int:
    """Return the rows to copy so that each stratum gains ``counts`` records, by stratum.

    Every record of a stratum is copied equally often, up to one: whole rounds first, then a draw without
    replacement. That has less variance than drawing with replacement, and the same mean. Raises
    EmptyClassError for a stratum without records.
    """
    chosen = [np.empty(0, np.int64)]
    for code, n_new in sorted(counts.items()):
        if n_new <= 0:
            continue
        rows = np.flatnonzero(strata == code)
        if rows.size == 0:
            raise EmptyClassError(
                f"{n_new} copies are requested of stratum {code}, which has no record; "
                "leave it out of the plan.",
                stratum=code,
            )
        rounds, rest = divmod(n_new, rows.size)
        rng = np.random.default_rng(stratum_seed(seed, code))
        chosen += [np.tile(rows, rounds), rng.permutation(rows)[:rest]]
    return np.concatenate(chosen)


def _median_filled(numbers: Float) -> Float:
    return np.where(np.isnan(numbers), of_known(numbers, np.median), numbers)


def of_known(numbers: Float, measure: Callable[[Float], float]) -> Float:
    """Return a number per column (n_columns,) of its values but NaN, 0 where there is none."""
    known = [column[~np.isnan(column)] for column in numbers.T]
    return np.array([measure(values) if values.size else 0.0 for values in known])


@dataclass(frozen=True)
class Drawn:
    """Which rows of the whole matrix are combined."""

    parents: Int  # (n_new,)
    partners: Int  # (n_new,)
    steps: Float  # (n_new,) place on the line from parent to partner
    voters: Int  # (n_new, k) rows that vote on categories, nearest first
    neighbours: Int  # (n_rows, k) of every row of the stratum, nearest first


def draw(
    table: StratifiedTable, rows: Int, n_new: int, k_neighbors: int, seed: int
) -> tuple[Drawn | None, str]:
    """Return the stratum's draws and a note; no draws where only copies are possible."""
    k = min(k_neighbors, rows.size - 1)
    if k < 1:
        return None, "copied: one record has no neighbour to combine with"
    filled = _median_filled(table.numbers[rows])
    numbers = filled[:, np.ptp(filled, axis=0) > 0] if filled.size else filled[:, :0]
    levels = table.levels[rows]
    note = ""
    if k < k_neighbors:
        note = f"{k} of {k_neighbors} neighbours: the stratum has {rows.size} records"
    # scikit-learn splits the search by the number of threads, which decides between equally near
    # neighbours (for 90 % of 1,500 records of 20 two-valued columns, measured).
    with single_threaded(), config_context(working_memory=DISTANCES_MIB):
        if numbers.shape[1] == 0:
            one_level = levels.shape[1] == 0 or np.all(levels == levels[0])
            if one_level or np.unique(table.strata).size == 1:
                return None, "copied: nothing varies within the stratum"
            return _draw_nominal(table, rows, n_new, k, seed), note
        parents, partners, steps, neighbours = _draw_numeric(numbers, levels, n_new, k, seed)
    voters = rows[neighbours[parents]]
    return Drawn(rows[parents], rows[partners], steps, voters, rows[neighbours]), note


def started(drawn: Drawn, rows: Int, weights: Float, seed: int) -> Drawn:
    """Return draws that start from other records of the stratum, by weight."""
    rng = np.random.default_rng((seed, 2))
    n_new, k = len(drawn.parents), drawn.neighbours.shape[1]
    places = rng.choice(len(rows), n_new, p=weights / weights.sum())
    voters = drawn.neighbours[places]
    partners = voters[np.arange(n_new), rng.integers(0, k, n_new)]
    nominal = np.array_equal(drawn.parents, drawn.partners)  # SMOTEN draws no partner
    return Drawn(
        rows[places], rows[places] if nominal else partners, drawn.steps, voters, drawn.neighbours
    )


def _draw_numeric(
    numbers: Float, levels: Int, n_new: int, k: int, seed: int
) -> tuple[Int, Int, Float, Int]:
    """Let SMOTE draw within one stratum, by SMOTENC's distances if there are categories."""
    matrix = _with_levels(numbers, levels) if levels.shape[1] else numbers
    n_own = len(numbers)
    sampler = _NotingSmote(
        sampling_strategy={0: n_own + n_new}, k_neighbors=k, random_state=seed & 0xFFFFFFFF
    )
    # SMOTE needs a second class; its one row never becomes a neighbour.
    rows = np.r_[np.arange(n_own), 0]
    sampler.fit_resample(matrix[rows], np.r_[np.zeros(n_own, np.int64), 1])
    parents, places, steps, neighbours = sampler.noted
    return parents, neighbours[parents, places], steps, neighbours


def _with_levels(numbers: Float, levels: Int) -> Any:
    """Return numbers beside one-hot levels, so that two levels are one median deviation apart.

    These are SMOTENC's distances. Its own class makes a dense copy of the one-hot part (4.6 GiB for
    11,700 records and 35,000 levels, measured), which this does not.
    """
    # Two differing levels differ in two places of the one-hot part, hence the square root.
    spread = numbers.std(axis=0)
    apart = float(np.median(spread)) / np.sqrt(2.0) if spread.size else 1.0
    onehot = OneHotEncoder(dtype=np.float64).fit_transform(levels) * apart
    return sparse.hstack([sparse.csr_matrix(numbers), onehot], format="csr")


def _draw_nominal(table: StratifiedTable, rows: Int, n_new: int, k: int, seed: int) -> Drawn:
    """Let SMOTEN draw; its distances relate levels to strata, so it sees all records."""
    code = int(table.strata[rows[0]])
    sampler = _NotingSmoten(
        sampling_strategy={code: rows.size + n_new}, k_neighbors=k, random_state=seed & 0xFFFFFFFF
    )
    sampler.fit_resample(table.levels, table.strata)
    parents, neighbours = sampler.noted
    return Drawn(
        rows[parents], rows[parents], np.zeros(n_new), rows[neighbours[parents]], rows[neighbours]
    )


class _NotingSmote(SMOTE):  # type: ignore[misc]  # imbalanced-learn has no types
    """SMOTE that notes its draws; :func:`_combine` makes the values."""

    noted: tuple[Int, Int, Float, Int]

    def _generate_samples(
        self, X: Any, nn_data: Any, nn_num: Int, rows: Int, cols: Int, steps: Float, *_: Any
    ) -> Any:
        self.noted = (rows, cols, np.ravel(steps), nn_num)
        return X[:0]


class _NotingSmoten(SMOTEN):  # type: ignore[misc]  # imbalanced-learn has no types
    """SMOTEN that notes its draws; it draws no partner and counts a record among its own voters."""

    noted: tuple[Int, Int]

    def _make_samples(
        self, X_class: Any, klass: Any, y_dtype: Any, nn_indices: Int, n_samples: int
    ) -> tuple[Any, Any]:
        rows = check_random_state(self.random_state).choice(np.arange(len(X_class)), size=n_samples)
        self.noted = (rows, nn_indices)
        return X_class[:1], np.full(1, klass, y_dtype)  # one row, as no encoder decodes zero rows


def _combine(table: StratifiedTable, drawn: Drawn) -> Float:
    """Return the new records, shape (n_new, n_columns)."""
    values = table.X[drawn.parents]
    partners = table.X[drawn.partners]
    steps = drawn.steps[:, None]
    interpolates = (
        ~table.is_category & ~table.missing[drawn.parents] & ~table.missing[drawn.partners]
    )
    low, high = np.minimum(values, partners), np.maximum(values, partners)
    with np.errstate(invalid="ignore"):  # inf times zero, in columns that keep the parent's value
        # Not values + steps * difference, which may overflow.
        between = (1.0 - steps) * values + steps * partners
    # Rounding may leave the line by one digit, hence the clip.
    values = np.where(interpolates, np.clip(between, low, high), values)
    for place, column in enumerate(np.flatnonzero(table.is_category)):
        voted = _vote(table, drawn.voters, place, int(column))
        keeps = table.missing[drawn.parents, column] | np.isnan(voted)
        values[:, column] = np.where(keeps, table.X[drawn.parents, column], voted)
    return values


def _vote(table: StratifiedTable, voters: Int, place: int, column: int) -> Float:
    """Return the voters' most frequent level, the nearest's in a tie; NaN where all are null."""
    winners = np.empty(len(voters))
    step = max(1, VOTES_BYTES // voters.shape[1] ** 2)
    for part in (slice(i, i + step) for i in range(0, len(voters), step)):
        ballots = table.levels[voters[part], place]  # (n, k)
        valid = ~table.missing[voters[part], column]
        votes = (ballots[:, :, None] == ballots[:, None, :]).sum(axis=2) * valid
        best = votes.argmax(axis=1)[:, None]  # the first maximum is the nearest voter's
        level = np.take_along_axis(ballots, best, axis=1)[:, 0].astype(np.float64)
        winners[part] = np.where(valid.any(axis=1), level, np.nan)
    return winners


def smote_memory_bytes(table: StratifiedTable, counts: Mapping[int, int], k_neighbors: int) -> int:
    """Return about how many bytes :func:`smote` needs beyond its arguments.

    Counted are scaled copies of all records, the search within the largest stratum (a square matrix of
    distances where no number varies), and the new records. Measured peaks were at most 0.9 of the
    estimate, for 100 to 500,000 new records and up to 35,000 levels.
    """
    n_records, n_columns = table.X.shape
    n_categories = int(table.is_category.sum())
    needs = [0]
    for code, n_new in counts.items():
        rows = np.flatnonzero(table.strata == code)
        k = min(k_neighbors, rows.size - 1)
        if k < 1:
            continue
        search = rows.size * (8 * 6 * n_columns + 12 * 6 * n_categories + 8 * 3 * (k + 1))
        if n_categories and not _varies(table.X[np.ix_(rows, ~table.is_category)]):
            search += 8 * 3 * rows.size**2 + n_records * n_columns * 16
        needs.append(search + n_new * (8 * 6 * n_columns + 8 * 2 * (k + 2)))
    copies = n_records * n_columns * 8 * 4 + sum(counts.values()) * n_columns * 8 * 2
    # Distances, their order, a product.
    return int(copies + max(needs) + 3 * DISTANCES_MIB * MIB)


def _varies(numbers: Float) -> bool:
    """Whether any column has two different finite values."""
    finite = np.where(np.isfinite(numbers), numbers, np.nan)
    return bool(np.any(np.fmin.reduce(finite) < np.fmax.reduce(finite)))


def stratum_seed(seed: int, code: int) -> int:
    """Return the seed of one stratum's stream, in the 32 bits that imbalanced-learn takes."""
    return int(np.random.SeedSequence((seed % 2**64, code)).generate_state(1)[0])


def _check_memory(need: int, table: StratifiedTable, max_memory_mib: int) -> None:
    if need > max_memory_mib * MIB:
        raise ParameterError(
            f"SMOTE would need about {need / MIB:,.0f} MiB for {len(table.X):,} records and "
            f"classic.max_memory_mib allows {max_memory_mib:,}; raise it, lower balance.target or "
            "balance.max_per_class, or choose classic.table='none'. (Where all columns are categories, "
            "every record of a class is compared with every other: fewer records need far less.)",
            need_bytes=need,
            max_memory_mib=max_memory_mib,
        )


def start_weights(
    table: StratifiedTable,
    counts: Mapping[int, int],
    *,
    method: str,
    k_neighbors: int,
    max_memory_mib: int,
) -> tuple[Float, dict[int, str]]:
    """Return how often each record is started from, and notes on strata without such a record.

    ``borderline``: only records with at least half, but not all, of their ten nearest neighbours in other
    strata. ``adasyn``: in proportion to the share of other strata among the ``k_neighbors`` nearest. A
    stratum without such records starts from all of them, as SMOTE does. Raises ParameterError if the
    estimated memory is above ``max_memory_mib``.

    Han et al. 2005, "Borderline-SMOTE", section 3; He et al. 2008, "ADASYN", section III.
    """
    n, d = table.X.shape
    # Filled records, their one-hot levels, and a tree or a block of distances.
    need = n * (8 * 4 * d + 12 * int(table.is_category.sum())) + 3 * DISTANCES_MIB * MIB
    _check_memory(need, table, max_memory_mib)
    numbers = _median_filled(table.numbers)
    if table.levels.shape[1]:  # constant numbers tell nothing about the distance of two levels
        numbers = numbers[:, numbers.std(axis=0) > 0]
    matrix = _with_levels(numbers, table.levels) if table.levels.shape[1] else numbers
    n_neighbors = min(DANGER_NEIGHBORS if method == "borderline" else k_neighbors, n - 1)
    weights, notes = np.ones(n), {}
    with single_threaded(), config_context(working_memory=DISTANCES_MIB):
        search = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(matrix)
        for code in sorted(code for code, n_new in counts.items() if n_new > 0):
            rows = np.flatnonzero(table.strata == code)
            if not rows.size or not n_neighbors:
                continue
            nearest = search.kneighbors(matrix[rows], return_distance=False)
            others = (table.strata[nearest] != code).sum(axis=1) / n_neighbors
            if method == "borderline":
                others = ((others >= 0.5) & (others < 1.0)).astype(np.float64)
            if others.any():
                weights[rows] = others
            else:
                why = (
                    "none is at the border" if method == "borderline" else "no other class is near"
                )
                notes[code] = f"started from any record: {why}"
    return weights, notes
