"""Whether probabilities match observed frequencies, and how to correct them after rebalancing.

An estimator trained with other class shares than it meets in use is wrong about each class's frequency. The
correction multiplies each class's probability by its true share over its training share.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from prefect_augment.array_types import Float, Int
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics.bootstrap import Draws, percentiles
from prefect_augment.evaluation.metrics.measures import squared_distances
from prefect_augment.schema import CalibrationScore, Interval, StrategyCalibration

N_BINS = 15  # Guo et al. 2017
MIN_PER_BIN = 20  # fewer bins where there are fewer records
N_SPLITS = 4  # random halves that the calibration error is cross-fitted on
SAME = 1e-9


def prior_factors(
    classes: Sequence[str], true: Mapping[str, float], train: Mapping[str, float]
) -> Float:
    """Factor of each class's probability, shape (n_classes,): its ``true`` share over its ``train`` share.

    A class with no share in ``train`` keeps its probability; one that only ``true`` lacks gets 0.
    """
    return np.array(
        [true.get(k, 0.0) / train[k] if train.get(k, 0.0) > 0 else 1.0 for k in classes]
    )


def correct_prior(proba: Float, factors: Float) -> Float:
    """Class probabilities (..., n_classes) for other class shares than the training shares.

    Rows sum to 1; a row of zeros stays one. ParameterError if the factors have another shape, or
    are negative or not finite. Saerens, Latinne & Decaestecker 2002, "Adjusting the outputs of a
    classifier to new a priori probabilities: a simple procedure", equation 2.4.

        >>> correct_prior(np.array([[0.5, 0.5]]), np.array([1.8, 0.2])).tolist()
        [[0.9, 0.1]]
    """
    factors = np.asarray(factors, dtype=np.float64)
    if factors.shape != proba.shape[-1:]:
        raise ParameterError(
            f"expected a factor for each of {proba.shape[-1]} classes; got {factors.size}."
        )
    if not np.isfinite(factors).all() or (factors < 0).any():
        raise ParameterError("factors must be finite and not negative.")
    scaled: Float = proba * factors
    total = scaled.sum(axis=-1, keepdims=True)
    np.divide(scaled, total, out=scaled, where=total > 0)
    return scaled


def n_calibration_bins(n_records: int) -> int:
    """Number of bins for so many records."""
    return max(1, min(N_BINS, n_records // MIN_PER_BIN))


def calibration_error(
    y: Int,  # (n_records,)
    proba: Float,  # (n_seeds, n_records, n_classes)
    draws: Draws,
    *,
    seed: int,  # of the halves
) -> Interval:
    """Expected calibration error of the most probable class, with its 95 % interval; 0 at the low end if not shown.

    Records are put into up to 15 bins of equal size by the probability of the predicted class. A bin's gap is the
    mean probability less the share of right predictions. The plain estimate, the mean size of the gaps, is too high,
    since chance makes gaps as well. Cross-fitting learns each gap's sign on one half of the records and its size on
    the other; chance then has mean 0, but an uncertain sign makes the estimate too low. The result is the mean of
    both estimates; the interval reaches from the low end of the second to the high end of the first.

    Naeini, Cooper & Hauskrecht 2015 (the measure); Nguyen & O'Connor 2015 (bins of equal mass);
    Kumar, Liang & Ma 2019, "Verified Uncertainty Calibration" (the plain estimate's bias).
    """
    sure = proba.max(axis=2)
    return _interval(_gap_sizes(sure, sure - (proba.argmax(axis=2) == y), draws, seed))


def _gap_sizes(sure: Float, gap: Float, draws: Draws, seed: int) -> Float:
    """Mean size of gaps, binned by ``sure``, both (n_seeds, n_records): shape (2, 1 + n_draws).

    The rows are cross-fitted and plain; the first column is the estimate, the others are the draws.
    """
    n_records, n_units = sure.shape[1], draws.weights.shape[1]
    n_bins = n_calibration_bins(n_records)
    rng = np.random.default_rng([seed, 2])
    in_first = np.stack([rng.permutation(n_units) % 2 == 0 for _ in range(N_SPLITS)], axis=1)
    weights = draws.every  # the records themselves are the first draw
    of_seed = np.concatenate([np.full((1, len(sure)), 1 / len(sure)), draws.seeds])
    total = weights @ np.bincount(draws.unit, minlength=n_units)
    sizes = np.zeros((2, len(weights)))
    for s in range(len(sure)):
        edges = np.quantile(sure[s], np.arange(1, n_bins) / n_bins)
        bins = draws.unit * n_bins + np.searchsorted(edges, sure[s], side="right")
        per_unit = np.bincount(bins, weights=gap[s], minlength=n_units * n_bins)
        per_unit = per_unit.reshape(n_units, 1, n_bins)
        # The halves of every split: the first, and everything less the first.
        first = weights @ (per_unit * in_first[:, :, None]).reshape(n_units, -1)
        first = first.reshape(len(weights), N_SPLITS, n_bins)
        whole = weights @ per_unit[:, 0]
        second = whole[:, None, :] - first
        crossed = np.sign(first) * second + np.sign(second) * first
        sizes[0] += crossed.sum(axis=2).mean(axis=1) / total * of_seed[:, s]
        sizes[1] += np.abs(whole).sum(axis=1) / total * of_seed[:, s]
    return sizes


def _interval(sizes: Float) -> Interval:
    """The interval between the cross-fitted and the plain estimate of :func:`_gap_sizes`."""
    crossed, plain = (percentiles(values[0], values[1:]) for values in sizes)
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
    rare_classes: Sequence[int],
    factors: Float,
    draws: Draws,
    seed: int,
) -> StrategyCalibration:
    """An estimator's calibration, as it predicts and after the prior correction.

    Probabilities have shape (n_seeds, n_records, n_classes). ``rare_classes`` are scored one by
    one. With equal ``factors`` there is nothing to correct.
    """
    before, distances = _score(y, proba, classes, rare_classes, draws, seed)
    if np.allclose(factors, factors[0], rtol=SAME):
        return StrategyCalibration(as_predicted=before)
    # One seed at a time: with a thousand classes these arrays are the largest of a run.
    corrected = np.stack([correct_prior(p, factors) for p in proba])
    after, others = _score(y, corrected, classes, rare_classes, draws, seed)
    moved = others - distances
    change = percentiles(float(moved.mean()), draws.means(moved))
    return StrategyCalibration(as_predicted=before, corrected=after, change=change)


def _score(
    y: Int,
    proba: Float,
    classes: Sequence[str],
    rare_classes: Sequence[int],
    draws: Draws,
    seed: int,
) -> tuple[CalibrationScore, Float]:
    """The scores, and each record's part of the Brier score per seed."""
    distances = np.stack([squared_distances(y, p) for p in proba])
    n_k = np.bincount(y, minlength=len(classes))
    expected = proba.sum(axis=1).mean(axis=0)
    # A change of class shares makes the probability of a rare class too high throughout, which the most probable
    # class need not show. Kull et al. 2019, "Beyond temperature scaling", section 2 (classwise-ECE).
    of_rare = [(proba[:, :, k], y == k) for k in rare_classes]
    gaps = [_gap_sizes(p, p - is_k, draws, seed) for p, is_k in of_rare]
    score = CalibrationScore(
        brier=percentiles(float(distances.mean()), draws.means(distances)),
        ece=calibration_error(y, proba, draws, seed=seed),
        class_ece=_interval(np.mean(gaps, axis=0)),
        expected={classes[k]: float(expected[k] / n_k[k]) for k in np.flatnonzero(n_k).tolist()},
    )
    return score, distances
