"""Balanced bagging: one estimator per bag of records in which frequent classes are thinned, and their mean.

Each record keeps its weight by the chance of being drawn, so no estimator needs to take weights, and
none of the frequent classes' records is lost to all of them. Bags that are balanced in full throw
away most of a table: the amount says how far they go.

Breiman 1996, "Bagging predictors"; Chen, Liaw & Breiman 2004, "Using random forest to learn
imbalanced data" (balanced bootstraps).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prefect_augment.array_types import Array, Float, Int
from prefect_augment.evaluation.classifiers.base import checked_weights

N_BAGS = 10
FEWEST_BAGS = 3  # of a pilot


@dataclass(frozen=True)
class Bagged:
    """Estimators of which each was trained on a bag; they know the same classes."""

    members: tuple[Any, ...]

    @property
    def classes_(self) -> Array:
        """Of scikit-learn's classifiers: the classes, shape (n_classes,)."""
        return np.asarray(self.members[0].classes_)

    def predict(self, X: Any) -> Array:
        """Of scikit-learn's classifiers: the most probable class of each record."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def predict_proba(self, X: Any) -> Float:
        """Mean probability of every class, shape (n_records, n_classes)."""
        return np.mean([member.predict_proba(X) for member in self.members], axis=0)


def n_bags(step_share: float) -> int:
    """Bags of a strategy: a pilot has a share of them."""
    return max(FEWEST_BAGS, round(step_share * N_BAGS))


def bags(strata: Array, weights: Float | None, *, n: int = N_BAGS, seed: int) -> list[Int]:
    """Sorted row indices of ``n`` bags, drawn with replacement by weight within each stratum.

    Per stratum a bag has as many records as its weights sum up to, where the largest mean weight of
    a stratum is 1; at least one. ParameterError if weights are negative or not finite, EmptyClassError if all are zero.

    Examples
    --------
    >>> frequent_and_rare, weights = np.repeat([0, 1], [90, 10]), np.repeat([1.0, 9.0], [90, 10])
    >>> (bag,) = bags(frequent_and_rare, weights, n=1, seed=0)
    >>> np.bincount(frequent_and_rare[bag]).tolist()
    [10, 10]
    """
    weights, rng = checked_weights(weights, len(strata)), np.random.default_rng(seed)
    rows = [np.flatnonzero(strata == name) for name in np.unique(strata)]
    rows = [of for of in rows if weights[of].sum() > 0]
    largest = max(float(weights[of].mean()) for of in rows)
    sizes = [max(1, round(float(weights[of].sum()) / largest)) for of in rows]
    shares = [weights[of] / weights[of].sum() for of in rows]
    return [
        np.sort(
            np.concatenate(
                [rng.choice(of, k, p=p) for of, k, p in zip(rows, sizes, shares, strict=True)]
            )
        )
        for _ in range(n)
    ]
