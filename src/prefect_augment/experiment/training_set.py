"""The training set of a strategy: real records with what the strategy adds to them, or draws of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefect_augment.augmentation.base import make_records
from prefect_augment.augmentation.smote import random_oversample_indices
from prefect_augment.experiment.evaluator import Synthetic
from prefect_augment.params import Classic
from prefect_augment.plan.strategies import Wanted, wanted_records
from prefect_augment.schema.base import BalancePlan, Strategy
from prefect_augment.synthesis.soft_labels import share_sums

__all__ = ["DrawnSet", "TrainingSet", "build_training_set", "drawn_training_set"]


@dataclass(frozen=True)
class TrainingSet:
    """What an estimator is fitted on: matrix, stratum codes and weights of mean 1."""

    X: NDArray[np.float64]
    strata: NDArray[np.int64]
    weights: NDArray[np.float64]


def build_training_set(
    strategy: Strategy,
    X: NDArray[np.float64],
    strata: NDArray[np.int64],
    *,
    names: tuple[str, ...],
    plan: BalancePlan,
    synthetic: Synthetic | None,
    is_category: NDArray[np.bool_],
    n_levels: NDArray[np.int64],
    classic: Classic,
    seed: int,
) -> TrainingSet:
    """Return the training set of one strategy.

    Parameters
    ----------
    X : ndarray of float64, shape (n, n_columns)
        Real records in matrix form.
    strata : ndarray of int64, shape (n,)
        Their stratum, as an index into ``names``.
    synthetic : Synthetic, optional
        Records that passed the gate; needed by model strategies.
    seed : int
        For copies and SMOTE records.

    Returns
    -------
    TrainingSet
        Real records first, then synthetic, SMOTE records and copies.
    """
    wanted = _wanted_of_part(strategy, strata, names, plan, synthetic)
    parts_X, parts_s, shares = [X], [strata], np.ones(0)
    if strategy.has_model and synthetic is not None:
        rows = _first_of_each(
            synthetic.strata, {names.index(k): w.synthetic for k, w in wanted.items()}
        )
        parts_X.append(synthetic.X[rows])
        parts_s.append(synthetic.strata[rows])
        shares = np.ones(len(rows)) if synthetic.shares is None else synthetic.shares[rows]
        shares = strategy.synthetic_weight * shares
    classic_counts = {names.index(k): w.classic for k, w in wanted.items() if w.classic}
    if classic_counts:
        made = make_records(
            X,
            strata,
            classic_counts,
            classic=classic,
            is_category=is_category,
            n_levels=n_levels,
            seed=seed,
        )
        parts_X.append(made.X)
        parts_s.append(made.strata)
    copies = random_oversample_indices(
        strata, {names.index(k): w.copies for k, w in wanted.items()}, seed
    )
    parts_X.append(X[copies])
    parts_s.append(strata[copies])
    all_strata = np.concatenate(parts_s)
    # A stratum that is not in this part has no weight to give, and no records to give it to.
    weight = np.array([wanted[name].weight if name in wanted else 1.0 for name in names])
    weights = weight[all_strata]
    weights[len(X) : len(X) + len(shares)] *= shares
    return TrainingSet(np.concatenate(parts_X), all_strata, weights / weights.mean())


@dataclass(frozen=True)
class DrawnSet:
    """What an estimator draws from: images, stratum codes, draw weights of mean 1, which are synthetic."""

    X: NDArray[np.uint8]
    strata: NDArray[np.int64]
    weights: NDArray[np.float64]
    synthetic: NDArray[np.bool_]


def drawn_training_set(
    strategy: Strategy,
    X: NDArray[np.uint8],
    strata: NDArray[np.int64],
    *,
    names: tuple[str, ...],
    plan: BalancePlan,
    synthetic: Synthetic | None,
) -> DrawnSet:
    """Return the training set of one strategy whose estimator draws records by weight.

    Parameters are those of :func:`build_training_set`. No copy is made: what is drawn twice as
    often has twice the weight.
    """
    wanted = _wanted_of_part(strategy, strata, names, plan, synthetic)
    n_real = len(strata)
    if strategy.has_model and synthetic is not None:
        rows = _first_of_each(
            synthetic.strata, {names.index(k): w.synthetic for k, w in wanted.items()}
        )
        X = np.concatenate([X, synthetic.X[rows]])
        strata = np.concatenate([strata, synthetic.strata[rows]])
    weight = np.zeros(len(names))
    for name, w in wanted.items():
        weight[names.index(name)] = w.effective / max(1, w.counted)
    is_synthetic = np.arange(len(strata)) >= n_real
    weights = weight[strata] * np.where(is_synthetic, strategy.synthetic_weight, 1.0)
    return DrawnSet(X, strata, weights / weights.mean(), is_synthetic)


def _wanted_of_part(
    strategy: Strategy,
    strata: NDArray[np.int64],
    names: tuple[str, ...],
    plan: BalancePlan,
    synthetic: Synthetic | None,
) -> dict[str, Wanted]:
    """What the strategy wants of a part with these real records, and these synthetic ones at hand."""
    counts = _counts(strata, names)
    available = shares = None
    if synthetic is not None:
        available = _counts(synthetic.strata, names)
        if synthetic.shares is not None:
            shares = share_sums(synthetic.strata, synthetic.shares, names)
    return wanted_records(strategy, counts, plan, available=available, shares=shares)


def _counts(strata: NDArray[np.int64], names: tuple[str, ...]) -> dict[str, int]:
    sizes = np.bincount(strata, minlength=len(names))
    return {name: int(n) for name, n in zip(names, sizes, strict=True)}


def _first_of_each(strata: NDArray[np.int64], counts: Mapping[int, int]) -> NDArray[np.int64]:
    """Indices of the first ``counts[k]`` records of each stratum k."""
    rows = [np.flatnonzero(strata == k)[:n] for k, n in sorted(counts.items())]
    return np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
