"""How near candidates are to training records, beside real records: near copies and outliers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.evaluation.candidates import Labelled
from prefect_augment.evaluation.class_gates import CopyEvidence
from prefect_augment.evaluation.measures import Measures
from prefect_augment.evaluation.neighbours import MIN_VAL, Space, near_copies, real_distances

__all__ = ["Near", "comparable", "equal_ways", "mark", "mark_near_and_far", "nearness"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

# Below this many records even the fit records' own distances say nothing; only exact copies count.
MIN_DISTANCES = 10
# Of real records' median distance, for copies that were moved: as near-duplicates have it.
MOVED_SHARE = 0.25
# Of uniform noise in the range of a class of 250, 4 % get through; at 0.99, where a few records with
# nulls set the limit, 73 % do.
OUTLIER_QUANTILE = 0.95


@dataclass(frozen=True)
class Near:
    """How near the candidates of a stratum are to its fit records, and real records."""

    rows: Int
    distance: Float
    real: Float  # of real records that were not trained on, to hold candidates' against
    val: Float  # of val's, however few
    moved: CopyEvidence | None
    ways: tuple[CopyEvidence, ...]  # of being near, to judge the class by; none for too few


def nearness(
    measures: Measures, fit: Labelled, val: Labelled, candidates: Labelled, half: Bool
) -> dict[int, Near]:
    """How near candidates are to fit records, by stratum.

    ``half`` marks fit records, no group of which is divided. A class with fewer than 20 val records is
    judged by distances to that half, of candidates and of all real records outside of it: the fit
    records' distances to one another come in pairs, which no test of single records knows of.
    """
    found = {}
    spaces = [measures.space, *([measures.moved] if measures.moved is not None else [])]
    for s in map(int, np.unique(candidates.stratum)):
        rows = np.flatnonzero(candidates.stratum == s)
        own, others = fit.X[fit.stratum == s], val.X[val.stratum == s]
        sets = [
            _in_space(x, own, others, candidates.X[rows], half[fit.stratum == s]) for x in spaces
        ]
        (near, of_val, way), moved = sets[0], sets[1] if len(sets) > 1 else None
        ways = [way, *([moved[2]] if moved else [])]
        found[s] = Near(
            rows=rows,
            distance=near.candidates,
            real=near.real,
            val=of_val,
            moved=moved[0] if moved and len(moved[0].real) >= MIN_DISTANCES else None,
            ways=tuple(w for w in ways if len(w.real) >= MIN_DISTANCES),
        )
    return found


def _in_space(
    space: Space, fit: NDArray[Any], val: NDArray[Any], candidates: NDArray[Any], half: Bool
) -> tuple[CopyEvidence, Float, CopyEvidence]:
    """Distances to hold single candidates against, val's own, and those to judge the class by."""
    own, others, made = space.place(fit), space.place(val), space.place(candidates)
    near = CopyEvidence(space.nearest(made, own), real_distances(space, own, others))
    if len(others) >= MIN_VAL:
        return near, near.real, near
    real = [space.nearest(x, own[half]) for x in (own[~half], others)]
    seen = CopyEvidence(space.nearest(made, own[half]), _finite(np.concatenate(real)))
    return near, space.nearest(others, own), seen


def _finite(distances: Float) -> Float:
    """Distances to something: none where there is nothing to be near to."""
    return distances[np.isfinite(distances)]


def mark_near_and_far(
    near: Mapping[int, Near],
    strata: Sequence[str],
    ordinals: Int,
    quantile: float,
    reason: NDArray[np.str_],
    notes: list[str],
) -> None:
    """Mark near copies and outliers in ``reason``."""
    for s, of in near.items():
        if len(of.real) < MIN_DISTANCES:
            notes.append(
                f"{strata[s]}: too few real records to take distances from; "
                "only exact copies are dropped."
            )
            copies, far = of.distance == 0.0, np.zeros(len(of.rows), dtype=bool)
        else:
            standing = reason[of.rows] == ""
            copies = near_copies(of.distance, of.real, quantile, ordinals[of.rows], standing)
            far = of.distance > np.quantile(of.real, OUTLIER_QUANTILE)
            if of.moved is not None:
                # Val's own twins of fit records may not cost more candidates than the quantile allows.
                limit = min(
                    MOVED_SHARE * np.median(of.moved.real), np.quantile(of.moved.real, quantile)
                )
                copies |= (of.moved.candidates < limit) & (of.distance > 0)
        mark(reason, of.rows[copies], "near copy")
        mark(reason, of.rows[far], "outlier")


def mark(reason: NDArray[np.str_], rows: Int, why: str) -> None:
    """Give a reason to those rows that have none yet."""
    reason[rows[reason[rows] == ""]] = why


# --- equal records ----------------------------------------------------------------------------


def equal_ways(
    measures: Measures,
    fit: NDArray[Any],
    val: NDArray[Any],
    candidates: NDArray[Any],
    of: Near,
) -> dict[str, CopyEvidence]:
    """Ways in which candidates are equal to fit records, beside val's records and fit's own twins."""
    twins = _has_twin(comparable(fit))
    found = {
        "exact": CopyEvidence(of.distance, np.concatenate([of.val, (~twins).astype(np.float64)]))
    }
    if measures.hashes is not None:
        seen, others, made = (measures.hashes(X) for X in (fit, val, candidates))
        real = np.concatenate([np.isin(others, seen), _has_twin(seen)])
        made_apart = ~np.isin(made, seen)
        found["hash"] = CopyEvidence(made_apart.astype(np.float64), (~real).astype(np.float64))
    return found


def _has_twin(rows: NDArray[Any]) -> Bool:
    """Which rows occur more than once, shape (n,)."""
    if not len(rows):
        return np.zeros(0, dtype=bool)
    _, value, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    return np.asarray(counts[value.ravel()] > 1)


def comparable(X: NDArray[Any]) -> NDArray[Any]:
    """One row per record, nulls as a number: NaN equals nothing, itself included."""
    rows = X.reshape(len(X), math.prod(X.shape[1:]))
    if not np.issubdtype(rows.dtype, np.floating):
        return rows
    return np.where(np.isnan(rows), np.finfo(np.float64).max, rows)
