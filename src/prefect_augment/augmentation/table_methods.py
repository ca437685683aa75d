"""Classic records of tables by the method that is asked for, behind one call.

SMOTE and what differs from it in the records it starts from (Borderline-SMOTE, ADASYN), and copies that
are moved a little (random oversampling with shrinkage, jitter). All keep nulls, categories and the range
of a class's values; whole numbers, dates and grids come back when the encoder decodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prefect_augment.augmentation.table_neighbours import start_weights, stratum_seed
from prefect_augment.augmentation.tables import SmoteRecords, random_oversample_indices, smote
from prefect_augment.params import Classic

__all__ = ["make_records"]

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


def make_records(
    X: Floats,
    strata: Codes,
    counts: Mapping[int, int],
    *,
    classic: Classic,
    is_category: NDArray[np.bool_],
    n_levels: Codes,
    seed: int,
) -> SmoteRecords:
    """Return new records of the strata, exactly as many as wanted.

    Parameters
    ----------
    X, strata, counts, is_category, n_levels, seed
        As for :func:`.tables.smote`.
    classic : Classic
        The method (``table``) and what it needs.

    Returns
    -------
    SmoteRecords
        ``notes`` say where a stratum was treated otherwise than asked, and why.

    Raises
    ------
    ParameterError
        If the estimated memory is above ``classic.max_memory_mib``.
    EmptyClassError
        If records are wanted of a stratum that has none.

    References
    ----------
    Han et al. 2005, "Borderline-SMOTE"; He et al. 2008, "ADASYN"; Menardi & Torelli 2014, "Training and
    assessing classification rules with imbalanced data" (ROSE, the shrinkage).
    """
    if classic.table in ("oversampling", "jitter"):
        return _moved_copies(X, strata, counts, classic, is_category, seed)
    start: Floats | None = None
    notes: dict[int, str] = {}
    if classic.table in ("borderline", "adasyn"):
        start, notes = start_weights(
            X, strata, counts, method=classic.table, is_category=is_category, n_levels=n_levels,
            k_neighbors=classic.k_neighbors, max_memory_mib=classic.max_memory_mib,
        )  # fmt: skip
    made = smote(
        X,
        strata,
        counts,
        is_category=is_category,
        n_levels=n_levels,
        k_neighbors=classic.k_neighbors,
        seed=seed,
        max_memory_mib=classic.max_memory_mib,
        start=start,
    )
    joined = {
        k: "; ".join(filter(None, (notes.get(k), made.notes.get(k)))) for k in {*notes, *made.notes}
    }
    return SmoteRecords(made.X, made.strata, made.parents, joined)


def _moved_copies(
    X: Floats,
    strata: Codes,
    counts: Mapping[int, int],
    classic: Classic,
    is_category: NDArray[np.bool_],
    seed: int,
) -> SmoteRecords:
    """Return copies with normal noise on the numbers, within the range of the stratum's values."""
    wanted = {code: n for code, n in sorted(counts.items()) if n > 0}
    parents = random_oversample_indices(strata, wanted, seed)
    made = X[parents]
    numbers = np.flatnonzero(~is_category.astype(bool))
    start = 0
    for code, n in wanted.items():
        own, part = X[strata == code][:, numbers], made[start : start + n]
        rng = np.random.default_rng((stratum_seed(seed, code), 1))
        share = classic.jitter if classic.table == "jitter" else _bandwidth(own, classic.shrinkage)
        finite = np.where(np.isfinite(own), own, np.nan)
        low, high = _range(finite)
        values = part[:, numbers]
        with np.errstate(all="ignore"):
            noise = rng.standard_normal((n, len(numbers))) * share * _deviation(finite)
            moved = np.clip(values + noise, low, high)
        # A null stays one, and so does what is not finite.
        part[:, numbers] = np.where(np.isfinite(values), moved, values)
        start += n
    return SmoteRecords(made, np.repeat(np.array([*wanted], np.int64), [*wanted.values()]), parents)


def _bandwidth(own: Floats, shrinkage: float) -> float:
    """Silverman's rule for a normal kernel, as imbalanced-learn's RandomOverSampler has it."""
    n, d = own.shape
    return float(shrinkage * (4 / ((d + 2) * max(1, n))) ** (1 / (d + 4)))


def _deviation(values: Floats) -> Floats:
    """Standard deviation of each column's finite values, 0 where there is none."""
    found = [np.std(known) if (known := c[~np.isnan(c)]).size else 0.0 for c in values.T]
    deviation: Floats = np.nan_to_num(np.array(found), nan=0.0, posinf=0.0)
    return deviation


def _range(values: Floats) -> tuple[Floats, Floats]:
    """Smallest and largest finite value of each column."""
    low = [known.min() if (known := c[~np.isnan(c)]).size else 0.0 for c in values.T]
    high = [known.max() if (known := c[~np.isnan(c)]).size else 0.0 for c in values.T]
    return np.array(low), np.array(high)
