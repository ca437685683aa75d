"""One set of bootstrap draws for whatever is measured on the same records.

:mod:`.bootstrap` draws recalls; here are plain weights, for other sums over records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from prefect_augment.datatypes import Interval

__all__ = ["MAX_UNITS", "Draws", "percentiles", "seed_weights", "units_of"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]

# Single records are drawn in so many random blocks at most: the variance of a mean over records is
# the same, its estimate has an error of sqrt(2 / 2000) = 3 %, and the work no longer grows with them.
MAX_UNITS = 2000


def units_of(n: int, groups: Any, *, seed: int) -> Int:
    """Return what each of ``n`` records is drawn with: its group, or a random block.

    Parameters
    ----------
    n : int
    groups : sequence of length n, optional
        Records with an equal value are drawn together.
    seed : int
        Of the blocks.

    Returns
    -------
    ndarray of int64, shape (n,)
        Numbers from 0 on, without a gap.
    """
    if groups is not None:
        return np.asarray(np.unique(np.asarray(groups), return_inverse=True)[1], dtype=np.int64)
    if n <= MAX_UNITS:
        return np.arange(n, dtype=np.int64)
    return np.random.default_rng(seed).permutation(n) % MAX_UNITS


@dataclass(frozen=True)
class Draws:
    """Weights of records and training seeds in each draw (Bayesian bootstrap, two levels).

    Attributes
    ----------
    unit : ndarray of int64, shape (n_records,)
    weights : ndarray of float64, shape (n_draws, n_units)
        Exponential.
    seeds : ndarray of float64, shape (n_draws, n_seeds)
        Rows sum to 1; from :func:`seed_weights`.

    References
    ----------
    As :func:`.paired_bootstrap`.
    """

    unit: Int
    weights: Float
    seeds: Float

    @classmethod
    def of(cls, n: int, groups: Any, *, n_seeds: int, n_draws: int, seed: int) -> Draws:
        """Draw the weights of ``n`` records in groups, and of ``n_seeds`` seeds."""
        unit = units_of(n, groups, seed=seed)
        rng = np.random.default_rng([seed, 1])
        weights = rng.standard_exponential((n_draws, int(unit.max(initial=-1)) + 1))
        return cls(unit, weights, seed_weights(n_seeds, n_draws, rng))

    def sums(self, values: Float) -> Float:
        """Return the weighted sum of each column in each draw, shape (n_draws, n_columns)."""
        n_units = self.weights.shape[1]
        per_unit = np.stack(
            [np.bincount(self.unit, weights=column, minlength=n_units) for column in values.T],
            axis=1,
        )
        return np.asarray(self.weights @ per_unit)

    def means(self, values: Float) -> Float:
        """Return the weighted mean of a value in each draw, shape (n_draws,); (n_seeds, n_records) in."""
        sums = self.sums(np.concatenate([values, np.ones((1, values.shape[1]))]).T)
        means = ((sums[:, :-1] / sums[:, -1:]) * self.seeds).sum(axis=1)
        return np.clip(means, values.min(), values.max())


def seed_weights(n_seeds: int, n_draws: int, rng: np.random.Generator) -> Float:
    """Return the weight of each training seed in each draw, shape (n_draws, n_seeds).

    Seeds are drawn with replacement, one fewer than there are, which makes the spread of their mean
    unbiased. Two or three seeds say little of that spread, and no draw goes beyond the outermost of
    them: weights are moved away from even ones by as much as Student's t of the difference of two
    arms (2 n - 2 degrees of freedom) is wider than the normal. A weight may be negative then. One seed
    tells nothing of how much they differ, and has all the weight.

    References
    ----------
    Rao & Wu 1988, "Resampling inference with complex survey data" (n - 1 draws).
    """
    if n_seeds == 1:
        return np.ones((n_draws, 1))
    even = np.full(n_seeds, 1 / n_seeds)
    drawn = rng.multinomial(n_seeds - 1, even, size=n_draws) / (n_seeds - 1)
    wider = float(stdtrit(2 * n_seeds - 2, 0.975) / ndtri(0.975))
    return np.asarray(even + wider * (drawn - even))


def percentiles(estimate: float, draws: Float, *, level: float = 0.95) -> Interval:
    """Return the percentile interval of draws; it holds the estimate."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        estimate=float(estimate), low=float(min(low, estimate)), high=float(max(high, estimate))
    )
