"""Which candidates pass: per record and stratum, on training and validation records only.

Distances and class probabilities come from :class:`Measures`, one for tables (:func:`table_measures`)
and one for images (:mod:`.image_filter`). A candidate is dropped for the first of these that holds:

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

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from prefect_augment.array_types import Array, Bool, Float, Int
from prefect_augment.encoding.arrays import FilterOutcome, FilterRequest, Labelled, Purpose
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.classifiers.base import Classifier, balanced_weights, fit_estimator
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.quality.class_tests import (
    MIN_TO_COMPARE,
    CopyEvidence,
    Evidence,
    class_checks,
    class_verdict,
    describe_faults,
)
from prefect_augment.evaluation.quality.label_fidelity import Labels
from prefect_augment.evaluation.quality.likeness import (
    MAX_COMPARED,
    c2st_auc,
    expected_coverage,
    frechet_metrics,
    likeness,
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
from prefect_augment.schema import ClassCheck, ClassFilter, ClassVerdict

REASONS = ("domain", "near copy", "outlier", "label", "repeat", "unsafe class", "surplus")
MAX_STRATA_COMPARED = 50  # the two-sample test takes about half a second a stratum


class _ClassResult(NamedTuple):
    checks: tuple[ClassCheck, ...] = ()
    verdict: ClassVerdict = "not tested"
    metrics: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class _Classes:
    """All records with the results of the checks on single ones, to test strata as a whole."""

    training: Labelled
    validation: Labelled
    candidates: Labelled
    request: FilterRequest
    measures: Measures
    near: Mapping[int, Near]  # by stratum
    equal: Equality
    one_each: tuple[Bool, Bool]  # one training and one validation record of each group
    labels: Labels
    valid: Bool  # (n_candidates,) within the domain
    kept: Bool

    def test(self, s: int, n_strata: int) -> _ClassResult:
        """Test one stratum; with ``request.metrics`` it is also measured."""
        near, measures = self.near[s], self.measures
        rows, valid = near.rows, self.valid[near.rows]
        of_training, of_validation = self.training.stratum == s, self.validation.stratum == s
        training, validation = self.training.X[of_training], self.validation.X[of_validation]
        candidates = self.candidates.X[rows]
        first_training, first_validation = self.one_each
        exact = self.equal
        equal = equality_evidence(
            measures.hashes,
            training,
            validation,
            candidates,
            equal=exact.candidates[rows],
            real_equal=np.concatenate(
                [exact.validation[of_validation & first_validation], exact.training[of_training]]
            ),
        )
        wrong, real_wrong = self.labels.mistaken(rows, int(self.request.stratum_class[s]))
        # One real record of each group, since tests assume independent records.
        independent = _enough(
            validation[first_validation[of_validation]], training[first_training[of_training]]
        )
        coverage = full = float("nan")
        if min(len(independent), int(valid.sum())) >= MIN_TO_COMPARE:
            coverage = likeness(independent, candidates[valid], space=measures.space).coverage
            full = expected_coverage(len(independent), int(valid.sum()))
        checks = class_checks(
            Evidence(
                valid=valid,
                near=[CopyEvidence(e.candidates[valid], e.real) for e in near.spaces],
                equal=[CopyEvidence(e.candidates[valid], e.real) for e in equal.values()],
                wrong=None if wrong is None else wrong[valid],
                real_wrong=real_wrong,
                coverage=coverage,
                full_coverage=full,
            ),
            self.request.quality,
            n_strata=n_strata,
        )
        if not self.request.metrics:
            return _ClassResult(checks, class_verdict(checks))

        # Likeness is of the kept records, the rest of all candidates; ``real_*`` are the same of real records.
        real, kept = _enough(validation, training), candidates[self.kept[rows]][:MAX_COMPARED]
        metrics = likeness(real, kept, space=measures.space)._asdict()
        if (
            measures.two_sample is not None
            and n_strata <= MAX_STRATA_COMPARED
            and min(len(real), len(kept)) >= MIN_TO_COMPARE
        ):
            metrics["c2st_auc"] = measures.two_sample(real, kept)
        metrics["domain_fraction"] = float(valid.mean())
        metrics["median_distance"] = float(np.median(near.distance))
        for name, evidence in equal.items():
            metrics[f"{name}_copy_fraction"] = float((evidence.candidates == 0).mean())
            if len(evidence.real):
                metrics[f"real_{name}_copy_fraction"] = float((evidence.real == 0).mean())
        if len(near.real):
            metrics["real_median_distance"] = float(np.median(near.real))
        if wrong is not None and real_wrong is not None:
            metrics["label_error"] = float(wrong.mean())
            metrics["real_label_error"] = float(real_wrong.mean())
        metrics["candidate_coverage"] = coverage
        # JSON has no NaN or infinity: what cannot be measured is left out.
        finite = {name: value for name, value in metrics.items() if np.isfinite(value)}
        return _ClassResult(checks, class_verdict(checks), finite)


def _enough(validation: Array, training: Array) -> Array:
    """Validation's records, with training records where they are too few."""
    few = len(validation) < MIN_TO_COMPARE
    return np.concatenate([validation, training]) if few else validation


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
    to one another; with fewer than 10 of those too, only exact copies are dropped, and no outliers.
    Where exact copies of training records lie within validation's quantile (a table with many
    repeated rows), copies may make up the same share of the kept records (:func:`.near_copies`). A copy
    of a training record that is unlike every other real record is always dropped, whatever its label.
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
        labels = Labels.of(training, validation, candidates, request, measures.train)
        notes += [
            # A class is called by any stratum of it: "class" or "class | column=value".
            f"{strata[int(np.argmax(stratum_class == k))].split(' | ')[0]}: too few real records for "
            "a classifier; labels are not checked."
            for k in np.unique(labels.wanted)
            if labels.real[k] is None
        ]
        if labels.score is not None:
            set_reason(reason, labels.doubtful(request.quality.fidelity_quantile), "label")
            score = labels.score

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
        classes = _Classes(
            training, validation, candidates, request, measures, near, equal, one_each, labels,
            valid=reason != "domain", kept=kept,
        )  # fmt: skip
        results = {s: classes.test(s, len(shown)) for s in near}
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
    info = []
    for s in map(int, shown):
        own, result = candidates.stratum == s, results.get(s, _ClassResult())
        reasons = {why: int((reason[own] == why).sum()) for why in REASONS}
        info.append(
            ClassFilter(
                name=strata[s],
                n_candidates=int(own.sum()),
                n_passed=int(passed[own].sum()),
                n_kept=int(kept[own].sum()),
                reasons={why: n for why, n in reasons.items() if n},
                metrics={**result.metrics, **fidelity.get(s, {})},
                checks=result.checks,
                verdict=result.verdict,
            )
        )
    if len(shown) > MAX_STRATA_COMPARED:
        notes.append(f"C2ST is left out: {len(shown)} strata would take too long.")
    return FilterOutcome(
        passed, kept, reason, score, tuple(info), measures.name, tuple(notes), of_all
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


def table_measures(
    training: Labelled, *, is_category: Bool, n_levels: Int, stratum_class: Int, seed: int
) -> Measures:
    """How records of a table are measured, matrices of shape (n_records, n_columns).

    NaN is null; category columns have level codes. ``n_levels`` is 0 for numeric columns.
    """

    def train(X: Array, y: Int) -> Classifier:
        n_classes = int(stratum_class.max()) + 1
        return utility_filter(X, y, n_levels=n_levels, n_classes=n_classes, seed=seed)

    def two_sample(real: Array, synthetic: Array) -> float:
        return c2st_auc(real, synthetic, n_levels=n_levels, seed=seed)

    return Measures(FeatureSpace.of(training.X, is_category), train, two_sample)


def utility_filter(X: Float, y: Int, *, n_levels: Int, n_classes: int, seed: int) -> Classifier:
    """Class-balanced boosting on real records, for :func:`~.label_fidelity.utility_scores`."""
    return fit_estimator(
        "boosting",
        X,
        y,
        weights=balanced_weights(y),
        n_levels=n_levels,
        n_classes=n_classes,
        seed=seed,
    )
