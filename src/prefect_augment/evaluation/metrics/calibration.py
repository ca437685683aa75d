"""Whether probabilities mean what they say, and what corrects those of a rebalanced training set.

An estimator that was trained with other class shares than there are in use is wrong about how frequent
each class is. The correction multiplies each class's probability by its true share over the share
that it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics.bootstrap import Draws, percentiles
from prefect_augment.schema.base import Interval
from prefect_augment.schema.experiment import CalibrationScore, StrategyCalibration

__all__ = [
    "calibration_error",
    "calibration_of",
    "class_calibration_error",
    "correct_prior",
    "n_bins_of",
    "prior_factors",
    "squared_distances",
]

Float = NDArray[np.float64]
Int = NDArray[np.int64]

N_BINS = 15  # Guo et al. 2017
MIN_PER_BIN = 20  # fewer bins where there are fewer records
N_SPLITS = 4  # random halves that the calibration error is cross-fitted on
SAME = 1e-9


def prior_factors(
    classes: Sequence[str], true: Mapping[str, float], train: Mapping[str, float]
) -> Float:
    """Return what each class's probability is multiplied by, shape (n_classes,).

    Parameters
    ----------
    classes : sequence of str
        In the order of the columns of probabilities.
    true, train : mapping of str to float
        Class shares where the classifier is used, and those it was trained with. A class that
        ``train`` lacks, or has a share of 0 of, keeps its probability; one that only ``true`` lacks gets 0.
    """
    return np.array(
        [true.get(k, 0.0) / train[k] if train.get(k, 0.0) > 0 else 1.0 for k in classes]
    )


def correct_prior(proba: Float, factors: Float) -> Float:
    """Return class probabilities for other class shares than were trained with.

    Parameters
    ----------
    proba : ndarray of float64, shape (..., n_classes)
    factors : ndarray of float64, shape (n_classes,)
        From :func:`prior_factors`.

    Returns
    -------
    ndarray of float64, same shape
        Rows sum to 1; a row of zeros stays one.

    Raises
    ------
    ParameterError
        If the shapes do not fit, or a factor is negative or not finite.

    References
    ----------
    Saerens, Latinne & Decaestecker 2002, "Adjusting the outputs of a classifier to new a priori
    probabilities: a simple procedure", equation 2.4.

    Examples
    --------
    >>> correct_prior(np.array([[0.5, 0.5]]), np.array([1.8, 0.2])).tolist()
    [[0.9, 0.1]]
    """
    factors = np.asarray(factors, dtype=np.float64)
    if factors.shape != proba.shape[-1:]:
        raise ParameterError(
            f"expected a factor for each of {proba.shape[-1]} classes; found {factors.size}."
        )
    if not np.isfinite(factors).all() or (factors < 0).any():
        raise ParameterError("factors must be finite and not negative; found others.")
    scaled: Float = proba * factors
    total = scaled.sum(axis=-1, keepdims=True)
    np.divide(scaled, total, out=scaled, where=total > 0)
    return scaled


def squared_distances(y: Int, proba: Float) -> Float:
    """Return each record's part of the Brier score, in [0, 1], shape (n_records,)."""
    of_truth = proba[np.arange(len(y)), y]
    return np.asarray(((proba**2).sum(axis=1) - 2 * of_truth + 1) / 2)


def n_bins_of(n_records: int) -> int:
    """Return how many bins so many records are put into."""
    return max(1, min(N_BINS, n_records // MIN_PER_BIN))


def calibration_error(y: Int, proba: Float, draws: Draws, *, seed: int) -> Interval:
    """Expected calibration error of the most probable class, with its 95 % interval.

    Records are put into up to 15 bins of equal numbers by the probability of the class that is
    predicted. A bin's gap is how much more often it is expected to be right than it is. The plain
    estimate, the mean of the gaps' sizes, is above 0 for every classifier: too high, since chance makes
    gaps as well. Where each gap's sign is learned on one half of the records and its size measured on
    the other, what chance does has the mean 0; that is too low where a sign is unsure. The estimate is
    the mean of both, the interval reaches from the low end of the second to the high end of the first.

    Parameters
    ----------
    y : ndarray of int64, shape (n_records,)
    proba : ndarray of float64, shape (n_seeds, n_records, n_classes)
    draws : Draws
        Of these records and seeds.
    seed : int
        Of the halves.

    Returns
    -------
    Interval
        In [0, 1]; its low end is 0 where no error is shown.

    References
    ----------
    Naeini, Cooper & Hauskrecht 2015 (the measure); Nguyen & O'Connor 2015 (bins of equal mass);
    Kumar, Liang & Ma 2019, "Verified Uncertainty Calibration" (the plain estimate's bias).
    """
    sure = proba.max(axis=2)
    return _interval(_gap_sizes(sure, sure - (proba.argmax(axis=2) == y), draws, seed))


def class_calibration_error(
    y: Int, proba: Float, classes: Sequence[int], draws: Draws, *, seed: int
) -> Interval:
    """Calibration error of the probabilities of some classes, mean over these, with its interval.

    What a change of class shares does: the probability of a rare class is too high throughout, which
    the most probable class need not show. Parameters as for :func:`calibration_error`, and ``classes``,
    the codes.

    References
    ----------
    Kull et al. 2019, "Beyond temperature scaling", section 2 (classwise-ECE).
    """
    found = [_gap_sizes(proba[:, :, k], proba[:, :, k] - (y == k), draws, seed) for k in classes]
    return _interval(np.mean(found, axis=0))


def _gap_sizes(sure: Float, gap: Float, draws: Draws, seed: int) -> Float:
    """Mean size of gaps, binned by ``sure``; both of shape (n_seeds, n_records).

    Returns
    -------
    ndarray of float64, shape (2, 1 + n_draws)
        Cross-fitted and plain; the estimate, then the draws.
    """
    n_records, n_units = sure.shape[1], draws.weights.shape[1]
    n_bins = n_bins_of(n_records)
    rng = np.random.default_rng([seed, 2])
    in_first = np.stack([rng.permutation(n_units) % 2 == 0 for _ in range(N_SPLITS)], axis=1)
    # The records themselves are the first draw.
    weights = np.concatenate([np.ones((1, n_units)), draws.weights])
    of_seed = np.concatenate([np.full((1, len(sure)), 1 / len(sure)), draws.seeds])
    total = weights @ np.bincount(draws.unit, minlength=n_units)
    found = np.zeros((2, len(weights)))
    for s in range(len(sure)):
        edges = np.quantile(sure[s], np.arange(1, n_bins) / n_bins)
        place = draws.unit * n_bins + np.searchsorted(edges, sure[s], side="right")
        per_unit = np.bincount(place, weights=gap[s], minlength=n_units * n_bins)
        per_unit = per_unit.reshape(n_units, 1, n_bins)
        # Both halves of every split: the first, and all of it less the first.
        first = weights @ (per_unit * in_first[:, :, None]).reshape(n_units, -1)
        first = first.reshape(len(weights), N_SPLITS, n_bins)
        whole = weights @ per_unit[:, 0]
        second = whole[:, None, :] - first
        crossed = np.sign(first) * second + np.sign(second) * first
        found[0] += crossed.sum(axis=2).mean(axis=1) / total * of_seed[:, s]
        found[1] += np.abs(whole).sum(axis=1) / total * of_seed[:, s]
    return found


def _interval(found: Float) -> Interval:
    """Bracket the error between what :func:`_gap_sizes` gives."""
    crossed, plain = (percentiles(values[0], values[1:]) for values in found)
    return Interval(
        estimate=max(0.0, (crossed.estimate + plain.estimate) / 2),
        low=max(0.0, crossed.low),
        high=min(1.0, plain.high),
    )


def calibration_of(
    y: Int,
    proba: Float,
    *,
    classes: Sequence[str],
    looked_at: Sequence[int],
    factors: Float,
    draws: Draws,
    seed: int,
) -> StrategyCalibration:
    """Return one estimator's calibration, as it predicts and with the prior corrected.

    Parameters
    ----------
    y : ndarray of int64, shape (n_records,)
    proba : ndarray of float64, shape (n_seeds, n_records, n_classes)
    classes : sequence of str
    looked_at : sequence of int
        Codes of the classes whose probabilities are looked at one by one.
    factors : ndarray of float64, shape (n_classes,)
        From :func:`prior_factors`; where all are 1 there is nothing to correct.
    draws : Draws
    seed : int
    """
    before, distances = _score(y, proba, classes, looked_at, draws, seed)
    if np.allclose(factors, factors[0], rtol=SAME):
        return StrategyCalibration(as_predicted=before)
    # One seed at a time: with a thousand classes these arrays are the largest of a run.
    corrected = np.stack([correct_prior(p, factors) for p in proba])
    after, others = _score(y, corrected, classes, looked_at, draws, seed)
    moved = others - distances
    change = percentiles(float(moved.mean()), draws.means(moved))
    return StrategyCalibration(as_predicted=before, corrected=after, change=change)


def _score(
    y: Int,
    proba: Float,
    classes: Sequence[str],
    looked_at: Sequence[int],
    draws: Draws,
    seed: int,
) -> tuple[CalibrationScore, Float]:
    """Return the scores, and each record's part of the Brier score per seed."""
    distances = np.stack([squared_distances(y, p) for p in proba])
    n_k = np.bincount(y, minlength=len(classes))
    expected = proba.sum(axis=1).mean(axis=0)
    score = CalibrationScore(
        brier=percentiles(float(distances.mean()), draws.means(distances)),
        ece=calibration_error(y, proba, draws, seed=seed),
        class_ece=class_calibration_error(y, proba, looked_at, draws, seed=seed),
        expected={classes[k]: float(expected[k] / n_k[k]) for k in np.flatnonzero(n_k).tolist()},
    )
    return score, distances
