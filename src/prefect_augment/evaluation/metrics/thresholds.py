"""Class-probability multipliers that raise a measure: threshold tuning for any number of classes.

With two classes a multiplier is a threshold. Multipliers are tuned on records that the estimator
was not trained on, and scored on yet other records (:func:`cross_fitted_multipliers`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics.measures import AtTarget, Mean, Measure, Sums

# Powers of the prior correction 1 / share_k that the search may start from: 0 changes nothing, 1
# is optimal for calibrated probabilities, more for overconfident ones.
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
MAX_SWEEPS = 3
# Above this, one common power is all that validation's records can support.
MAX_SEARCHED_CLASSES = 30
# In standard errors. Simulated on 2 and 5 classes, 200 to 10,000 records, calibrated, over- and under-confident: 0.25
# is within 0.8 points of the best choice on fresh records; 0 loses 2 points with five classes and 200 records, 1
# loses 3 where the probabilities are overconfident. For F1, macro F1 and costs 0 to 1 differ by at most 0.9 points.
SHRINKAGE = 0.25
# Of measures that are functions of sums: more cuts than this are thinned out evenly.
MAX_CUTS = 2000
# Of scikit-learn's scorers, which take 3 ms for each.
MAX_SLOW_CUTS, MAX_SLOW_CLASSES = 32, 4
# Standard errors to spare where a precision or recall is to be reached: the best of many thresholds is a
# lucky one. Simulated on two classes (precision 0.6): fresh records reach it in 77 to 84 % of draws with 50 to
# 500 records of the class, in 41 to 52 % with nothing to spare, and in half of them with 10 records.
CAUTION = 1.0
_EPS = 1e-12


def tune_multipliers(
    y: Int, proba: Float, *, compared: Bool, measure: Measure | None = None
) -> Float:
    """Multipliers of the class probabilities that raise a measure on these records, shape (n_classes,).

    The records, with class codes ``y`` (n_records,) and probabilities (n_records, n_classes), are such that the
    estimator was not trained on. The search starts from the best power of the prior correction (Saerens et al. 2002),
    then scans one class after the other exactly, over every value at which a prediction changes. Against over-fitting,
    a scan takes, of the values whose measure is within a quarter of a standard error of the best, the one nearest to
    the current value (Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3): with few records it
    hardly moves, with many it finds the optimum. The largest class and classes that are not ``compared`` keep 1.

    Without a ``measure``, and for those that read probabilities alone, balanced accuracy decides. Costs also start
    from the decision of Bayes, which for two classes and calibrated probabilities is the best one (Elkan 2001).
    Recall at a precision moves one class alone, to the threshold that reaches that precision even one standard error
    lower; where none does, to the one that comes nearest. Precision at a recall is treated likewise.
    """
    counted = compared[y]
    y, log_p = y[counted], np.log(np.maximum(proba[counted], _EPS))
    n_k = np.bincount(y, minlength=len(compared))
    present = np.flatnonzero(n_k)
    if len(present) < 2:
        return np.ones(len(compared))
    if isinstance(measure, AtTarget):
        return _at_target(y, log_p, measure)

    largest = present[np.argmax(n_k[present])]
    correction = np.zeros(len(compared))
    correction[present] = np.log(n_k[largest] / n_k[present])
    scanned = [int(k) for k in present if k != largest]
    starts = [power * correction for power in POWERS]
    is_balanced = measure is None or measure.name == "balanced_accuracy"
    if measure is not None and measure.reads == "decisions" and not is_balanced:
        return np.exp(_tune_measure(y, log_p, measure, starts, scanned))

    value = 1.0 / (n_k[y] * len(present))  # what a right prediction adds to balanced accuracy
    scores = [value[np.argmax(log_p + start, axis=1) == y].sum() for start in starts]
    log_m = starts[int(np.argmax(np.round(scores, 12)))].copy()
    if len(present) <= MAX_SEARCHED_CLASSES:
        tolerance = SHRINKAGE * _standard_error(y, log_p + log_m, n_k)

        def score_above(k: int, rival: Int, order: Int, first: Int) -> Float:
            gain = np.where(y == k, value, np.where(rival == y, -value, 0.0))
            # The score below all cuts is 0; above step j it is the sum of all gains up to it.
            return np.r_[0.0, np.add.reduceat(gain[order], first).cumsum()]

        _search(log_p, log_m, scanned, score_above, tolerance)
    return np.exp(log_m)


def cross_fitted_multipliers(
    y: Int, proba: Float, folds: Int, compared: Bool, measure: Measure | None = None
) -> Float:
    """Multipliers for each record, (n_records, n_classes), tuned on the records of the other folds.

    A record's own label has no part in its multipliers, so scores with them are unbiased. For
    ``measure`` see :func:`tune_multipliers`. ParameterError if there is only one fold.
    """
    names = np.unique(folds)
    if len(y) and len(names) < 2:
        raise ParameterError("cross-fitting needs at least 2 folds; got 1.")
    multipliers = np.ones((len(y), len(compared)))
    for fold in names:
        here = folds == fold
        multipliers[here] = tune_multipliers(
            y[~here], proba[~here], compared=compared, measure=measure
        )
    return multipliers


# Scores below all cuts and above each step, of: class, rivals, order of the cuts, first record of each step.
ScoreAbove = Callable[[int, Int, Int, Int], Float]


def _search(
    log_p: Float, log_m: Float, classes: list[int], score_above: ScoreAbove, tolerance: float
) -> None:
    """Improve ``log_m`` in place, one class at a time, until a sweep changes nothing."""
    for _ in range(MAX_SWEEPS):
        before = log_m.copy()
        for k in classes:
            cut, rival = _cuts(log_p, log_m, k)
            order = np.argsort(cut, kind="stable")
            steps, first = np.unique(cut[order], return_index=True)
            score = score_above(k, rival, order, first)
            log_m[k] = _nearest(steps, score >= score.max() - tolerance - _EPS, log_m[k])
        if np.array_equal(before, log_m):
            return


def _cuts(log_p: Float, log_m: Float, k: int) -> tuple[Float, Int]:
    """Record i is taken for class k where ``log_m[k] > cut[i]``, and for its rival elsewhere."""
    others = log_p + log_m
    others[:, k] = -np.inf
    rival = np.argmax(others, axis=1)
    return others[np.arange(len(rival)), rival] - log_p[:, k], rival


def _nearest(steps: Float, is_good: Bool, current: float) -> float:
    """Of the good values, below all steps and above each of them, the one nearest to the current one."""
    low = np.concatenate([[steps[0] - 2.0], steps])
    high = np.concatenate([steps, [steps[-1] + 2.0]])
    # Keep away from the ends of a plateau: its cuts are single records.
    margin = np.minimum((high - low) / 2, 0.5)
    nearest = np.clip(current, low + margin, high - margin)
    inside = (current > low) & (current < high)
    nearest = np.where(inside, current, nearest)
    good = np.flatnonzero(is_good)
    return float(nearest[good[np.argmin(np.abs(nearest[good] - current))]])


def _standard_error(y: Int, log_p: Float, n_k: Int) -> float:
    """Standard error of balanced accuracy, from recalls with one hit and one miss added."""
    present = n_k > 0
    right = np.bincount(y[np.argmax(log_p, axis=1) == y], minlength=len(n_k))
    recall = (right[present] + 1) / (n_k[present] + 2)
    return float(np.sqrt((recall * (1 - recall) / n_k[present]).sum()) / present.sum())


def _tune_measure(
    y: Int, log_p: Float, measure: Measure, starts: list[Float], scanned: list[int]
) -> Float:
    """Logarithms of multipliers that raise a measure of decisions."""
    n, most_cuts = len(y), MAX_CUTS if measure.vectorised else MAX_SLOW_CUTS
    if isinstance(measure, Mean) and measure.costs is not None:
        starts = [*starts, _bayes(measure.costs, starts[0], scanned, y)]

    def of_class(decided: Int) -> Sums:
        return measure.sums(y, np.exp(log_p), decided)[0]

    def oriented(values: Float | float) -> Any:  # where it is undefined, no better than anything
        return np.nan_to_num(measure.oriented(values), nan=-np.inf)

    scores = [oriented(_of_all(of_class(np.argmax(log_p + m, axis=1)))) for m in starts]
    log_m = starts[int(np.argmax(np.round(scores, 12)))].copy()
    if len(scanned) >= (MAX_SEARCHED_CLASSES if measure.vectorised else MAX_SLOW_CLASSES):
        return log_m

    def score_above(k: int, rival: Int, order: Int, first: Int) -> Float:
        before, after = of_class(rival), of_class(np.full(n, k))
        change = (after.of_record - before.of_record)[order]
        score = np.full(len(first) + 1, -np.inf)
        tried = _some_steps(first, y[order] == k, most_cuts)
        ends = np.r_[first, n][tried]  # records that are taken for class k
        block = csr_array((np.ones(n), np.arange(n), np.r_[0, ends]), shape=(len(ends), n))
        sums = before.of_record.sum(axis=0) + np.cumsum((block @ change).toarray(), axis=0)
        score[tried] = oriented(after.value(sums))
        return score

    tolerance = SHRINKAGE * _influence_error(of_class(np.argmax(log_p + log_m, axis=1)))
    _search(log_p, log_m, scanned, score_above, tolerance)
    return log_m


def _some_steps(first: Int, is_k: Bool, most: int) -> Int:
    """At most so many steps, the outermost among them, half of them where a record of the class is gained."""
    n_steps = len(first)
    if n_steps < most:
        return np.arange(n_steps + 1)
    own = np.unique(np.searchsorted(first, np.flatnonzero(is_k), side="right"))
    some = [np.linspace(0, last, most // 2).astype(np.int64) for last in (n_steps, len(own) - 1)]
    return np.union1d(some[0], own[some[1]])


def _of_all(sums: Sums) -> float:
    return float(sums.value(np.asarray(sums.of_record.sum(axis=0))[None])[0])


def _influence_error(sums: Sums) -> float:
    """Standard error by the infinitesimal jackknife: what each record adds to the measure (Jaeckel 1972)."""
    total = np.asarray(sums.of_record.sum(axis=0))
    there = np.flatnonzero(total)
    step = 1e-3 * total[there]
    moved = np.tile(total, (len(there) + 1, 1))
    moved[np.arange(len(there)), there] += step
    values = sums.value(moved)
    slope = np.zeros(len(total))
    slope[there] = (values[:-1] - values[-1]) / step
    return float(np.sqrt(((sums.of_record @ slope) ** 2).sum()))


def _bayes(costs: Float, log_m: Float, scanned: list[int], y: Int) -> Float:
    """Multipliers by what a mistake about each class costs beside being right, in the mean over mistakes."""
    present = np.unique(y)
    regret = costs - np.diag(costs)[:, None]
    weight = regret[np.ix_(present, present)].sum(axis=1)
    if (weight <= 0).any():
        return log_m
    bayes = log_m.copy()
    largest = np.setdiff1d(present, scanned)
    bayes[present] = np.log(weight) - np.log(weight[present == largest])
    return bayes


def _at_target(y: Int, log_p: Float, measure: AtTarget) -> Float:
    """Multipliers by which one class reaches a precision, or a recall, with a standard error to spare."""
    k, n = measure.k, len(y)
    log_m = np.zeros(log_p.shape[1])
    n_k = int((y == k).sum())
    if not n_k:
        return np.exp(log_m)
    cut, _ = _cuts(log_p, log_m, k)
    order = np.argsort(cut, kind="stable")
    steps, first = np.unique(cut[order], return_index=True)
    taken = np.r_[first[1:], n]  # records taken for class k above each step
    hits = np.cumsum(y[order] == k)[taken - 1]
    of = taken if measure.of == "precision" else np.full(len(steps), n_k)
    smoothed = (hits + 1) / (of + 2)
    low = hits / of - CAUTION * np.sqrt(smoothed * (1 - smoothed) / of)
    reached = np.flatnonzero(low >= measure.target)
    if measure.of == "recall":
        best = reached[0] if len(reached) else np.argmax(hits)
    else:
        best = reached[np.argmax(hits[reached])] if len(reached) else np.argmax(low)
    log_m[k] = _nearest(steps, np.arange(len(steps) + 1) == best + 1, 0.0)
    return np.exp(log_m)
