"""Which candidates pass: per record and stratum, on training and validation records only.

Distances and class probabilities come from :class:`Measures`, one for tables (:mod:`.table_filter`) and
one for images (:mod:`.image_filter`). A candidate is dropped for the first of these that holds:

``domain``
    It breaks the domain (the caller's mask).
``near copy``
    It is nearer to a training record of its stratum than validation records are, except the nearest
    ``near_copy_quantile`` of them. A model that repeats its training records fails here. A second
    measure, where there is one, finds copies that were moved: nearer than a quarter of validation's
    median and than the same quantile. A copy of a training record that is unlike every other real
    record is dropped in any stratum.
``outlier``
    It is farther from every training record of its stratum than 95 % of validation records are.
    Noise fails here.
``label``
    A class-balanced classifier gives its class a lower probability than to all but the lowest
    ``fidelity_quantile`` of validation records of that class.
``repeat``
    The same record takes a larger share of the passed records than the most frequent real record
    takes of its stratum. A collapsed model fails here.

Of the records that pass, the wanted number is kept. For *utility* those that another classifier finds
most like their class (trained on the other half of the training records, so that the filter does not
fit the test); for *faithful* the first ordinals. The rest is ``surplus``. Records with *soft* labels are
kept like faithful ones without a label check: those near a class border are the most informative.

:mod:`.class_tests` then tests all candidates of a stratum together. With ``drop_unsafe`` nothing of an
unsafe class is kept (reason ``unsafe class``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from prefect_augment.array_types import Array, Bool, Float, Int, String
from prefect_augment.encoding.arrays import FilterOutcome, FilterRequest, Labelled, Purpose
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.neighbours import Space
from prefect_augment.evaluation.quality.class_tests import (
    MIN_TO_COMPARE,
    CopyEvidence,
    Evidence,
    class_checks,
    class_verdict,
    describe_faults,
)
from prefect_augment.evaluation.quality.frechet import frechet_metrics
from prefect_augment.evaluation.quality.label_fidelity import (
    Halves,
    label_limits,
    real_probabilities,
    utility_scores,
)
from prefect_augment.evaluation.quality.near_copies import (
    Equality,
    Measures,
    Near,
    comparable,
    drop_copies_and_outliers,
    equality,
    equality_evidence,
    one_of_each,
    set_reason,
    training_distances,
)
from prefect_augment.evaluation.quality.prdc import MAX_COMPARED, expected_coverage, likeness
from prefect_augment.params import Quality
from prefect_augment.schema import ClassCheck, ClassFilter, ClassVerdict


@dataclass(frozen=True)
class Stratum:
    """A stratum's records and the results of the checks on single records."""

    training: Array  # the records that the model has seen, (n, ...)
    validation: Array
    candidates: Array
    valid: Bool  # (n_candidates,) within the domain
    kept: Bool
    distance: Float  # (n_candidates,) to the nearest training record
    real: Float  # the same of unseen real records, or of training records to one another
    near: tuple[CopyEvidence, ...]  # per space; empty with too few real records
    equal: Mapping[str, CopyEvidence]  # by the kind of equality
    one_each: tuple[Bool, Bool]  # one training and one validation record of each group
    wrong: Bool | None = None  # (n_candidates,) taken for another class
    real_wrong: Bool | None = None

    @property
    def reference(self) -> Array:
        """Real records to compare with: validation's, with training records where there are few."""
        return _enough(self.validation, self.training)

    @property
    def independent(self) -> Array:
        """One real record of each group, for tests that assume independent records."""
        return _enough(self.validation[self.one_each[1]], self.training[self.one_each[0]])


def _enough(validation: Array, training: Array) -> Array:
    return (
        validation if len(validation) >= MIN_TO_COMPARE else np.concatenate([validation, training])
    )


def class_evidence(stratum: Stratum, space: Space) -> Evidence:
    """The evidence that :func:`~.class_tests.class_checks` needs, of one stratum."""
    real, candidates = stratum.independent, stratum.candidates[stratum.valid]
    coverage = full = float("nan")
    if min(len(real), len(candidates)) >= MIN_TO_COMPARE:
        coverage = likeness(real, candidates, space=space).coverage
        full = expected_coverage(len(real), len(candidates))
    return Evidence(
        valid=stratum.valid,
        near=[CopyEvidence(e.candidates[stratum.valid], e.real) for e in stratum.near],
        equal=[CopyEvidence(e.candidates[stratum.valid], e.real) for e in stratum.equal.values()],
        wrong=None if stratum.wrong is None else stratum.wrong[stratum.valid],
        real_wrong=stratum.real_wrong,
        coverage=coverage,
        full_coverage=full,
    )


def class_metrics(
    stratum: Stratum,
    evidence: Evidence,
    space: Space,
    two_sample: Callable[[Array, Array], float] | None,
) -> dict[str, float]:
    """Shares over all candidates of a stratum, and likeness of the kept ones to real records.

    ``precision``, ``recall``, ``density``, ``coverage`` and ``c2st_auc`` (with ``two_sample``) are
    of kept records. ``domain_fraction``, ``*_copy_fraction``, ``median_distance``, ``label_error``
    and ``candidate_coverage`` are of all candidates; ``real_*`` are the same of real records. What
    cannot be measured is left out.
    """
    real, synthetic = stratum.reference, stratum.candidates[stratum.kept][:MAX_COMPARED]
    metrics = likeness(real, synthetic, space=space)._asdict()
    if two_sample is not None and min(len(real), len(synthetic)) >= MIN_TO_COMPARE:
        metrics["c2st_auc"] = two_sample(real, synthetic)
    if len(stratum.candidates):
        metrics["domain_fraction"] = float(stratum.valid.mean())
        metrics["median_distance"] = float(np.median(stratum.distance))
        for name, equal in stratum.equal.items():
            metrics[f"{name}_copy_fraction"] = float((equal.candidates == 0).mean())
            if len(equal.real):
                metrics[f"real_{name}_copy_fraction"] = float((equal.real == 0).mean())
        if len(stratum.real):
            metrics["real_median_distance"] = float(np.median(stratum.real))
        if stratum.wrong is not None and stratum.real_wrong is not None:
            metrics["label_error"] = float(stratum.wrong.mean())
            metrics["real_label_error"] = float(stratum.real_wrong.mean())
        metrics["candidate_coverage"] = evidence.coverage
    # JSON has no NaN or infinity: what cannot be measured is left out.
    return {name: value for name, value in metrics.items() if np.isfinite(value)}


REASONS = ("domain", "near copy", "outlier", "label", "repeat", "unsafe class", "surplus")
MAX_STRATA_COMPARED = 50  # the two-sample test takes about half a second a stratum


@dataclass(frozen=True)
class _Labels:
    """Class probabilities by the label classifier, of candidates and of unseen real records."""

    wanted: Int  # (n_candidates,) class that each was drawn for
    proba: Float  # (n_candidates, n_classes)
    real: tuple[Float | None, ...]  # per class, (n_real, n_classes)
    stratum_class: Int  # (n_strata,)

    @classmethod
    def of(
        cls, halves: Halves, validation: Labelled, candidates: Labelled, stratum_class: Int
    ) -> "_Labels":
        return cls(
            stratum_class[candidates.stratum],
            halves.label_classifier.predict_proba(candidates.X),
            real_probabilities(halves, validation, stratum_class),
            stratum_class,
        )

    def doubtful(self, quantile: float) -> Int:
        """Candidates that look less like their class than most real records do."""
        lowest = label_limits(self.real, quantile)[self.wanted]
        return np.flatnonzero(self.proba[np.arange(len(self.proba)), self.wanted] < lowest)

    def mistaken(self, rows: Int, k: int) -> tuple[Bool, Bool] | tuple[None, None]:
        """Which candidates (``rows``) and real records of class ``k`` are taken for another class."""
        real = self.real[k]
        if real is None:
            return None, None
        return self.proba[rows].argmax(axis=1) != k, real.argmax(axis=1) != k


class _Comparison(NamedTuple):
    """What candidates have in common with training records."""

    near: Mapping[int, Near]  # by stratum
    equal: Equality
    one_each: tuple[Bool, Bool]  # one training and one validation record of each group


class _ClassResult(NamedTuple):
    """Checks and metrics of a stratum as a whole."""

    checks: tuple[ClassCheck, ...] = ()
    verdict: ClassVerdict = "not tested"
    metrics: Mapping[str, float] = MappingProxyType({})


def filter_records(
    training: Labelled,
    validation: Labelled,
    candidates: Labelled,
    request: FilterRequest,
    *,
    measures: Measures,
) -> FilterOutcome:
    """Check candidates against real records, and keep the wanted number of those that pass.

    With fewer than 20 validation records, a stratum is compared with its training records' distances
    to one another. With fewer than 10 of those too, only exact copies are dropped, and no outliers.
    Where exact copies of training records lie within validation's quantile (a table with many
    repeated rows), copies of values that several real records share may make up the same share of
    the kept records. The first ordinals stay, and the rest is compared with validation's positive
    distances. A copy of a training record that is unlike every other real record is always dropped,
    whatever its label. Labels are not checked for a class with fewer than five training records in
    the classifier's half.
    """
    strata, stratum_class, wanted = request.strata, request.stratum_class, request.wanted
    ordinals, groups, drop_unsafe = request.ordinals, request.training_groups, request.drop_unsafe
    if len(ordinals) != len(candidates):
        raise ParameterError(f"expected {len(candidates)} ordinals; got {len(ordinals)}.")
    notes: list[str] = []
    reason = np.full(len(candidates), "", dtype="U16")
    if request.in_domain is not None:
        reason[~request.in_domain] = "domain"

    # Near copies and outliers, by distance. The halves are by stratum, not by class.
    half = stratified_folds(training.stratum, groups, 2, request.seed, request.training_keys) == 0
    one_each = (
        one_of_each(training.stratum, groups),
        one_of_each(validation.stratum, request.validation_groups),
    )
    near = training_distances(measures, training, validation, candidates, half, one_each)
    equal = equality(training.X, validation.X, candidates.X)
    set_reason(reason, np.flatnonzero(equal.of_unique), "near copy")
    drop_copies_and_outliers(
        near, strata, ordinals, request.quality.near_copy_quantile, reason, notes
    )

    # Labels, by two classifiers on disjoint halves of the training records.
    tests_classes = request.metrics or drop_unsafe
    score = np.zeros(len(candidates))
    labels = None
    if request.purpose != "soft" or tests_classes:
        halves = Halves.of(
            training, request.training_keys, groups, stratum_class, measures.train, request.seed,
            with_filter=request.purpose != "soft",
        )  # fmt: skip
        labels = _Labels.of(halves, validation, candidates, stratum_class)
        notes += [
            f"{_class_name(strata, stratum_class, k)}: too few real records for a classifier; "
            "labels are not checked."
            for k in np.unique(labels.wanted)
            if labels.real[k] is None
        ]
        if halves.filter is not None:
            set_reason(reason, labels.doubtful(request.quality.fidelity_quantile), "label")
            score = utility_scores(halves.filter, candidates.X, labels.wanted)

    # Values that repeat more often than real ones do.
    for s in np.unique(candidates.stratum):
        rows = np.flatnonzero((candidates.stratum == s) & (reason == ""))
        real = np.concatenate(
            [training.X[training.stratum == s], validation.X[validation.stratum == s]]
        )
        rows = rows[np.argsort(ordinals[rows], kind="stable")]
        reason[rows[_repeats(candidates.X[rows], real)]] = "repeat"

    # The wanted number of those that passed; then every class as a whole.
    passed = reason == ""
    kept = _keep(passed, candidates.stratum, ordinals, score, wanted, request.purpose)
    reason[passed & ~kept] = "surplus"
    shown = np.flatnonzero(
        (wanted > 0) | (np.bincount(candidates.stratum, minlength=len(strata)) > 0)
    )
    results: dict[int, _ClassResult] = {}
    if labels is not None and tests_classes:
        classes = _strata(
            training, validation, candidates, measures,
            _Comparison(near, equal, one_each), labels, reason, kept,
        )  # fmt: skip
        results = {
            s: _test_class(stratum, measures, request.quality, len(shown), metrics=request.metrics)
            for s, stratum in classes
        }
    for s, result in results.items():
        if result.verdict == "unsafe":
            notes.append(describe_faults(strata[s], result.checks, dropped=drop_unsafe))
        if result.verdict == "unsafe" and drop_unsafe:
            rows = near[s].rows[passed[near[s].rows]]
            reason[rows], kept[rows], passed[rows] = "unsafe class", False, False
    fidelity: dict[int, dict[str, float]] = {}
    of_all: dict[str, float] = {}
    if measures.features is not None and request.metrics:
        fidelity, of_all = frechet_metrics(
            measures.features,
            kept=(candidates, kept),
            validation=(validation, one_each[1]),
            training=(training, one_each[0]),
            seed=request.seed,
        )
    info = tuple(
        _info(
            strata[s], candidates.stratum == s, passed, kept, reason,
            results.get(s, _ClassResult()), fidelity.get(s, {}),
        )
        for s in map(int, shown)
    )  # fmt: skip
    if len(shown) > MAX_STRATA_COMPARED:
        notes.append(f"C2ST is left out: {len(shown)} strata would take too long.")
    return FilterOutcome(passed, kept, reason, score, info, measures.name, tuple(notes), of_all)


def _strata(
    training: Labelled,
    validation: Labelled,
    candidates: Labelled,
    measures: Measures,
    comparison: _Comparison,
    labels: _Labels,
    reason: String,
    kept: Bool,
) -> Iterator[tuple[int, Stratum]]:
    """The records of each stratum with everything that its tests need."""
    near, equal, one_each = comparison
    for s, distances in near.items():
        rows = distances.rows
        of_training, of_validation = training.stratum == s, validation.stratum == s
        records = training.X[of_training], validation.X[of_validation], candidates.X[rows]
        exact = Equality(
            equal.training[of_training],
            equal.validation[of_validation & one_each[1]],
            equal.candidates[rows],
            equal.of_unique[rows],
        )
        wrong, real_wrong = labels.mistaken(rows, int(labels.stratum_class[s]))
        yield (
            s,
            Stratum(
                *records,
                valid=reason[rows] != "domain",
                kept=kept[rows],
                distance=distances.distance,
                real=distances.real,
                near=distances.spaces,
                equal=equality_evidence(measures, *records, exact),
                one_each=(one_each[0][of_training], one_each[1][of_validation]),
                wrong=wrong,
                real_wrong=real_wrong,
            ),
        )


def _test_class(
    stratum: Stratum, measures: Measures, limits: Quality, n_strata: int, *, metrics: bool
) -> _ClassResult:
    two_sample = measures.two_sample if n_strata <= MAX_STRATA_COMPARED else None
    evidence = class_evidence(stratum, measures.space)
    checks = class_checks(evidence, limits, n_strata=n_strata)
    return _ClassResult(
        checks,
        class_verdict(checks),
        class_metrics(stratum, evidence, measures.space, two_sample) if metrics else {},
    )


def _repeats(X: Array, real: Array) -> Bool:
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
    name: str,
    own: Bool,
    passed: Bool,
    kept: Bool,
    reason: String,
    result: _ClassResult,
    fidelity: Mapping[str, float],
) -> ClassFilter:
    return ClassFilter(
        name=name,
        n_candidates=int(own.sum()),
        n_passed=int((passed & own).sum()),
        n_kept=int((kept & own).sum()),
        reasons={why: n for why in REASONS if (n := int((reason[own] == why).sum()))},
        metrics={**result.metrics, **fidelity},
        checks=result.checks,
        verdict=result.verdict,
    )
