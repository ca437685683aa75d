"""Which candidates pass: per record and stratum, on fit and val records only.

The checks work from distances and class probabilities; what measures them for a kind of data comes
as :class:`Measures`: :mod:`~prefect_augment.evaluation.table_gates` for tables,
:mod:`~prefect_augment.evaluation.image_gates` for images. A candidate is dropped for the first of these that holds:

``domain``
    It breaks the domain (the caller's mask says so).
``near copy``
    It is nearer to a fit record of its stratum than val's own records are, but for the nearest
    ``near_copy_quantile`` of them. A generator that repeats what it was trained on fails here. Where
    there is a second measure, for copies that were moved, so does what is nearer by that one than a
    quarter of val's median (and than the same quantile of val).
``outlier``
    It is farther from every fit record of its stratum than 95 % of val's own records are. Noise
    fails here.
``label``
    A class-balanced classifier gives its class a lower probability than to all but the lowest
    ``fidelity_quantile`` of val's own records of that class.
``repeat``
    The same record takes a larger share of what passed than the most frequent real record takes
    of its stratum. A generator that has collapsed fails here.

What passes is kept up to the number wanted: for *utility* those that another classifier finds most
like their class (trained on the other half of the fit records, so that the filter does not teach to
the test), for *faithful* the first ordinals. The rest is ``surplus``. Records with *soft* labels are
kept as faithful ones, and their class is not checked: those near a border say most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.datatypes import ClassGate
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.candidates import GateOutcome, Labelled, Purpose
from prefect_augment.evaluation.fidelity import (
    Halves,
    TrainClassifier,
    label_limits,
    utility_scores,
)
from prefect_augment.evaluation.neighbours import Space, near_copies, real_distances
from prefect_augment.evaluation.similarity import MAX_COMPARED, density_coverage

__all__ = ["REASONS", "Measures", "gate_records"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

REASONS = ("domain", "near copy", "outlier", "label", "repeat", "surplus")
# Below this many records even the fit records' own distances say nothing; only exact copies count.
MIN_DISTANCES = 10
# Of real records' median distance, for copies that were moved: as near-duplicates have it.
MOVED_SHARE = 0.25
# Of uniform noise in the range of a class of 250, 4 % get through; at 0.99, where a few records with
# nulls set the limit, 73 % do.
OUTLIER_QUANTILE = 0.95
MIN_TO_COMPARE = 20  # records a side for the two-sample test
MAX_STRATA_COMPARED = 50  # the two-sample test takes about half a second a stratum


@dataclass(frozen=True)
class Measures:
    """How records of one kind of data are measured.

    Attributes
    ----------
    space : Space
        Where distances are measured.
    train : callable
        Returns a class-balanced classifier of records and their class codes.
    two_sample : callable
        AUC of a classifier that tells real records (first argument) and synthetic ones apart.
    moved : Space, optional
        A second measure, in which copies that were moved a little are near too.
    """

    space: Space
    train: TrainClassifier
    two_sample: Callable[[NDArray[Any], NDArray[Any]], float]
    moved: Space | None = None

    @property
    def name(self) -> str:
        """What the report calls the measures of distance."""
        also = f"; near copies also by: {self.moved.name}" if self.moved else ""
        return self.space.name + also


def gate_records(
    fit: Labelled,
    val: Labelled,
    candidates: Labelled,
    *,
    measures: Measures,
    strata: Sequence[str],
    stratum_class: Int,
    wanted: Int,
    ordinals: Int,
    fit_keys: Sequence[str] | NDArray[np.str_],
    fit_groups: Any = None,
    in_domain: Bool | None = None,
    purpose: Purpose = "utility",
    near_copy_quantile: float = 0.05,
    fidelity_quantile: float = 0.05,
    seed: int = 0,
    metrics: bool = True,
) -> GateOutcome:
    """Judge candidates against real records, and keep what is wanted of those that pass.

    Parameters
    ----------
    fit : Labelled
        Records that the model was trained on.
    val : Labelled
        Real records that it has not seen.
    candidates : Labelled
        Sampled records with the stratum they were asked for.
    measures : Measures
        Of the records' kind.
    strata : sequence of str, length n_strata
        Names in code order.
    stratum_class : ndarray of int64, shape (n_strata,)
        Class code of each stratum; labels are judged by class.
    wanted : ndarray of int64, shape (n_strata,)
        Records to keep at most.
    ordinals : ndarray of int64, shape (n_candidates,)
        Place of each candidate in its stratum.
    fit_keys : sequence of str, length n_fit
        What names each fit record; decides the halves of the two classifiers.
    fit_groups : sequence, length n_fit, optional
        Records of a group stay in one half.
    in_domain : ndarray of bool, shape (n_candidates,), optional
        False where a candidate breaks the domain.
    purpose : {"utility", "faithful", "soft"}
    near_copy_quantile, fidelity_quantile : float in [0, 1)
        Share of real records that each check would drop; 0 drops only what is beyond all of val.
    seed : int
    metrics : bool
        Measure density, coverage and the two-sample test too; an arm's fold does without.

    Returns
    -------
    GateOutcome

    Raises
    ------
    ParameterError
        If a quantile is outside [0, 1) or lengths differ.

    Notes
    -----
    A stratum with fewer than 20 val records is held against its fit records' distances to one
    another; with fewer than 10 of those too, only exact copies are dropped, and no outliers. Where
    val itself has exact copies of fit records in the quantile (a table with many repeated rows),
    exact copies may make up the same share of what is kept as they make up of val, first ordinals
    first, and the rest is held against val's positive distances. A class with fewer than five fit
    records in the classifier's half is not checked for its label.
    """
    _check(candidates, ordinals, wanted, strata, near_copy_quantile, fidelity_quantile)
    notes: list[str] = []
    reason = np.full(len(candidates), "", dtype="U16")
    if in_domain is not None:
        reason[~in_domain] = "domain"

    distance = _near_and_far(
        measures, fit, val, candidates, ordinals, strata, near_copy_quantile, reason, notes
    )
    wanted_class = stratum_class[candidates.stratum]
    score = np.zeros(len(candidates))
    if purpose != "soft":
        halves = Halves.of(fit, fit_keys, fit_groups, stratum_class, measures.train, seed)
        limits = label_limits(halves, val, stratum_class, fidelity_quantile)
        doubtful = utility_scores(halves.judge, candidates.X, wanted_class) < limits[wanted_class]
        _mark(reason, np.flatnonzero(doubtful), "label")
        notes += [
            f"{_class_name(strata, stratum_class, k)}: too few real records for a classifier; "
            "labels are not checked."
            for k in np.unique(wanted_class[np.isnan(limits[wanted_class])])
        ]
        score = utility_scores(halves.filter, candidates.X, wanted_class)

    for s in np.unique(candidates.stratum):
        rows = np.flatnonzero((candidates.stratum == s) & (reason == ""))
        real = np.concatenate([fit.X[fit.stratum == s], val.X[val.stratum == s]])
        rows = rows[np.argsort(ordinals[rows], kind="stable")]
        reason[rows[_repeats(candidates.X[rows], real)]] = "repeat"

    passed = reason == ""
    kept = _keep(passed, candidates.stratum, ordinals, score, wanted, purpose)
    reason[passed & ~kept] = "surplus"
    shown = np.flatnonzero(
        (wanted > 0) | (np.bincount(candidates.stratum, minlength=len(strata)) > 0)
    )
    facts = tuple(
        ClassGate(
            name=strata[s],
            n_candidates=int((candidates.stratum == s).sum()),
            n_passed=int((passed & (candidates.stratum == s)).sum()),
            n_kept=int((kept & (candidates.stratum == s)).sum()),
            reasons=_count_reasons(reason[candidates.stratum == s]),
            metrics=_metrics(
                measures, fit, val, candidates, kept, distance, s,
                with_c2st=len(shown) <= MAX_STRATA_COMPARED,
            ) if metrics else {},
        )
        for s in map(int, shown)
    )  # fmt: skip
    if len(shown) > MAX_STRATA_COMPARED:
        notes.append(f"C2ST is left out: {len(shown)} strata would take too long.")
    return GateOutcome(passed, kept, reason, score, facts, measures.name, tuple(notes))


def _near_and_far(
    measures: Measures,
    fit: Labelled,
    val: Labelled,
    candidates: Labelled,
    ordinals: Int,
    strata: Sequence[str],
    quantile: float,
    reason: NDArray[np.str_],
    notes: list[str],
) -> Float:
    """Mark near copies and outliers in ``reason``; returns each candidate's distance."""
    space = measures.space
    placed_fit, placed_val = space.place(fit.X), space.place(val.X)
    placed = space.place(candidates.X)
    distance = np.full(len(candidates), np.inf)
    for s in np.unique(candidates.stratum):
        rows = np.flatnonzero(candidates.stratum == s)
        own = placed_fit[fit.stratum == s]
        distance[rows] = space.nearest(placed[rows], own)
        real = real_distances(space, own, placed_val[val.stratum == s])
        if len(real) < MIN_DISTANCES:
            notes.append(
                f"{strata[s]}: too few real records to take distances from; "
                "only exact copies are dropped."
            )
            near, far = distance[rows] == 0.0, np.zeros(len(rows), dtype=bool)
        else:
            near = near_copies(distance[rows], real, quantile, ordinals[rows], reason[rows] == "")
            far = distance[rows] > np.quantile(real, OUTLIER_QUANTILE)
            if measures.moved is not None:
                sets = (fit.X[fit.stratum == s], val.X[val.stratum == s], candidates.X[rows])
                near |= _moved_copies(measures.moved, *sets, quantile) & (distance[rows] > 0)
        _mark(reason, rows[near], "near copy")
        _mark(reason, rows[far], "outlier")
    return distance


def _moved_copies(
    space: Space,
    fit: NDArray[Any],
    val: NDArray[Any],
    candidates: NDArray[Any],
    quantile: float,
) -> Bool:
    """Which candidates are far nearer to a fit record than real records usually are."""
    placed_fit = space.place(fit)
    real = real_distances(space, placed_fit, space.place(val))
    if len(real) < MIN_DISTANCES:
        return np.zeros(len(candidates), dtype=bool)
    # Val's own twins of fit records may not cost more candidates than the quantile allows.
    limit = min(MOVED_SHARE * np.median(real), np.quantile(real, quantile))
    near: Bool = space.nearest(space.place(candidates), placed_fit) < limit
    return near


def _repeats(X: NDArray[Any], real: NDArray[Any]) -> Bool:
    """Candidates, in order, that repeat earlier ones more often than real records repeat."""
    if not len(X) or not len(real):
        return np.zeros(len(X), dtype=bool)
    _, real_counts = np.unique(_comparable(real), axis=0, return_counts=True)
    n_allowed = -(-int(real_counts.max()) * len(X) // len(real))  # rounded up
    _, value = np.unique(_comparable(X), axis=0, return_inverse=True)
    order = np.argsort(value, kind="stable")
    first = np.searchsorted(value[order], value[order])  # where each value begins
    repeats = np.empty(len(X), dtype=bool)
    repeats[order] = np.arange(len(X)) - first >= n_allowed
    return repeats


def _comparable(X: NDArray[Any]) -> NDArray[Any]:
    """One row per record, nulls as a number: NaN equals nothing, itself included."""
    rows = X.reshape(len(X), -1)
    if not np.issubdtype(rows.dtype, np.floating):
        return rows
    return np.where(np.isnan(rows), np.finfo(np.float64).max, rows)


def _keep(
    passed: Bool, stratum: Int, ordinals: Int, score: Float, wanted: Int, purpose: Purpose
) -> Bool:
    """The wanted number per stratum: highest scores for utility, first ordinals for faithful."""
    kept = np.zeros(len(passed), dtype=bool)
    first = -score if purpose == "utility" else np.zeros(len(score))
    order = np.lexsort((ordinals, first))
    order = order[passed[order]]
    for s in np.unique(stratum):
        kept[order[stratum[order] == s][: wanted[s]]] = True
    return kept


def _metrics(
    measures: Measures,
    fit: Labelled,
    val: Labelled,
    candidates: Labelled,
    kept: Bool,
    distance: Float,
    s: int,
    *,
    with_c2st: bool,
) -> dict[str, float]:
    """Shares over all candidates of a stratum, and likeness of the kept ones to real records."""
    rows = candidates.stratum == s
    own_fit, own_val = fit.X[fit.stratum == s], val.X[val.stratum == s]
    # The generator has seen fit: val is the better witness where it is large enough.
    real = own_val if len(own_val) >= MIN_TO_COMPARE else np.concatenate([own_val, own_fit])
    synthetic = candidates.X[rows & kept][:MAX_COMPARED]
    density, coverage = density_coverage(real, synthetic, space=measures.space)
    found = {"density": density, "coverage": coverage}
    if with_c2st and min(len(real), len(synthetic)) >= MIN_TO_COMPARE:
        found["c2st_auc"] = measures.two_sample(real, synthetic)
    if rows.any():
        found["exact_copy_fraction"] = float((distance[rows] == 0).mean())
        found["median_distance"] = float(np.median(distance[rows]))
    # JSON has no NaN or infinity: what cannot be measured is left out.
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _mark(reason: NDArray[np.str_], rows: Int, why: str) -> None:
    """Give a reason to those rows that have none yet."""
    reason[rows[reason[rows] == ""]] = why


def _class_name(strata: Sequence[str], stratum_class: Int, k: int) -> str:
    """The class's name, from any stratum of it ("class" or "class | column=value")."""
    return strata[int(np.flatnonzero(stratum_class == k)[0])].split(" | ")[0]


def _count_reasons(reason: NDArray[np.str_]) -> dict[str, int]:
    return {why: n for why in REASONS if (n := int((reason == why).sum()))}


def _check(
    candidates: Labelled,
    ordinals: Int,
    wanted: Int,
    strata: Sequence[str],
    near_copy_quantile: float,
    fidelity_quantile: float,
) -> None:
    if len(ordinals) != len(candidates) or len(wanted) != len(strata):
        raise ParameterError(
            f"expected {len(candidates)} ordinals and {len(strata)} wanted counts; found "
            f"{len(ordinals)} and {len(wanted)}."
        )
    for name, value in (
        ("near_copy_quantile", near_copy_quantile),
        ("fidelity_quantile", fidelity_quantile),
    ):
        if not 0.0 <= value < 1.0:
            raise ParameterError(f"{name}={value} is not a share; choose it in [0, 1).")
