"""Neighbours of table records: which pairs are combined, and which records are started from.

imbalanced-learn finds the neighbours within a class and draws; its rules for nulls, tiny classes and
category columns are replaced, see :mod:`.smote`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from imblearn.over_sampling import SMOTE, SMOTEN
from scipy import sparse
from sklearn import config_context
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils import check_random_state
from threadpoolctl import threadpool_limits

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.errors import ParameterError

MIB = 1024 * 1024
# scikit-learn's blocks of distances; its default of 1 GiB would be most of the memory.
DISTANCES_MIB = 32


def stratum_seed(seed: int, code: int) -> int:
    """Return the seed of one stratum's stream, in the 32 bits that imbalanced-learn takes."""
    return int(np.random.SeedSequence((seed % 2**64, code)).generate_state(1)[0])


def too_large(need: int, n_records: int, max_memory_mib: int) -> ParameterError:
    """Return the error for too little memory, with advice."""
    return ParameterError(
        f"SMOTE would need about {need / MIB:,.0f} MiB for {n_records:,} records and "
        f"classic.max_memory_mib allows {max_memory_mib:,}; raise it, lower balance.target or "
        "balance.max_per_class, or choose classic.table='none'. (Where all columns are categories, "
        "every record of a class is compared with every other: fewer records need far less.)",
        need_bytes=need,
        max_memory_mib=max_memory_mib,
    )


# --- neighbours -------------------------------------------------------------------------------


class Searchable:
    """The records as the neighbour search needs them: without nulls, numbers of unit variance."""

    def __init__(self, X: Float, strata: Int, is_category: Bool, n_levels: Int) -> None:
        self.X = X
        self.strata = strata
        self.is_category = is_category.astype(bool)
        self.is_number = ~self.is_category
        self.missing = ~np.isfinite(X)
        # Null is the level after the last, so that two nulls are alike and unlike any value.
        levels = np.where(self.missing, n_levels.astype(np.float64), X)[:, self.is_category]
        self.levels = levels.astype(np.int64)
        self.numbers = _unit_variance(np.where(self.missing, np.nan, X)[:, self.is_number])

    def numbers_of(self, rows: Int) -> Float:
        """Return the stratum's varying numbers, nulls as its medians, shape (n_rows, n_varying)."""
        filled = _median_filled(self.numbers[rows])
        return filled[:, np.ptp(filled, axis=0) > 0] if filled.size else filled[:, :0]


def _median_filled(numbers: Float) -> Float:
    """Return columns with their medians for nulls."""
    medians = [np.median(known) if (known := c[~np.isnan(c)]).size else 0.0 for c in numbers.T]
    return np.where(np.isnan(numbers), np.array(medians), numbers)


def _unit_variance(numbers: Float) -> Float:
    """Return the columns over their standard deviation; constant and empty ones unscaled."""
    out = np.empty_like(numbers)
    for j, column in enumerate(numbers.T):
        known = column[~np.isnan(column)]
        # Divide by the peak first, or values near 1e308 would square to infinity.
        peak = np.abs(known).max(initial=0.0) or 1.0
        spread = float(np.std(known / peak)) if known.size else 0.0
        out[:, j] = column / peak / (spread or 1.0)
    return out


@dataclass(frozen=True)
class Drawn:
    """Which rows of the whole matrix are combined."""

    parents: Int  # (n_new,)
    partners: Int  # (n_new,)
    steps: Float  # (n_new,) place on the line from parent to partner
    voters: Int  # (n_new, k) rows that vote on categories, nearest first
    neighbours: Int  # (n_rows, k) of every row of the stratum, nearest first


def draw(
    table: Searchable, rows: Int, n_new: int, k_neighbors: int, seed: int
) -> tuple[Drawn | None, str]:
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
    # scikit-learn splits the search by the number of threads, which decides between equally near
    # neighbours (for 90 % of 1,500 records of 20 two-valued columns, measured).
    with threadpool_limits(1, user_api="openmp"), config_context(working_memory=DISTANCES_MIB):
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


def _draw_nominal(table: Searchable, rows: Int, n_new: int, k: int, seed: int) -> Drawn:
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
    """SMOTE that notes its draws; :func:`.smote._combine` makes the values."""

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


# --- where to start from ----------------------------------------------------------------------

DANGER_NEIGHBORS = 10  # imbalanced-learn's m_neighbors


def start_weights(
    X: Float,
    strata: Int,
    counts: Mapping[int, int],
    *,
    method: str,
    is_category: Bool,
    n_levels: Int,
    k_neighbors: int,
    max_memory_mib: int,
) -> tuple[Float, dict[int, str]]:
    """Return how often each record is started from, and notes on strata without such a record.

    ``borderline``: only records with at least half, but not all, of their ten nearest neighbours in other
    strata. ``adasyn``: in proportion to the share of other strata among the ``k_neighbors`` nearest. A
    stratum without such records starts from all of them, as SMOTE does. Raises ParameterError if the
    estimated memory is above ``max_memory_mib``.

    References
    ----------
    Han et al. 2005, "Borderline-SMOTE", section 3; He et al. 2008, "ADASYN", section III.
    """
    n, d = X.shape
    # Filled records, their one-hot levels, and a tree or a block of distances.
    need = n * (8 * 4 * d + 12 * int(is_category.sum())) + 3 * DISTANCES_MIB * MIB
    if need > max_memory_mib * MIB:
        raise too_large(need, strata.size, max_memory_mib)
    table = Searchable(X, strata, is_category, n_levels)
    numbers = _median_filled(table.numbers)
    if table.levels.shape[1]:  # constant numbers tell nothing about the distance of two levels
        numbers = numbers[:, numbers.std(axis=0) > 0]
    matrix = _with_levels(numbers, table.levels) if table.levels.shape[1] else numbers
    n_neighbors = min(DANGER_NEIGHBORS if method == "borderline" else k_neighbors, n - 1)
    weights, notes = np.ones(n), {}
    with threadpool_limits(1), config_context(working_memory=DISTANCES_MIB):
        search = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(matrix)
        for code in sorted(code for code, n_new in counts.items() if n_new > 0):
            rows = np.flatnonzero(strata == code)
            if not rows.size or not n_neighbors:
                continue
            nearest = search.kneighbors(matrix[rows], return_distance=False)
            others = (strata[nearest] != code).sum(axis=1) / n_neighbors
            if method == "borderline":
                others = ((others >= 0.5) & (others < 1.0)).astype(np.float64)
            if others.any():
                weights[rows] = others
            else:
                notes[code] = (
                    "started from any record: none is at the border"
                    if method == "borderline"
                    else "started from any record: no other class is near"
                )
    return weights, notes
