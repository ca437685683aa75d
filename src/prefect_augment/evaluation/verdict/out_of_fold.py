"""What out-of-fold predictions of training records add to the hold-out's word on two strategies.

A hold-out of a fifth of the records has a fifth of the evidence. The predictions that the search
has made of all other records are the rest, if two things are taken into account: folds share
training records, so their errors go together (Nadeau & Bengio 2003, "Inference for the
generalization error", equation 9), and a strategy that was chosen by these predictions is flattered
by them (Tsamardinos et al. 2018, "Bootstrapping the out-of-sample predictions", BBC-CV).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from prefect_augment.evaluation.metrics.bootstrap import Bootstrap, paired_bootstrap, units_of
from prefect_augment.schema import Interval

__all__ = ["OutOfFold", "pooled"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

N_CHOICES = 400  # bootstrap samples in which the choice is repeated


@dataclass(frozen=True)
class OutOfFold:
    """Which records each strategy was right about while it had not trained on them."""

    y: Int  # (n_records,) codes of compared classes
    hits: Mapping[str, Float]  # by strategy, (n_seeds, n_records): share of right estimators
    n_folds: int  # 1: one part of the records was predicted
    test_share: float  # of the records, in one fold
    models: Collection[str] = ()  # the strategies with synthetic records
    groups: Any = None  # (n_records,)
    n_bootstrap: int = 2000
    seed: int = 0

    def difference(self, strategy: str, against: str, *, level: float = 0.95) -> Interval:
        """Balanced accuracy of ``strategy``, chosen by these predictions, less that of ``against``."""
        interval = self._bootstrap(strategy, against).difference(strategy, against, level=level)
        # Chosen from its like: of strategies with a model the best, of all others the best but the reference.
        rivals = [
            name
            for name in self.hits
            if name != against and (name in self.models or strategy not in self.models)
        ]
        estimate = min(interval.estimate, self._of_fresh_records(against, rivals))
        # n_folds / n_test times the variance of a fold's mean is that of the mean over the records.
        widen = np.sqrt(1 + self.n_folds * self.test_share / (1 - self.test_share))
        half = widen * (interval.high - interval.low) / 2
        centre = (interval.high + interval.low) / 2 + estimate - interval.estimate
        return Interval(
            estimate=estimate, low=max(-1.0, centre - half), high=min(1.0, centre + half)
        )

    @cached_property
    def _boots(self) -> dict[tuple[str, str], Bootstrap]:
        """Those that were made already: the rules and the sentences ask for the same pairs."""
        return {}

    def _bootstrap(self, strategy: str, against: str) -> Bootstrap:
        if (strategy, against) in self._boots:
            return self._boots[strategy, against]
        n_seeds = min(len(self.hits[name]) for name in (strategy, against))
        hits = {name: self.hits[name][:n_seeds] for name in (strategy, against)}
        boot = paired_bootstrap(
            self.y,
            hits,
            compared=np.ones(int(self.y.max()) + 1, dtype=bool),
            groups=self.groups,
            n_bootstrap=self.n_bootstrap,
            seed=self.seed,
        )
        return self._boots.setdefault((strategy, against), boot)

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
        """Balanced accuracy of each strategy on the records drawn and on those left out, (2, n_choices)."""
        unit = units_of(len(self.y), self.groups, seed=self.seed)
        rng = np.random.default_rng([self.seed, 2])
        drawn = rng.poisson(1.0, (N_CHOICES, int(unit.max()) + 1)).astype(np.float64)
        return {
            name: np.stack(
                [self._balanced(hits.mean(axis=0), unit, w) for w in (drawn, drawn == 0)]
            )
            for name, hits in self.hits.items()
        }

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


def pooled(intervals: Collection[Interval], *, level: float = 0.95) -> Interval:
    """One interval from several estimates of the same difference, weighted by their precision."""
    z = float(ndtri((1 + level) / 2))
    variances = np.array([((i.high - i.low) / 2 / z) ** 2 for i in intervals])
    if (variances == 0).any():
        return next(i for i, v in zip(intervals, variances, strict=True) if v == 0)
    precision = 1 / variances
    estimate = float(np.average([i.estimate for i in intervals], weights=precision))
    half = z / float(np.sqrt(precision.sum()))
    return Interval(
        estimate=estimate, low=max(-1.0, estimate - half), high=min(1.0, estimate + half)
    )
