"""How near candidates are to training records, beside real records: near copies and outliers.

How records of one kind of data are measured, for the gate.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.classifiers.base import TrainClassifier
from prefect_augment.evaluation.neighbours import (
    MIN_VALIDATION,
    Space,
    near_copies,
    real_distances,
)
from prefect_augment.evaluation.quality.class_tests import CopyEvidence

__all__ = [
    "Equality",
    "Measures",
    "Near",
    "comparable",
    "equal_ways",
    "equality",
    "mark",
    "mark_near_and_far",
    "nearness",
    "one_of_each",
]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

# Below this many records even the training records' own distances say nothing; only exact copies count.
MIN_DISTANCES = 10
# Of real records' median distance, for copies that were moved: as near-duplicates have it.
MOVED_SHARE = 0.25
# Of uniform noise in the range of a class of 250, 4 % get through; at 0.99, where a few records with
# nulls set the limit, 73 % do.
OUTLIER_QUANTILE = 0.95


@dataclass(frozen=True)
class Near:
    """How near the candidates of a stratum are to its training records, and real records."""

    rows: Int
    distance: Float
    real: Float  # of real records that were not trained on, to hold candidates' against
    moved: CopyEvidence | None
    ways: tuple[CopyEvidence, ...]  # of being near, to judge the class by; none for too few


def one_of_each(stratum: Int, groups: Any) -> Bool:
    """Mark the first record of each group in each stratum; all where there are no groups."""
    if groups is None:
        return np.ones(len(stratum), dtype=bool)
    group = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)
    _, first = np.unique(group * (stratum.max(initial=0) + 1) + stratum, return_index=True)
    marked = np.zeros(len(stratum), dtype=bool)
    marked[first] = True
    return marked


def nearness(
    measures: Measures,
    training: Labelled,
    validation: Labelled,
    candidates: Labelled,
    half: Bool,
    one_each: tuple[Bool, Bool],
) -> dict[int, Near]:
    """How near candidates are to training records, by stratum.

    ``half`` marks training records, no group of which is divided. A class with fewer than 20 validation records is
    judged by distances to that half, of candidates and of all real records outside of it: the fit
    records' distances to one another come in pairs, which no test of single records knows of.
    ``one_each`` marks one training record and one validation record of each group: tests of single records hold for
    these alone, since records of a group are near together or far together.
    """
    found = {}
    spaces = [measures.space, *([measures.moved] if measures.moved is not None else [])]
    for s in map(int, np.unique(candidates.stratum)):
        rows = np.flatnonzero(candidates.stratum == s)
        of_training, of_validation = training.stratum == s, validation.stratum == s
        own, others, chosen = (
            training.X[of_training],
            validation.X[of_validation],
            one_each[1][of_validation],
        )
        rest = ~half[of_training] & one_each[0][of_training]
        sets = [
            _in_space(x, own, others, candidates.X[rows], half[of_training], rest, chosen)
            for x in spaces
        ]
        (near, way), moved = sets[0], sets[1] if len(sets) > 1 else None
        ways = [way, *([moved[1]] if moved else [])]
        found[s] = Near(
            rows=rows,
            distance=near.candidates,
            real=near.real,
            moved=moved[0] if moved and len(moved[0].real) >= MIN_DISTANCES else None,
            ways=tuple(w for w in ways if len(w.real) >= MIN_DISTANCES),
        )
    return found


def _in_space(
    space: Space,
    training: NDArray[Any],
    validation: NDArray[Any],
    candidates: NDArray[Any],
    half: Bool,
    rest: Bool,
    chosen: Bool,
) -> tuple[CopyEvidence, CopyEvidence]:
    """Distances to hold single candidates against, and those to judge the class by.

    ``half`` and ``rest`` mark training records, ``chosen`` validation records.
    """
    own, others, made = space.place(training), space.place(validation), space.place(candidates)
    near = CopyEvidence(space.nearest(made, own), real_distances(space, own, others))
    if chosen.sum() >= MIN_VALIDATION:
        alone = near.real if chosen.all() else _finite(space.nearest(others[chosen], own))
        return near, CopyEvidence(near.candidates, alone)
    real = [space.nearest(x, own[half]) for x in (own[rest], others[chosen])]
    seen = CopyEvidence(space.nearest(made, own[half]), _finite(np.concatenate(real)))
    return near, seen


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
                # Val's own twins of training records may not cost more candidates than the quantile allows.
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


@dataclass(frozen=True)
class Equality:
    """Who is equal to a training record, of whatever stratum: a copy under another label is a copy.

    Attributes
    ----------
    training, validation, candidates : ndarray of bool
        Equal to a training record; of training records, to another one.
    of_one : ndarray of bool, shape (n_candidates,)
        Equal to a training record that is unlike every other real record.
    """

    training: Bool
    validation: Bool
    candidates: Bool
    of_one: Bool


def equality(
    training: NDArray[Any], validation: NDArray[Any], candidates: NDArray[Any]
) -> Equality:
    """Compare the records of all strata."""
    of_training, of_validation, made = map(_digests, (training, validation, candidates))
    values, counts = np.unique(of_training, return_counts=True)
    alone = np.setdiff1d(values[counts == 1], of_validation)
    return Equality(
        training=np.isin(of_training, values[counts > 1]),
        validation=np.isin(of_validation, values),
        candidates=np.isin(made, values),
        of_one=np.isin(made, alone),
    )


def _digests(X: NDArray[Any]) -> NDArray[np.void]:
    """A short name of each record; images of a thousand are too large to sort."""
    # -0.0 is 0.0
    found = [hashlib.blake2b((row + 0).tobytes(), digest_size=16).digest() for row in comparable(X)]
    return np.frombuffer(b"".join(found), dtype="V16")


def equal_ways(
    measures: Measures,
    training: NDArray[Any],
    validation: NDArray[Any],
    candidates: NDArray[Any],
    exact: Equality,
) -> dict[str, CopyEvidence]:
    """Ways in which candidates are equal to training records, beside validation's records and fit's own twins.

    ``exact`` is of the same records. Distances are 0 where records are equal, and 1.
    """
    apart = [~exact.candidates, ~np.concatenate([exact.validation, exact.training])]
    found = {"exact": CopyEvidence(*(x.astype(np.float64) for x in apart))}
    if measures.hashes is not None:
        seen, others, made = (measures.hashes(X) for X in (training, validation, candidates))
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


@dataclass(frozen=True)
class Measures:
    """How records of one kind of data are measured.

    Attributes
    ----------
    space : Space
        Where distances are measured.
    train : callable
        Returns a class-balanced classifier of records and their class codes.
    two_sample : callable, optional
        AUC of a classifier that tells real records (first argument) and synthetic ones apart.
    moved : Space, optional
        A second measure, in which copies that were moved a little are near too.
    hashes : callable, optional
        Codes of records, shape (n,), that are equal where records look alike from afar.
    """

    space: Space
    train: TrainClassifier
    two_sample: Callable[[NDArray[Any], NDArray[Any]], float] | None
    moved: Space | None = None
    hashes: Callable[[NDArray[Any]], NDArray[Any]] | None = None

    @property
    def name(self) -> str:
        """What the report calls the measures of distance."""
        also = f"; near copies also by: {self.moved.name}" if self.moved else ""
        return self.space.name + also
