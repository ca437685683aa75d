"""Classic augmentation of tables: the SMOTE family of imbalanced-learn, and random oversampling.

Works on the matrix form of :mod:`prefect_augment.encoding.tables` (float64, NaN for null, level
codes in category columns) and knows nothing of Arrow, shards or dtypes; whole numbers, dates and
the grid of a column come back when the encoder decodes (it rounds, so an interpolated integer stays
one). imbalanced-learn looks for the neighbours and draws who is combined with whom; the values are
made here, in the columns' own units, because its own way

- fails on nulls and on classes smaller than ``k_neighbors + 1``,
- needs (new records x neighbours x one-hot width) numbers for category columns, seen at 135 GiB
  (imbalanced-learn issue 768),
- would scale values to and fro and so change their last digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from imblearn.over_sampling import SMOTE, SMOTEN
from numpy.typing import NDArray
from scipy import sparse
from sklearn import config_context
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import check_random_state
from threadpoolctl import threadpool_limits

from prefect_augment.errors import EmptyClassError, ParameterError

__all__ = ["SmoteRecords", "random_oversample_indices", "smote", "smote_memory_bytes"]

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

_MIB = 1024 * 1024
_DISTANCES_MIB = (
    32  # scikit-learn's blocks of distances; its default of 1 GiB would be most of the memory
)


@dataclass(frozen=True)
class SmoteRecords:
    """Records made by :func:`smote`, by stratum and then in the order they were drawn.

    Attributes
    ----------
    X : ndarray of float64, shape (n_new, n_columns)
        In the matrix form of the records they came from.
    strata : ndarray of int64, shape (n_new,)
        The stratum of each.
    parents : ndarray of int64, shape (n_new,)
        Row, in the matrix given to :func:`smote`, of the record each one starts from.
    notes : dict of int to str
        Per stratum that was treated otherwise than asked: how, and why.
    """

    X: Floats
    strata: Codes
    parents: Codes
    notes: dict[int, str] = field(default_factory=dict)


def smote(
    X: Floats,
    strata: Codes,
    counts: Mapping[int, int],
    *,
    is_category: NDArray[np.bool_],
    n_levels: Codes,
    k_neighbors: int,
    seed: int,
    max_memory_mib: int,
) -> SmoteRecords:
    """Return new records between neighbours of the same stratum.

    A new record starts from a parent p and one of its ``k_neighbors`` nearest neighbours q. Numbers
    lie on the line from p to q, at one random place for all columns; a category is the most
    frequent one among p's neighbours, the nearest neighbour's where several are. Distances are
    Euclidean over columns scaled to unit variance, with categories as in SMOTENC; where no number
    varies, they are SMOTEN's value difference metric.

    Nulls: the search sees the stratum's median, and null as a level of its own. The new record is
    null exactly where its parent is; where only q is null, it keeps p's value. Infinite values are
    treated likewise.

    Parameters
    ----------
    X : ndarray of float64, shape (n_records, n_columns)
        Records; NaN for null, category columns as codes 0 … n_levels - 1. Sort them (by ``aug_id``)
        and the outcome does not depend on the order of the source.
    strata : ndarray of int64, shape (n_records,)
        Stratum of each record.
    counts : mapping of int to int
        New records wanted per stratum.
    is_category : ndarray of bool, shape (n_columns,)
        Columns that hold level codes.
    n_levels : ndarray of int64, shape (n_columns,)
        Levels of each category column, 0 for numbers.
    k_neighbors : int
        Neighbours to combine with; one less than the stratum has records where that is fewer.
    seed : int
        Each stratum draws from a stream of its own made from it.
    max_memory_mib : int
        Most memory to use, in MiB, by the estimate of :func:`smote_memory_bytes`.

    Returns
    -------
    SmoteRecords
        A stratum of one record, or one where nothing varies, is copied instead and noted.

    Raises
    ------
    ParameterError
        If the estimated memory is above ``max_memory_mib``.
    EmptyClassError
        If records are wanted of a stratum that has none.

    References
    ----------
    Chawla et al. 2002, "SMOTE: Synthetic Minority Over-sampling Technique", sections 4.2 (SMOTE),
    6.1 (SMOTE-NC) and 6.2 (SMOTE-N).
    """
    wanted = {code: n for code, n in sorted(counts.items()) if n > 0}
    need = smote_memory_bytes(X, strata, counts, is_category=is_category, k_neighbors=k_neighbors)
    if need > max_memory_mib * _MIB:
        raise _too_large(need, strata.size, max_memory_mib)
    table = _Searchable(X, strata, is_category, n_levels)
    made: list[tuple[Floats, Codes]] = []
    notes: dict[int, str] = {}
    for code, n_new in wanted.items():
        rows = np.flatnonzero(strata == code)
        if rows.size == 0:
            raise EmptyClassError(
                f"{n_new} SMOTE records are wanted of stratum {code}, which has no record to start "
                "from; leave it out of the plan.",
                stratum=code,
            )
        drawn, notes_of_code = _draw(table, rows, n_new, k_neighbors, _seed_of(seed, code))
        if notes_of_code:
            notes[code] = notes_of_code
        if drawn is None:
            parents = random_oversample_indices(strata, {code: n_new}, seed)
            made.append((X[parents], parents))
        else:
            made.append((_combine(table, drawn), drawn.parents))
    return SmoteRecords(
        X=np.concatenate([values for values, _ in made] or [X[:0]]),
        strata=np.repeat(np.array(list(wanted), np.int64), list(wanted.values())),
        parents=np.concatenate([parents for _, parents in made] or [np.empty(0, np.int64)]),
        notes=notes,
    )


def random_oversample_indices(strata: Codes, counts: Mapping[int, int], seed: int) -> Codes:
    """Return the rows to copy so that each stratum gains the records wanted.

    Every record of a stratum is copied equally often, up to one: whole rounds first, then a draw
    without replacement. That has less variance than drawing with replacement, and the same mean.

    Parameters
    ----------
    strata : ndarray of int64, shape (n_records,)
        Stratum of each record.
    counts : mapping of int to int
        Copies wanted per stratum.
    seed : int
        Each stratum draws from a stream of its own made from it.

    Returns
    -------
    ndarray of int64, shape (n_copies,)
        Rows, by stratum.

    Raises
    ------
    EmptyClassError
        If copies are wanted of a stratum that has no record.
    """
    chosen = [np.empty(0, np.int64)]
    for code, n_new in sorted(counts.items()):
        if n_new <= 0:
            continue
        rows = np.flatnonzero(strata == code)
        if rows.size == 0:
            raise EmptyClassError(
                f"{n_new} copies are wanted of stratum {code}, which has no record; "
                "leave it out of the plan.",
                stratum=code,
            )
        rounds, rest = divmod(n_new, rows.size)
        rng = np.random.default_rng(_seed_of(seed, code))
        chosen += [np.tile(rows, rounds), rng.permutation(rows)[:rest]]
    return np.concatenate(chosen)


def _seed_of(seed: int, code: int) -> int:
    """Return the seed of one stratum's stream, in the 32 bits that imbalanced-learn takes."""
    return int(np.random.SeedSequence((seed % 2**64, code)).generate_state(1)[0])


# --- neighbours -------------------------------------------------------------------------------


class _Searchable:
    """The records with what the neighbour search needs: nothing null, numbers of unit variance."""

    def __init__(
        self, X: Floats, strata: Codes, is_category: NDArray[np.bool_], n_levels: Codes
    ) -> None:
        self.X = X
        self.strata = strata
        self.is_category = is_category.astype(bool)
        self.is_number = ~self.is_category
        self.missing = ~np.isfinite(X)
        # Null is the level after the last, so that two nulls are alike and unlike any value.
        self.levels = np.where(self.missing, n_levels.astype(np.float64), X)[
            :, self.is_category
        ].astype(np.int64)
        self.numbers = _unit_variance(np.where(self.missing, np.nan, X)[:, self.is_number])

    def numbers_of(self, rows: Codes) -> Floats:
        """Return the stratum's varying numbers, nulls as its medians, shape (n_rows, n_varying)."""
        found = self.numbers[rows]
        medians = [np.median(known) if (known := c[~np.isnan(c)]).size else 0.0 for c in found.T]
        filled = np.where(np.isnan(found), np.array(medians), found)
        return filled[:, np.ptp(filled, axis=0) > 0] if filled.size else filled[:, :0]


def _unit_variance(numbers: Floats) -> Floats:
    """Return the columns over their standard deviation; constant and empty ones unscaled."""
    out = np.empty_like(numbers)
    for j, column in enumerate(numbers.T):
        known = column[~np.isnan(column)]
        peak = (
            np.abs(known).max(initial=0.0) or 1.0
        )  # first, or values near 1e308 would square to infinity
        spread = float(np.std(known / peak)) if known.size else 0.0
        out[:, j] = column / peak / (spread or 1.0)
    return out


@dataclass(frozen=True)
class _Drawn:
    """Who is combined with whom; rows of the whole matrix."""

    parents: Codes  # (n_new,)
    partners: Codes  # (n_new,)
    steps: Floats  # (n_new,) place on the line from parent to partner
    voters: Codes  # (n_new, k) rows that vote on categories, nearest first


def _draw(
    table: _Searchable, rows: Codes, n_new: int, k_neighbors: int, seed: int
) -> tuple[_Drawn | None, str]:
    """Return the stratum's draws and a note; no draws where only copies are possible."""
    k = min(k_neighbors, rows.size - 1)
    if k < 1:
        return None, "copied: one record has no neighbour to combine with"
    numbers, levels = table.numbers_of(rows), table.levels[rows]
    note = (
        f"{k} of {k_neighbors} neighbours: the stratum has {rows.size} records"
        if k < k_neighbors
        else ""
    )
    # scikit-learn shares the search out by the number of threads, and that decides between equally
    # near neighbours (for 90 % of 1,500 records of 20 two-valued columns, measured).
    with threadpool_limits(1, user_api="openmp"), config_context(working_memory=_DISTANCES_MIB):
        if numbers.shape[1] == 0:
            if (
                levels.shape[1] == 0
                or np.all(levels == levels[0])
                or np.unique(table.strata).size == 1
            ):
                return None, "copied: nothing varies within the stratum"
            return _draw_nominal(table, rows, n_new, k, seed), note
        drawn = _draw_numeric(numbers, levels, n_new, k, seed)
    parents, partners, steps, voters = drawn
    return _Drawn(rows[parents], rows[partners], steps, rows[voters]), note


def _draw_numeric(
    numbers: Floats, levels: Codes, n_new: int, k: int, seed: int
) -> tuple[Codes, Codes, Floats, Codes]:
    """Let SMOTE draw within one stratum, over SMOTENC's distances where there are categories."""
    matrix = _with_levels(numbers, levels) if levels.shape[1] else numbers
    n_own = len(numbers)
    sampler = _NotingSmote(sampling_strategy={0: n_own + n_new}, k_neighbors=k, random_state=seed)
    # SMOTE insists on a second class; one row is enough, and it never becomes a neighbour.
    rows = np.r_[np.arange(n_own), 0]
    sampler.fit_resample(matrix[rows], np.r_[np.zeros(n_own, np.int64), 1])
    parents, places, steps, neighbours = sampler.noted
    return parents, neighbours[parents, places], steps, neighbours[parents]


def _with_levels(numbers: Floats, levels: Codes) -> Any:
    """Return numbers beside one-hot levels, so that two levels are one median deviation apart.

    These are the distances of SMOTENC. Its own class makes a dense copy of the one-hot part on the
    way (4.6 GiB for 11,700 records and 35,000 levels, measured), which this does not.
    """
    # Two differing levels differ in two places of the one-hot part, hence the square root.
    apart = float(np.median(numbers.std(axis=0))) / np.sqrt(2.0)
    onehot = OneHotEncoder(dtype=np.float64).fit_transform(levels) * apart
    return sparse.hstack([sparse.csr_matrix(numbers), onehot], format="csr")


def _draw_nominal(table: _Searchable, rows: Codes, n_new: int, k: int, seed: int) -> _Drawn:
    """Let SMOTEN draw; its distances are how levels go with strata, so it sees all records."""
    code = int(table.strata[rows[0]])
    sampler = _NotingSmoten(
        sampling_strategy={code: rows.size + n_new}, k_neighbors=k, random_state=seed
    )
    sampler.fit_resample(table.levels, table.strata)
    parents, neighbours = sampler.noted
    return _Drawn(rows[parents], rows[parents], np.zeros(n_new), rows[neighbours[parents]])


class _NotingSmote(SMOTE):  # type: ignore[misc]  # imbalanced-learn has no types
    """SMOTE that notes who is combined with whom; :func:`_combine` makes the values."""

    noted: tuple[Codes, Codes, Floats, Codes]

    def _generate_samples(
        self, X: Any, nn_data: Any, nn_num: Codes, rows: Codes, cols: Codes, steps: Floats, *_: Any
    ) -> Any:
        self.noted = (rows, cols, np.ravel(steps), nn_num)
        return X[:0]


class _NotingSmoten(SMOTEN):  # type: ignore[misc]  # imbalanced-learn has no types
    """SMOTEN that notes its draws; it draws no partner and counts a record among its own voters."""

    noted: tuple[Codes, Codes]

    def _make_samples(
        self, X_class: Any, klass: Any, y_dtype: Any, nn_indices: Codes, n_samples: int
    ) -> tuple[Any, Any]:
        rows = check_random_state(self.random_state).choice(np.arange(len(X_class)), size=n_samples)
        self.noted = (rows, nn_indices)
        return X_class[:1], np.full(
            1, klass, y_dtype
        )  # not none: it is decoded, and no encoder takes zero rows


# --- values -----------------------------------------------------------------------------------


def _combine(table: _Searchable, drawn: _Drawn) -> Floats:
    """Return the new records, shape (n_new, n_columns)."""
    made = table.X[drawn.parents]
    partners = table.X[drawn.partners]
    steps = drawn.steps[:, None]
    usable = table.is_number & ~table.missing[drawn.parents] & ~table.missing[drawn.partners]
    low, high = np.minimum(made, partners), np.maximum(made, partners)
    with np.errstate(invalid="ignore"):  # inf times zero, in columns that keep the parent's value
        between = (
            1.0 - steps
        ) * made + steps * partners  # not made + steps * difference: that may overflow
    made = np.where(
        usable, np.clip(between, low, high), made
    )  # rounding may leave the line by one digit
    for place, column in enumerate(np.flatnonzero(table.is_category)):
        voted = _vote(table, drawn.voters, place, int(column))
        keeps = table.missing[drawn.parents, column] | np.isnan(voted)
        made[:, column] = np.where(keeps, table.X[drawn.parents, column], voted)
    return made


def _vote(table: _Searchable, voters: Codes, place: int, column: int) -> Floats:
    """Return the voters' most frequent level, the nearest's in a tie; NaN where all are null."""
    winners = np.empty(len(voters))
    for part in _blocks(len(voters), voters.shape[1] ** 2):
        ballots = table.levels[voters[part], place]  # (n, k)
        valid = ~table.missing[voters[part], column]
        votes = (ballots[:, :, None] == ballots[:, None, :]).sum(axis=2) * valid
        best = votes.argmax(axis=1)[:, None]  # the first maximum is the nearest voter's
        level = np.take_along_axis(ballots, best, axis=1)[:, 0].astype(np.float64)
        winners[part] = np.where(valid.any(axis=1), level, np.nan)
    return winners


def _blocks(n_rows: int, row_bytes: int, block_bytes: int = 16 * _MIB) -> Iterator[slice]:
    """Yield slices of rows that need about ``block_bytes`` each."""
    step = max(1, block_bytes // row_bytes)
    yield from (slice(start, start + step) for start in range(0, n_rows, step))


# --- memory -----------------------------------------------------------------------------------


def smote_memory_bytes(
    X: Floats,
    strata: Codes,
    counts: Mapping[int, int],
    *,
    is_category: NDArray[np.bool_],
    k_neighbors: int,
) -> int:
    """Return about how much memory :func:`smote` needs beyond its arguments.

    Parameters
    ----------
    X, strata, counts, is_category, k_neighbors
        As for :func:`smote`.

    Returns
    -------
    int
        Bytes: scaled copies of all records, the search within the stratum that needs most (a square
        matrix of distances where no number varies), and the new records. The factors are the
        copies held at the same time; measured peaks were at most 0.9 of the estimate, for 100 to
        500,000 new records and up to 35,000 levels.
    """
    n_columns, n_categories = is_category.size, int(is_category.sum())
    is_number = ~is_category.astype(bool)
    wanted = {code: n for code, n in counts.items() if n > 0}
    needs = [0]
    for code, n_new in wanted.items():
        rows = np.flatnonzero(strata == code)
        k = min(k_neighbors, rows.size - 1)
        if k < 1:
            continue
        search = rows.size * (8 * 6 * n_columns + 12 * 6 * n_categories + 8 * 3 * (k + 1))
        if n_categories and not _varies(X[np.ix_(rows, is_number)]):
            search += 8 * 3 * rows.size**2 + strata.size * n_columns * 16
        needs.append(search + n_new * (8 * 6 * n_columns + 8 * 2 * (k + 2)))
    copies = strata.size * n_columns * 8 * 4 + sum(wanted.values()) * n_columns * 8 * 2
    return copies + max(needs) + 3 * _DISTANCES_MIB * _MIB  # distances, their order, a product


def _varies(numbers: Floats) -> bool:
    """Tell whether any column has two different finite values."""
    finite = np.isfinite(numbers)
    low = np.where(finite, numbers, np.inf).min(axis=0, initial=np.inf)
    high = np.where(finite, numbers, -np.inf).max(axis=0, initial=-np.inf)
    return bool(np.any(low < high))


def _too_large(need: int, n_records: int, max_memory_mib: int) -> ParameterError:
    """Return the refusal, with advice."""
    return ParameterError(
        f"SMOTE would need about {need / _MIB:,.0f} MiB for {n_records:,} records and "
        f"classic.max_memory_mib allows {max_memory_mib:,}; raise it, lower balance.target or "
        "balance.max_per_class, or choose classic.table='none'. (Where all columns are categories, "
        "every record of a class is compared with every other: fewer records need far less.)",
        need_bytes=need,
        max_memory_mib=max_memory_mib,
    )
