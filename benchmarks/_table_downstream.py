"""Downstream of `tables.py`: classifiers trained on a strategy's rows, thresholds on validation records,
scores on test.

Every strategy is treated alike. Gradient boosting and logistic regression, as the tool itself compares with,
are trained on training rows and what the strategy adds or weighs. Their thresholds (one multiplier per class)
are tuned on validation records, for macro-F1 and for balanced accuracy each by itself; test is scored once, plain and
tuned. AUPRC needs no threshold: the mean average precision of the classes other than the largest.

Intervals of a difference between two strategies come from a bootstrap of test's rows, the same for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.evaluation.classifiers.base import fit_estimator
from prefect_augment.evaluation.metrics.predictions import predict_classes, score_predictions
from prefect_augment.evaluation.metrics.thresholds import tune_multipliers

__all__ = [
    "ESTIMATORS",
    "FIGURES",
    "Outcome",
    "bootstrap_differences",
    "score_strategy",
    "tune_for_f1",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ESTIMATORS = ("boosting", "logistic")
FIGURES = ("auprc", "f1", "f1_tuned", "balanced", "balanced_tuned")
# Offsets of a class's log-probability that a threshold may have, and sweeps over the classes.
OFFSETS = np.linspace(-5.0, 5.0, 201)
SWEEPS = 2
# Of a standard error of the mean recall: what macro-F1 on validation records must gain for a threshold to move further,
# since validation holds tens of rare rows. The tool's own thresholds have the same.
SHRINKAGE = 0.25


@dataclass(frozen=True)
class Outcome:
    """What an estimator trained on a strategy's rows says of test.

    Attributes
    ----------
    y : ndarray of int64, shape (n_test,)
    proba : ndarray of float64, shape (n_test, n_classes)
    for_f1, for_balanced : ndarray of float64, shape (n_classes,)
        Multipliers tuned on validation records.
    """

    y: Ints
    proba: Floats
    for_f1: Floats
    for_balanced: Floats

    def scores(self) -> dict[str, float]:
        """Return all figures of :data:`FIGURES`, each in [0, 1]."""
        classes = [str(k) for k in range(self.proba.shape[1])]
        compared = np.ones(len(classes), dtype=bool)
        plain, f1, balanced = (
            score_predictions(
                self.y, self.proba, classes=classes, compared=compared, multipliers=multipliers
            )
            for multipliers in (None, self.for_f1, self.for_balanced)
        )
        return {
            "auprc": plain.auprc,
            "f1": plain.macro_f1,
            "f1_tuned": f1.macro_f1,
            "balanced": plain.balanced_accuracy,
            "balanced_tuned": balanced.balanced_accuracy,
        }


def score_strategy(
    rows: tuple[Floats, Ints],
    validation: tuple[Floats, Ints],
    test: tuple[Floats, Ints],
    *,
    weights: Floats | None = None,
    n_levels: Ints,
    n_classes: int,
    seed: int,
) -> dict[str, Outcome]:
    """Train both estimators on a strategy's rows and return what they say of test.

    Parameters
    ----------
    rows, validation, test : (ndarray of float64, shape (n, n_columns), ndarray of int64, shape (n,))
        Matrix form and class codes; ``rows`` are training rows with those that the strategy adds.
    weights : ndarray of float64, shape (n,), optional
        Of ``rows``.
    n_levels, n_classes, seed
        As for :func:`prefect_augment.evaluation.classifiers.base.fit_estimator`.

    Returns
    -------
    dict of str to Outcome
        By estimator.
    """
    found = {}
    for estimator in ESTIMATORS:
        fitted = fit_estimator(
            estimator,  # type: ignore[arg-type]  # a literal of ESTIMATORS
            rows[0],
            rows[1],
            weights=weights,
            n_levels=n_levels,
            n_classes=n_classes,
            seed=seed,
        )
        on_validation = fitted.predict_proba(validation[0])
        compared = np.ones(n_classes, dtype=bool)
        found[estimator] = Outcome(
            y=test[1],
            proba=fitted.predict_proba(test[0]),
            for_f1=tune_for_f1(validation[1], on_validation),
            for_balanced=tune_multipliers(validation[1], on_validation, compared=compared),
        )
    return found


def tune_for_f1(y: Ints, proba: Floats) -> Floats:
    """Return multipliers of the class probabilities that raise macro-F1 on these rows.

    One class after the other, on a grid of log-multipliers; of those that are about as good as the
    best, the one nearest to no change (Breiman et al. 1984, section 3.4.3).

    Parameters
    ----------
    y : ndarray of int64, shape (n,)
    proba : ndarray of float64, shape (n, n_classes)

    Returns
    -------
    ndarray of float64, shape (n_classes,)
    """
    n_classes = proba.shape[1]
    log_p, offsets = np.log(np.maximum(proba, 1e-12)), np.zeros(n_classes)
    largest = int(np.argmax(np.bincount(y, minlength=n_classes)))
    tolerance = SHRINKAGE * _standard_error(y, np.argmax(proba, axis=1), n_classes)
    nearest_first = OFFSETS[np.argsort(np.abs(OFFSETS), kind="stable")]
    for _ in range(SWEEPS):
        before = offsets.copy()
        for k in range(n_classes):
            if k == largest:
                continue
            found = []
            for offset in nearest_first:
                offsets[k] = offset
                found.append(_macro_f1(y, np.argmax(log_p + offsets, axis=1), n_classes))
            good = np.array(found) >= max(found) - tolerance
            offsets[k] = nearest_first[int(np.argmax(good))]
        if np.array_equal(before, offsets):
            break
    return np.exp(offsets)


def _macro_f1(y: Ints, predicted: Ints, n_classes: int) -> float:
    """Mean F1 of the classes that occur."""
    right = np.bincount(y[y == predicted], minlength=n_classes)
    true = np.bincount(y, minlength=n_classes)
    both = true + np.bincount(predicted, minlength=n_classes)
    return float((2 * right[true > 0] / both[true > 0]).mean())


def _standard_error(y: Ints, predicted: Ints, n_classes: int) -> float:
    """Standard error of the mean recall, from recalls with one hit and one miss added."""
    true = np.bincount(y, minlength=n_classes)
    here = true > 0
    recall = (np.bincount(y[y == predicted], minlength=n_classes)[here] + 1) / (true[here] + 2)
    return float(np.sqrt((recall * (1 - recall) / true[here]).sum()) / here.sum())


# --- intervals ---


def bootstrap_differences(
    strategies: Mapping[str, Sequence[Outcome]], against: str, *, n_draws: int = 1000, seed: int = 0
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Differences of strategies to one of them in AUPRC and tuned macro-F1, with 95 % intervals.

    Parameters
    ----------
    strategies : mapping of str to sequence of Outcome
        By strategy: one estimator's outcomes over sets and seeds, in the same order for all strategies. Their
        mean is what is compared.
    against : str
        The strategy that the others are compared with.
    n_draws : int
        Draws of test's rows, class by class, so that no class ever lacks rows.
    seed : int

    Returns
    -------
    dict of str to dict of str to (float, float, float)
        By strategy, then ``auprc`` and ``f1_tuned``: difference, lower and upper end.
    """
    n_places = len(strategies[against])
    rng = np.random.default_rng(seed)
    sums: dict[str, dict[str, Any]] = {
        strategy: {"auprc": 0.0, "f1_tuned": 0.0} for strategy in strategies if strategy != against
    }
    for place in range(n_places):
        y = strategies[against][place].y
        weights = np.vstack([np.ones(len(y)), _resampled(y, n_draws, rng)])  # the first: as it is
        base = _weighted(strategies[against][place], weights)
        for strategy, found in sums.items():
            scored = _weighted(strategies[strategy][place], weights)
            for figure in found:
                found[figure] = found[figure] + (scored[figure] - base[figure]) / n_places
    return {
        strategy: {
            figure: (float(d[0]), *map(float, np.quantile(d[1:], [0.025, 0.975])))  # type: ignore[misc]
            for figure, d in found.items()
        }
        for strategy, found in sums.items()
    }


def _resampled(y: Ints, n_draws: int, rng: np.random.Generator) -> Floats:
    """Return how often each row was drawn, shape (n_draws, n)."""
    weights = np.zeros((n_draws, len(y)))
    for k in np.unique(y):
        rows = np.flatnonzero(y == k)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), n_draws)
    return weights


def _weighted(outcome: Outcome, weights: Floats) -> dict[str, Floats]:
    """Return AUPRC and tuned macro-F1 under weights of the rows, shape (n_draws,) each."""
    y, proba = outcome.y, outcome.proba
    counts = np.bincount(y, minlength=proba.shape[1])
    present = np.flatnonzero(counts)
    largest = present[np.argmax(counts[present])]
    precisions = [_average_precision(y == k, proba[:, k], weights) for k in present if k != largest]
    predicted = predict_classes(proba, outcome.for_f1)
    scores = []
    for k in present:
        right = weights @ ((y == k) & (predicted == k)).astype(np.float64)
        both = weights @ ((y == k).astype(np.float64) + (predicted == k))
        scores.append(2 * right / both)
    return {"auprc": np.mean(precisions, axis=0), "f1_tuned": np.mean(scores, axis=0)}


def _average_precision(positive: NDArray[np.bool_], score: Floats, weights: Floats) -> Floats:
    """Return average precision as scikit-learn has it, ties taken together, under weights."""
    order = np.argsort(-score, kind="stable")
    score, positive, weights = score[order], positive[order], weights[:, order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    hits = np.cumsum(weights * positive, axis=1)[:, last]
    taken = np.cumsum(weights, axis=1)[:, last]
    gained = np.diff(hits, axis=1, prepend=0.0)
    precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
    found: Floats = (gained * precision).sum(axis=1) / hits[:, -1]
    return found
