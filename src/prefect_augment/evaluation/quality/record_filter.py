"""Which candidates pass: per record and stratum, on training and validation records only.

The checks work from distances and class probabilities; what measures them for a kind of data comes
as :class:`Measures`: :mod:`~prefect_augment.evaluation.quality.table_filter` for tables and
:mod:`~prefect_augment.evaluation.quality.image_filter` for images.
A candidate is dropped for the first of these that holds:

``domain``
    It breaks the domain (the caller's mask says so).
``near copy``
    It is nearer to a training record of its stratum than validation's own records are, but for the nearest
    ``near_copy_quantile`` of them. A generator that repeats what it was trained on fails here. Where
    there is a second measure, for copies that were moved, so does what is nearer by that one than a
    quarter of validation's median (and than the same quantile of validation records), and what equals a
    training record of any stratum that is unlike every other real record.
``outlier``
    It is farther from every training record of its stratum than 95 % of validation's own records are. Noise
    fails here.
``label``
    A class-balanced classifier gives its class a lower probability than to all but the lowest
    ``fidelity_quantile`` of validation's own records of that class.
``repeat``
    The same record takes a larger share of what passed than the most frequent real record takes
    of its stratum. A generator that has collapsed fails here.

What passes is kept up to the number wanted: for *utility* those that another classifier finds most
like their class (trained on the other half of the training records, so that the filter does not teach to
the test), for *faithful* the first ordinals. The rest is ``surplus``. Records with *soft* labels are
kept as faithful ones, and their class is not checked: those near a border say most.

All candidates of a stratum are judged together as well, by :mod:`.class_gates`: the verdict says
whether the class is safe. Of an unsafe class nothing is kept where that is asked for (``drop_unsafe``;
the reason is ``unsafe class``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import FilterOutcome, Labelled, Limits, Purpose
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.quality.class_metrics import Stratum, class_evidence, class_metrics
from prefect_augment.evaluation.quality.class_tests import class_checks, class_verdict, said_of
from prefect_augment.evaluation.quality.label_fidelity import (
    Halves,
    label_limits,
    mistaken,
    real_probabilities,
    utility_scores,
)
from prefect_augment.evaluation.quality.near_copies import (
    Equality,
    Measures,
    comparable,
    equal_ways,
    equality,
    mark,
    mark_near_and_far,
    nearness,
    one_of_each,
)
from prefect_augment.schema.base import ClassCheck, ClassFilter

__all__ = ["REASONS", "Measures", "filter_records"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

REASONS = ("domain", "near copy", "outlier", "label", "repeat", "unsafe class", "surplus")
MAX_STRATA_COMPARED = 50  # the two-sample test takes about half a second a stratum


@dataclass(frozen=True)
class _Labels:
    """What the judge of labels says.

    ``proba`` is of the candidates, ``real`` of real records that it has not seen either, by class.
    """

    wanted: Int
    proba: Float
    real: tuple[Float | None, ...]

    @classmethod
    def of(
        cls, halves: Halves, validation: Labelled, candidates: Labelled, stratum_class: Int
    ) -> _Labels:
        """Ask the judge."""
        return cls(
            stratum_class[candidates.stratum],
            halves.judge.predict_proba(candidates.X),
            real_probabilities(halves, validation, stratum_class),
        )

    def doubtful(self, quantile: float) -> Int:
        """Candidates that look less like their class than most real records do."""
        lowest = label_limits(self.real, quantile)[self.wanted]
        return np.flatnonzero(self.proba[np.arange(len(self.proba)), self.wanted] < lowest)

    def mistaken(self, rows: Int, k: int) -> tuple[Bool, Bool] | tuple[None, None]:
        """Which of these candidates of a class are taken for another one, and which real records."""
        real = self.real[k]
        if real is None:
            return None, None
        return mistaken(self.proba[rows], k), mistaken(real, k)


class _Compared(NamedTuple):
    """What was found out about a stratum as a whole."""

    checks: tuple[ClassCheck, ...] = ()
    verdict: Literal["safe", "unsafe", "not judged"] = "not judged"
    metrics: Mapping[str, float] = MappingProxyType({})


def filter_records(
    training: Labelled,
    validation: Labelled,
    candidates: Labelled,
    *,
    measures: Measures,
    strata: Sequence[str],
    stratum_class: Int,
    wanted: Int,
    ordinals: Int,
    training_keys: Sequence[str] | NDArray[np.str_],
    training_groups: Any = None,
    validation_groups: Any = None,
    in_domain: Bool | None = None,
    purpose: Purpose = "utility",
    near_copy_quantile: float = 0.05,
    fidelity_quantile: float = 0.05,
    seed: int = 0,
    metrics: bool = True,
    limits: Limits | None = None,
    drop_unsafe: bool = False,
) -> FilterOutcome:
    """Judge candidates against real records, and keep what is wanted of those that pass.

    Parameters
    ----------
    training : Labelled
        Records that the model was trained on.
    validation : Labelled
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
    training_keys : sequence of str, length n_training
        What names each training record; decides the halves of the two classifiers.
    training_groups : sequence, length n_training, optional
        Records of a group stay in one half.
    validation_groups : sequence, length n_val, optional
        Records of a group are alike: a class as a whole is held against one of each.
    in_domain : ndarray of bool, shape (n_candidates,), optional
        False where a candidate breaks the domain.
    purpose : {"utility", "faithful", "soft"}
    near_copy_quantile, fidelity_quantile : float in [0, 1)
        Share of real records that each check would drop; 0 drops only what is beyond all of validation records.
    seed : int
    metrics : bool
        Measure likeness, and judge every class as a whole; a strategy's fold does without.
    limits : Limits, optional
        What a class may show as a whole.
    drop_unsafe : bool
        Keep nothing of a class that is unsafe.

    Returns
    -------
    FilterOutcome

    Raises
    ------
    ParameterError
        If a quantile is outside [0, 1) or lengths differ.

    Notes
    -----
    A stratum with fewer than 20 validation records is held against its training records' distances to one
    another; with fewer than 10 of those too, only exact copies are dropped, and no outliers. Where
    validation itself has exact copies of training records in the quantile (a table with many repeated rows),
    copies of values that several real records share may make up the same share of what is kept as
    exact copies make up of validation records, first ordinals first, and the rest is held against validation's positive
    distances. A copy of a training record that is unlike every other real record is always dropped,
    whatever label it bears. A class with fewer than five fit
    records in the classifier's half is not checked for its label.
    """
    _check(candidates, ordinals, wanted, strata, near_copy_quantile, fidelity_quantile)
    notes: list[str] = []
    reason = np.full(len(candidates), "", dtype="U16")
    if in_domain is not None:
        reason[~in_domain] = "domain"
    # The halves of the two classifiers, by stratum and not by class.
    half = stratified_folds(training.stratum, training_groups, 2, seed, training_keys) == 0
    one_each = (
        one_of_each(training.stratum, training_groups),
        one_of_each(validation.stratum, validation_groups),
    )
    near = nearness(measures, training, validation, candidates, half, one_each)
    equal = equality(training.X, validation.X, candidates.X)
    mark(reason, np.flatnonzero(equal.of_one), "near copy")
    mark_near_and_far(near, strata, ordinals, near_copy_quantile, reason, notes)

    looks_at_classes = metrics or drop_unsafe
    score = np.zeros(len(candidates))
    labels = None
    if purpose != "soft" or looks_at_classes:
        halves = Halves.of(
            training, training_keys, training_groups, stratum_class, measures.train, seed,
            with_filter=purpose != "soft",
        )  # fmt: skip
        labels = _Labels.of(halves, validation, candidates, stratum_class)
        notes += [
            f"{_class_name(strata, stratum_class, k)}: too few real records for a classifier; "
            "labels are not checked."
            for k in np.unique(labels.wanted)
            if labels.real[k] is None
        ]
        if halves.filter is not None:
            mark(reason, labels.doubtful(fidelity_quantile), "label")
            score = utility_scores(halves.filter, candidates.X, labels.wanted)

    for s in np.unique(candidates.stratum):
        rows = np.flatnonzero((candidates.stratum == s) & (reason == ""))
        own = np.concatenate(
            [training.X[training.stratum == s], validation.X[validation.stratum == s]]
        )
        rows = rows[np.argsort(ordinals[rows], kind="stable")]
        reason[rows[_repeats(candidates.X[rows], own)]] = "repeat"

    passed = reason == ""
    kept = _keep(passed, candidates.stratum, ordinals, score, wanted, purpose)
    reason[passed & ~kept] = "surplus"
    shown = np.flatnonzero(
        (wanted > 0) | (np.bincount(candidates.stratum, minlength=len(strata)) > 0)
    )
    compared: dict[int, _Compared] = {}
    if labels is not None and looks_at_classes:
        two_sample = measures.two_sample if len(shown) <= MAX_STRATA_COMPARED else None
        for s, of in near.items():
            records = (
                training.X[training.stratum == s],
                validation.X[validation.stratum == s],
                candidates.X[of.rows],
            )
            exact = Equality(
                equal.training[training.stratum == s],
                equal.validation[(validation.stratum == s) & one_each[1]],
                equal.candidates[of.rows],
                equal.of_one[of.rows],
            )
            ways = equal_ways(measures, *records, exact)
            wrong, real_wrong = labels.mistaken(of.rows, int(stratum_class[s]))
            stratum = Stratum(
                *records,
                valid=reason[of.rows] != "domain",
                kept=kept[of.rows],
                distance=of.distance,
                real=of.real,
                near=of.ways,
                equal=ways,
                one_each=(one_each[0][training.stratum == s], one_each[1][validation.stratum == s]),
                wrong=wrong,
                real_wrong=real_wrong,
            )
            evidence = class_evidence(stratum, measures.space)
            checks = class_checks(evidence, limits or Limits(), n_strata=len(shown))
            compared[s] = _Compared(
                checks,
                class_verdict(checks),
                class_metrics(stratum, evidence, measures.space, two_sample) if metrics else {},
            )
    for s, found in compared.items():
        if found.verdict == "unsafe":
            notes.append(said_of(strata[s], found.checks, dropped=drop_unsafe))
        if found.verdict == "unsafe" and drop_unsafe:
            rows = near[s].rows[passed[near[s].rows]]
            reason[rows], kept[rows], passed[rows] = "unsafe class", False, False
    info = tuple(
        _info(
            strata[s], candidates.stratum == s, passed, kept, reason, compared.get(s, _Compared())
        )
        for s in map(int, shown)
    )
    if len(shown) > MAX_STRATA_COMPARED:
        notes.append(f"C2ST is left out: {len(shown)} strata would take too long.")
    return FilterOutcome(passed, kept, reason, score, info, measures.name, tuple(notes))


def _repeats(X: NDArray[Any], real: NDArray[Any]) -> Bool:
    """Candidates, in order, that repeat earlier ones more often than real records repeat."""
    if not len(X) or not len(real):
        return np.zeros(len(X), dtype=bool)
    _, real_counts = np.unique(comparable(real), axis=0, return_counts=True)
    n_allowed = -(-int(real_counts.max()) * len(X) // len(real))  # rounded up
    _, value = np.unique(comparable(X), axis=0, return_inverse=True)
    order = np.argsort(value, kind="stable")
    first = np.searchsorted(value[order], value[order])  # where each value begins
    repeats = np.empty(len(X), dtype=bool)
    repeats[order] = np.arange(len(X)) - first >= n_allowed
    return repeats


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


def _class_name(strata: Sequence[str], stratum_class: Int, k: int) -> str:
    """The class's name, from any stratum of it ("class" or "class | column=value")."""
    return strata[int(np.flatnonzero(stratum_class == k)[0])].split(" | ")[0]


def _info(
    name: str, own: Bool, passed: Bool, kept: Bool, reason: NDArray[np.str_], compared: _Compared
) -> ClassFilter:
    """What the report says of a stratum."""
    return ClassFilter(
        name=name,
        n_candidates=int(own.sum()),
        n_passed=int((passed & own).sum()),
        n_kept=int((kept & own).sum()),
        reasons=_count_reasons(reason[own]),
        metrics=dict(compared.metrics),
        checks=compared.checks,
        verdict=compared.verdict,
    )


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
