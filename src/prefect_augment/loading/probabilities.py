"""A recipe's corrections of class probabilities: multipliers for the decision, and the prior."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from prefect_augment.array_types import Float
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics.calibration import correct_prior, prior_factors
from prefect_augment.schema import Recipe
from prefect_augment.shards.base import label_names


def class_names(classes: Sequence[Any]) -> tuple[str, ...]:
    """Return classes as the manifest spells them: true for True, 1 for numpy's 1."""
    values = [c.item() if isinstance(c, np.generic) else c for c in classes]
    return tuple(label_names(pa.array(values)))


def multipliers_of(recipe: Recipe, estimator: str, names: Sequence[str]) -> Float:
    """Return the multiplier of each class's probability before the largest is taken, shape (n_classes,).

    ``names`` are those of :func:`class_names`; ``estimator`` may be empty if there is at most one. Raises
    ParameterError if the recipe has no such estimator.
    """
    tuned = recipe.thresholds
    if not tuned:
        return np.ones(len(names))
    if not estimator and len(tuned) == 1:
        estimator = next(iter(tuned))
    if estimator not in tuned:
        raise ParameterError(
            f"the recipe has multipliers for {', '.join(map(repr, sorted(tuned)))}, not for {estimator!r}; set "
            "estimator to the one that your classifier resembles most."
        )
    return np.array([tuned[estimator].get(name, 1.0) for name in names])


def reweighted(probabilities: ArrayLike, names: Sequence[str], factors: Float) -> Float:
    """Return probabilities times a factor per class, rows summing to 1; ParameterError for other columns."""
    proba = np.asarray(probabilities, dtype=np.float64)
    if proba.ndim != 2 or proba.shape[1] != len(names):
        raise ParameterError(
            f"probabilities have the shape {proba.shape}; expected a column for each of {len(names)} classes."
        )
    return correct_prior(proba, factors)


def prior_corrected(
    probabilities: ArrayLike,
    recipe: Recipe,
    names: Sequence[str],
    prior: Mapping[Any, float] | None = None,
) -> Float:
    """Return probabilities for the class shares of the source, or for ``prior``.

    ``probabilities``, shape (n_records, n_classes), are of a classifier trained by the recipe. Only the
    proportions of ``prior`` matter. Raises ParameterError if the shapes do not fit, or ``prior`` lacks a class
    or has an invalid share.
    """
    shares = dict(recipe.prior_true)
    if prior is not None:
        shares = dict(zip(class_names(list(prior)), prior.values(), strict=True))
        missing = [name for name in names if name not in shares]
        bad = [k for k, share in shares.items() if not (np.isfinite(share) and share >= 0)]
        if missing or bad or not sum(shares.values()):
            what = f"has no share of {missing[0]!r}" if missing else "has an invalid share"
            raise ParameterError(
                f"prior {what}; give a number of 0 or more for each of: {', '.join(map(repr, names))}."
            )
    if not recipe.prior_train:  # written by an older version
        return reweighted(probabilities, names, np.ones(len(names)))
    return reweighted(probabilities, names, prior_factors(names, shares, recipe.prior_train))
