"""What out-of-fold predictions of training records add to the hold-out's word on two strategies.

A hold-out of a fifth of the records has a fifth of the evidence. The predictions that the search has made of all other
records are the rest, if two things are taken into account: folds share training records, so their errors go together
(Nadeau & Bengio 2003, "Inference for the generalization error", equation 9), and a strategy that was chosen by these
predictions is flattered by them (Tsamardinos et al. 2018, "Bootstrapping the out-of-sample predictions", BBC-CV).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import ndtri

from prefect_augment.array_types import Float, Int
from prefect_augment.evaluation.metrics.bootstrap import paired_bootstrap, units_of
from prefect_augment.evaluation.metrics.measures import Measure
from prefect_augment.evaluation.metrics.predictions import MeasureDraws, StrategyPredictions
from prefect_augment.schema import Interval

# Bootstrap samples in which the choice is repeated; of a scorer that takes milliseconds for each.
N_CHOICES, N_SLOW_CHOICES = 400, 40


@dataclass(frozen=True)
class OutOfFold:
    """What each strategy predicted of records that it had not trained on."""

    y: Int  # (n_records,) codes of compared classes
    # By strategy; a threshold is that of the other folds, so multipliers are (n_seeds, n_records, n_classes).
    predictions: Mapping[str, StrategyPredictions]
    n_folds: int  # 1: one part of the records was predicted
    test_share: float  # of the records, in one fold
    models: Collection[str] = ()  # the strategies with synthetic records
    measure: Measure | None = None  # balanced accuracy by default
    groups: Any = None  # (n_records,)
    n_bootstrap: int = 2000
    seed: int = 0

    def difference(self, strategy: str, against: str, *, level: float = 0.95) -> Interval:
        """The measure, higher being better, of ``strategy``, chosen by these predictions, less that of ``against``."""
        interval = self._difference(strategy, against, level)
        # Chosen from its like: of strategies with a model the best, of all others the best but the reference.
        rivals = [
            name
            for name in self.predictions
            if name != against and (name in self.models or strategy not in self.models)
        ]
        estimate = min(interval.estimate, self._of_fresh_records(against, rivals))
        # n_folds / n_test times the variance of a fold's mean is that of the mean over the records.
        widen = np.sqrt(1 + self.n_folds * self.test_share / (1 - self.test_share))
        half = widen * (interval.high - interval.low) / 2
        centre = (interval.high + interval.low) / 2 + estimate - interval.estimate
        return _bounded(estimate, centre, half, self.measure)

    @cached_property
    def _known(self) -> dict[tuple[str, str, float], Interval]:
        """Those that were made already: the rules and the sentences ask for the same pairs."""
        return {}

    def _difference(self, strategy: str, against: str, level: float) -> Interval:
        """With the records drawn anew, before folds and the choice are thought of."""
        key = (strategy, against, level)
        if key in self._known:
            return self._known[key]
        pair = {name: self.predictions[name] for name in (strategy, against)}
        n_seeds = min(of.n_seeds for of in pair.values())
        pair = {name: of.first(n_seeds) for name, of in pair.items()}
        drawn: dict[str, Any] = {
            "groups": self.groups,
            "n_bootstrap": self.n_bootstrap,
            "seed": self.seed,
        }
        if self.measure is not None:
            draws = MeasureDraws.of(self.y, pair, self.measure, **drawn)
            interval = draws.difference(strategy, against, level=level)
        else:
            hits = {name: of.hits(self.y) for name, of in pair.items()}
            boot = paired_bootstrap(
                self.y, hits, compared=np.ones(int(self.y.max()) + 1, dtype=bool), **drawn
            )
            interval = boot.difference(strategy, against, level=level)
        return self._known.setdefault(key, interval)

    def _of_fresh_records(self, against: str, rivals: Collection[str]) -> float:
        """Mean gain over ``against`` of the strategy that looks best, on records that did not choose it."""
        if len(rivals) < 2:
            return 1.0
        seen, fresh = np.stack([self._resampled[name] for name in rivals], axis=1)
        best = seen.argmax(axis=0)  # (n_choices,) of arrays (n_rivals, n_choices)
        of_best = fresh[best, np.arange(len(best))]
        return float(np.nanmean(of_best - self._resampled[against][1]))

    @cached_property
    def _resampled(self) -> dict[str, Float]:
        """Each strategy's measure on the records drawn and on those left out, (2, n_choices)."""
        unit = units_of(len(self.y), self.groups, seed=self.seed)
        rng = np.random.default_rng([self.seed, 2])
        is_slow = self.measure is not None and not self.measure.vectorised
        n_draws, n_units = N_SLOW_CHOICES if is_slow else N_CHOICES, int(unit.max()) + 1
        # Of many groups the weights are the largest array of a run: the draws wait in bytes.
        drawn = np.empty((n_draws, n_units), np.uint8)
        for row in drawn:
            row[:] = rng.poisson(1.0, n_units)
        both = (drawn, drawn == 0)
        return {
            name: np.stack([self._measured(of, unit, part.astype(np.float64)) for part in both])
            for name, of in self.predictions.items()
        }

    def _measured(self, of: StrategyPredictions, unit: Int, weights: Float) -> Float:
        """Mean over estimators and seeds of the measure in each draw, shape (n_draws,)."""
        if self.measure is None:
            return self._balanced(of.hits(self.y).mean(axis=0), unit, weights)
        values = [
            self.measure.values(self.y, *pair, weights, unit=unit)
            for seed in range(of.n_seeds)
            for pair in of.decided(seed)
        ]
        return np.asarray(self.measure.oriented(np.mean(values, axis=0)))

    def _balanced(self, right: Float, unit: Int, weights: Any) -> Float:
        """Mean recall in each draw, over the classes that occur in it, shape (n_draws,)."""
        recalls = []
        for k in np.unique(self.y):
            rows = self.y == k
            n = np.bincount(unit[rows], minlength=weights.shape[1])
            n_right = np.bincount(unit[rows], weights=right[rows], minlength=weights.shape[1])
            total = weights @ n
            recalls.append(
                np.where(total > 0, (weights @ n_right) / np.maximum(total, 1e-9), np.nan)
            )
        return np.asarray(np.nanmean(recalls, axis=0))


def pooled(
    intervals: Collection[Interval], measure: Measure | None = None, *, level: float = 0.95
) -> Interval:
    """One interval from several estimates of the same difference, weighted by their precision."""
    z = float(ndtri((1 + level) / 2))
    variances = np.array([((i.high - i.low) / 2 / z) ** 2 for i in intervals])
    if (variances == 0).any():
        return next(i for i, v in zip(intervals, variances, strict=True) if v == 0)
    precision = 1 / variances
    estimate = float(np.average([i.estimate for i in intervals], weights=precision))
    return _bounded(estimate, estimate, z / float(np.sqrt(precision.sum())), measure)


def _bounded(estimate: float, centre: float, half: float, measure: Measure | None) -> Interval:
    """An interval around ``centre``; a share's difference lies within [-1, 1], a cost's anywhere."""
    low, high = centre - half, centre + half
    if measure is None or measure.info.unit == "points":
        low, high = max(-1.0, low), min(1.0, high)
    return Interval(estimate=estimate, low=low, high=high)
