"""Near copies and outliers: how near candidates are to training records, beside real records."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.array_types import Array, Bool, Float, Int, String
from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.classifiers.base import TrainClassifier
from prefect_augment.evaluation.neighbours import MIN_VALIDATION, Space, near_copies, real_distances
from prefect_augment.evaluation.quality.class_tests import CopyEvidence

# Below this many records even the training records' own distances say nothing: only exact copies count.
MIN_DISTANCES = 10
# Of real records' median distance, for copies that were moved; near-duplicates have about this.
MOVED_SHARE = 0.25
# Of uniform noise in the range of a class of 250, 4 % get through; at 0.99, where a few records with
# nulls set the limit, 73 % do.
OUTLIER_QUANTILE = 0.95


@dataclass(frozen=True)
class Near:
    """Distances of a stratum's candidates, and of real records, to its training records."""

    rows: Int  # candidates of the stratum
    distance: Float  # (n_rows,)
    real: Float  # of real records that were not trained on
    moved: CopyEvidence | None  # in the space that finds moved copies
    spaces: tuple[CopyEvidence, ...]  # per space, to test the class by; none with too few records


def one_of_each(stratum: Int, groups: Any) -> Bool:
    """Mask of the first record of each group in each stratum; all true without groups."""
    if groups is None:
        return np.ones(len(stratum), dtype=bool)
    group = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)
    _, first = np.unique(group * (stratum.max(initial=0) + 1) + stratum, return_index=True)
    mask = np.zeros(len(stratum), dtype=bool)
    mask[first] = True
    return mask


def training_distances(
    measures: "Measures",
    training: Labelled,
    validation: Labelled,
    candidates: Labelled,
    half: Bool,
    one_each: tuple[Bool, Bool],
) -> dict[int, Near]:
    """Distances of candidates to training records, by stratum.

    ``half`` is a mask of training records that divides no group. A class with fewer than 20 validation records is
    tested by distances to that half, of candidates and of all other real records: distances among training records
    come in pairs, which tests of independent records do not allow for. ``one_each`` masks one training and one
    validation record of each group, since records of a group are near together or far together.
    """
    result = {}
    spaces = [measures.space, *([measures.moved] if measures.moved is not None else [])]
    for s in map(int, np.unique(candidates.stratum)):
        rows = np.flatnonzero(candidates.stratum == s)
        of_training, of_validation = training.stratum == s, validation.stratum == s
        own, unseen = training.X[of_training], validation.X[of_validation]
        independent = one_each[1][of_validation]
        other_half = ~half[of_training] & one_each[0][of_training]
        per_space = [
            _in_space(
                x, own, unseen, candidates.X[rows], half[of_training], other_half, independent
            )
            for x in spaces
        ]
        near, moved = per_space[0][0], per_space[1][0] if len(per_space) > 1 else None
        result[s] = Near(
            rows=rows,
            distance=near.candidates,
            real=near.real,
            moved=moved if moved and len(moved.real) >= MIN_DISTANCES else None,
            spaces=tuple(e for _, e in per_space if len(e.real) >= MIN_DISTANCES),
        )
    return result


def _in_space(
    space: Space,
    training: Array,
    validation: Array,
    candidates: Array,
    half: Bool,
    rest: Bool,
    independent: Bool,
) -> tuple[CopyEvidence, CopyEvidence]:
    """Distances to compare single candidates by, and distances to test the class by.

    ``half`` and ``rest`` are masks of training records, ``independent`` of validation records.
    """
    own, unseen, synthetic = space.place(training), space.place(validation), space.place(candidates)
    near = CopyEvidence(space.nearest(synthetic, own), real_distances(space, own, unseen))
    if independent.sum() >= MIN_VALIDATION:
        alone = near.real if independent.all() else _finite(space.nearest(unseen[independent], own))
        return near, CopyEvidence(near.candidates, alone)
    real = [space.nearest(x, own[half]) for x in (own[rest], unseen[independent])]
    by_half = CopyEvidence(space.nearest(synthetic, own[half]), _finite(np.concatenate(real)))
    return near, by_half


def _finite(distances: Float) -> Float:
    return distances[np.isfinite(distances)]


def drop_copies_and_outliers(
    near: Mapping[int, Near],
    strata: Sequence[str],
    ordinals: Int,
    quantile: float,
    reason: String,
    notes: list[str],
) -> None:
    """Set the reasons ``near copy`` and ``outlier``."""
    for s, stratum in near.items():
        if len(stratum.real) < MIN_DISTANCES:
            notes.append(
                f"{strata[s]}: too few real records to take distances from; "
                "only exact copies are dropped."
            )
            copies, far = stratum.distance == 0.0, np.zeros(len(stratum.rows), dtype=bool)
        else:
            remaining = reason[stratum.rows] == ""
            copies = near_copies(
                stratum.distance, stratum.real, quantile, ordinals[stratum.rows], remaining
            )
            far = stratum.distance > np.quantile(stratum.real, OUTLIER_QUANTILE)
            if stratum.moved is not None:
                # Validation's own twins of training records may not cost more than the quantile allows.
                limit = min(
                    MOVED_SHARE * np.median(stratum.moved.real),
                    np.quantile(stratum.moved.real, quantile),
                )
                copies |= (stratum.moved.candidates < limit) & (stratum.distance > 0)
        set_reason(reason, stratum.rows[copies], "near copy")
        set_reason(reason, stratum.rows[far], "outlier")


def set_reason(reason: String, rows: Int, why: str) -> None:
    """Give a reason to those rows that have none yet."""
    reason[rows[reason[rows] == ""]] = why


@dataclass(frozen=True)
class Equality:
    """Records that equal a training record of any stratum: a copy under another label is a copy."""

    training: Bool  # equal to another training record
    validation: Bool
    candidates: Bool
    of_unique: Bool  # candidates equal to a training record that is unlike all other real ones


def equality(training: Array, validation: Array, candidates: Array) -> Equality:
    """Compare the records of all strata."""
    of_training, of_validation, of_candidates = map(digests, (training, validation, candidates))
    values, counts = np.unique(of_training, return_counts=True)
    unique = np.setdiff1d(values[counts == 1], of_validation)
    return Equality(
        training=np.isin(of_training, values[counts > 1]),
        validation=np.isin(of_validation, values),
        candidates=np.isin(of_candidates, values),
        of_unique=np.isin(of_candidates, unique),
    )


def digests(X: Array) -> NDArray[np.void]:
    """A 16-byte hash of each record: images of a thousand pixels are too large to sort."""
    rows = np.ascontiguousarray(comparable(X))
    digests = [hashlib.blake2b(row, digest_size=16).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype="V16")


def equality_evidence(
    hashes: Callable[[Array], Array] | None,
    training: Array,
    validation: Array,
    candidates: Array,
    *,
    equal: Bool,
    real_equal: Bool,
) -> dict[str, CopyEvidence]:
    """Candidates that equal training records, by kind of equality: 0 where equal, else 1.

    Real records to compare with are validation's, and training records with a twin. ``equal`` and
    ``real_equal`` say which candidates and which of these equal a training record exactly.
    """
    evidence = {"exact": CopyEvidence(*(np.where(mask, 0.0, 1.0) for mask in (equal, real_equal)))}
    if hashes is not None:
        of_training, of_validation, of_candidates = map(hashes, (training, validation, candidates))
        real = np.concatenate([np.isin(of_validation, of_training), _has_twin(of_training)])
        new = ~np.isin(of_candidates, of_training)
        evidence["hash"] = CopyEvidence(new.astype(np.float64), (~real).astype(np.float64))
    return evidence


def _has_twin(rows: Array) -> Bool:
    """Which rows occur more than once, shape (n,)."""
    if not len(rows):
        return np.zeros(0, dtype=bool)
    _, value, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    return np.asarray(counts[value.ravel()] > 1)


def comparable(X: Array) -> Array:
    """One row per record, nulls as a number, since NaN does not equal itself, and -0.0 as 0.0."""
    rows = X.reshape(len(X), math.prod(X.shape[1:]))
    if not np.issubdtype(rows.dtype, np.floating):
        return rows
    return np.where(np.isnan(rows), np.finfo(np.float64).max, rows) + 0


@dataclass(frozen=True)
class Measures:
    """How records of one kind of data are measured."""

    space: Space
    train: TrainClassifier
    # AUC of a classifier that tells real records (first argument) and synthetic ones apart.
    two_sample: Callable[[Array, Array], float] | None
    moved: Space | None = None  # a second space, in which copies that were moved are near too
    # (n,) codes that are equal where records look alike at a coarse resolution
    hashes: Callable[[Array], Array] | None = None
    # (n, n_features) of the user's encoder, in which fidelity is measured
    features: Callable[[Array], Array] | None = None

    @property
    def name(self) -> str:
        """What the report calls the measures of distance."""
        also = f"; near copies also by: {self.moved.name}" if self.moved else ""
        return self.space.name + also
