"""What a recipe says of a classifier's probabilities: multipliers to decide with, the prior to read them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics.calibration import correct_prior, prior_factors
from prefect_augment.schema.base import Recipe
from prefect_augment.shards.base import label_names

__all__ = ["class_names", "multipliers_of", "prior_corrected", "rescaled"]

Float = NDArray[np.float64]


def class_names(classes: Sequence[Any]) -> tuple[str, ...]:
    """Return classes as the manifest spells them: true for True, 1 for numpy's 1."""
    values = [c.item() if isinstance(c, np.generic) else c for c in classes]
    return tuple(label_names(pa.array(values)))


def multipliers_of(recipe: Recipe, estimator: str, names: Sequence[str]) -> Float:
    """Return what each class's probability is multiplied by before the largest is taken, shape (n_classes,).

    Parameters
    ----------
    recipe : Recipe
    estimator : str
        Whose multipliers; may be empty where there is one estimator, or none.
    names : sequence of str
        Classes, as :func:`class_names` gives them.

    Raises
    ------
    ParameterError
        If the recipe has no such estimator.
    """
    tuned = recipe.thresholds
    if not tuned:
        return np.ones(len(names))
    if not estimator and len(tuned) == 1:
        estimator = next(iter(tuned))
    if estimator not in tuned:
        raise ParameterError(
            f"the recipe has multipliers for {', '.join(map(repr, sorted(tuned)))}; say which with estimator, not "
            f"{estimator!r}: the one that your classifier is most like."
        )
    return np.array([tuned[estimator].get(name, 1.0) for name in names])


def rescaled(probabilities: ArrayLike, names: Sequence[str], factors: Float) -> Float:
    """Return probabilities times a factor for each class, rows summing to 1.

    Raises
    ------
    ParameterError
        If the columns are not one per class.
    """
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
    """Return probabilities for the class shares of the source, or for others.

    Parameters
    ----------
    probabilities : array-like, shape (n_records, n_classes)
        Of a classifier that was trained as the recipe says.
    recipe : Recipe
    names : sequence of str
        The class of each column.
    prior : mapping of class to float, optional
        Class shares where the classifier is used, if not those of the source's records
        (``recipe.prior_true``); only their proportions matter.

    Raises
    ------
    ParameterError
        If the shapes do not fit, or ``prior`` lacks a class or has a share that is none.
    """
    wanted = dict(recipe.prior_true)
    if prior is not None:
        wanted = dict(zip(class_names(list(prior)), prior.values(), strict=True))
        missing = [name for name in names if name not in wanted]
        bad = [k for k, share in wanted.items() if not (np.isfinite(share) and share >= 0)]
        if missing or bad or not sum(wanted.values()):
            what = f"has no share of {missing[0]!r}" if missing else "has a share that is none"
            raise ParameterError(
                f"prior {what}; give a number of 0 or more for each of: {', '.join(map(repr, names))}."
            )
    if not recipe.prior_train:  # written before recipes knew theirs
        return rescaled(probabilities, names, np.ones(len(names)))
    return rescaled(probabilities, names, prior_factors(names, wanted, recipe.prior_train))
