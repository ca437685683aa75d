"""Classic augmentation of tables: the SMOTE family of imbalanced-learn, and random oversampling.

Works on the matrix form of :mod:`prefect_augment.encoding.tables` (float64, NaN for null, level codes
in category columns); the encoder's decoding rounds whole numbers, dates and grids. imbalanced-learn
finds the neighbours and draws the pairs; the values are made here, in the columns' own units, because
imbalanced-learn

- fails on nulls and on classes smaller than ``k_neighbors + 1``,
- needs (new records x neighbours x one-hot width) numbers for category columns, seen at 135 GiB
  (imbalanced-learn issue 768),
- would scale values to and fro and so change their last digits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.augmentation.smote_neighbours import (
    DISTANCES_MIB,
    MIB,
    Drawn,
    Searchable,
    draw,
    started,
    stratum_seed,
    too_large,
)
from prefect_augment.errors import EmptyClassError


@dataclass(frozen=True)
class SmoteRecords:
    """New records, by stratum and then in the order they were drawn."""

    X: Float  # (n_new, n_columns)
    strata: Int  # (n_new,)
    parents: Int  # (n_new,) rows of the records they start from
    notes: dict[int, str] = field(default_factory=dict)  # strata treated otherwise, and why


def smote(
    X: Float,
    strata: Int,
    counts: Mapping[int, int],
    *,
    is_category: Bool,
    n_levels: Int,
    k_neighbors: int,
    seed: int,
    max_memory_mib: int,
    start: Float | None = None,
) -> SmoteRecords:
    """Return new records between neighbours of the same stratum.

    A new record starts from a parent p and one of its ``k_neighbors`` nearest neighbours q. Numbers
    lie on the line from p to q, at one random place for all columns; a category is the most frequent one
    among p's neighbours, the nearest neighbour's in a tie. Distances are Euclidean over columns scaled
    to unit variance, with categories as in SMOTENC; where no number varies, they are SMOTEN's value
    difference metric.

    Nulls: the search sees the stratum's median, and null as a level of its own. The new record is null
    exactly where its parent is; where only q is null, it keeps p's value. Infinite values are treated
    likewise. A stratum of one record, or one where nothing varies, is copied instead and noted.

    Parameters
    ----------
    X : ndarray of float64, shape (n_records, n_columns)
        NaN for null, category columns as codes 0 … n_levels - 1. If sorted (by ``aug_id``), the result
        does not depend on the order of the source.
    strata : ndarray of int64, shape (n_records,)
    counts : mapping of int to int
        New records per stratum.
    is_category : ndarray of bool, shape (n_columns,)
    n_levels : ndarray of int64, shape (n_columns,)
        0 for numbers.
    k_neighbors : int
        At most the stratum's records less one are used.
    seed : int
        Each stratum draws from its own stream.
    max_memory_mib : int
        Compared with :func:`smote_memory_bytes`.
    start : ndarray of float64, shape (n_records,), optional
        Relative frequency of each record as a parent, within its stratum; uniform by default.

    Raises
    ------
    ParameterError
        If the estimated memory is above ``max_memory_mib``.
    EmptyClassError
        If records are requested of a stratum that has none.

    References
    ----------
    Chawla et al. 2002, "SMOTE: Synthetic Minority Over-sampling Technique", sections 4.2 (SMOTE),
    6.1 (SMOTE-NC) and 6.2 (SMOTE-N).
    """
    requested = {code: n for code, n in sorted(counts.items()) if n > 0}
    need = smote_memory_bytes(X, strata, counts, is_category=is_category, k_neighbors=k_neighbors)
    if need > max_memory_mib * MIB:
        raise too_large(need, strata.size, max_memory_mib)
    table = Searchable(X, strata, is_category, n_levels)
    parts: list[tuple[Float, Int]] = []
    notes: dict[int, str] = {}
    for code, n_new in requested.items():
        rows = np.flatnonzero(strata == code)
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
            parents = random_oversample_indices(strata, {code: n_new}, seed)
            parts.append((X[parents], parents))
        else:
            parts.append((_combine(table, drawn), drawn.parents))
    return SmoteRecords(
        X=np.concatenate([values for values, _ in parts] or [X[:0]]),
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


# --- values -----------------------------------------------------------------------------------


def _combine(table: Searchable, drawn: Drawn) -> Float:
    """Return the new records, shape (n_new, n_columns)."""
    values = table.X[drawn.parents]
    partners = table.X[drawn.partners]
    steps = drawn.steps[:, None]
    interpolates = table.is_number & ~table.missing[drawn.parents] & ~table.missing[drawn.partners]
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


def _vote(table: Searchable, voters: Int, place: int, column: int) -> Float:
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


def _blocks(n_rows: int, row_bytes: int, block_bytes: int = 16 * MIB) -> Iterator[slice]:
    """Yield slices of rows that need about ``block_bytes`` each."""
    step = max(1, block_bytes // row_bytes)
    yield from (slice(start, start + step) for start in range(0, n_rows, step))


# --- memory -----------------------------------------------------------------------------------


def smote_memory_bytes(
    X: Float,
    strata: Int,
    counts: Mapping[int, int],
    *,
    is_category: Bool,
    k_neighbors: int,
) -> int:
    """Return about how many bytes :func:`smote` needs beyond its arguments.

    Counted are scaled copies of all records, the search within the largest stratum (a square matrix of
    distances where no number varies), and the new records. Measured peaks were at most 0.9 of the
    estimate, for 100 to 500,000 new records and up to 35,000 levels.
    """
    n_columns, n_categories = is_category.size, int(is_category.sum())
    is_number = ~is_category.astype(bool)
    requested = {code: n for code, n in counts.items() if n > 0}
    needs = [0]
    for code, n_new in requested.items():
        rows = np.flatnonzero(strata == code)
        k = min(k_neighbors, rows.size - 1)
        if k < 1:
            continue
        search = rows.size * (8 * 6 * n_columns + 12 * 6 * n_categories + 8 * 3 * (k + 1))
        if n_categories and not _varies(X[np.ix_(rows, is_number)]):
            search += 8 * 3 * rows.size**2 + strata.size * n_columns * 16
        needs.append(search + n_new * (8 * 6 * n_columns + 8 * 2 * (k + 2)))
    copies = strata.size * n_columns * 8 * 4 + sum(requested.values()) * n_columns * 8 * 2
    return copies + max(needs) + 3 * DISTANCES_MIB * MIB  # distances, their order, a product


def _varies(numbers: Float) -> bool:
    """Whether any column has two different finite values."""
    finite = np.isfinite(numbers)
    low = np.where(finite, numbers, np.inf).min(axis=0, initial=np.inf)
    high = np.where(finite, numbers, -np.inf).max(axis=0, initial=-np.inf)
    return bool(np.any(low < high))
