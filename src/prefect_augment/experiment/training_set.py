"""The training set of a strategy: real records with those that the strategy adds, or draw weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prefect_augment.array_types import Bool, Float, Images, Int
from prefect_augment.augmentation.base import make_records
from prefect_augment.augmentation.smote import StratifiedTable, random_oversample_indices
from prefect_augment.encoding.arrays import Matrix, Records
from prefect_augment.experiment.evaluator import Synthetic
from prefect_augment.params import Classic
from prefect_augment.plan.strategies import Wanted, wanted_records
from prefect_augment.schema import BalancePlan, Strategy
from prefect_augment.synthesis.soft_labels import Expansion, share_sums


@dataclass(frozen=True)
class TrainingSet:
    """Matrix, stratum codes and weights of mean 1 that an estimator is fitted on."""

    X: Float
    strata: Int
    weights: Float


def build_training_set(
    strategy: Strategy,
    data: Matrix,
    rows: Int,
    *,
    plan: BalancePlan,
    synthetic: Synthetic | None,
    labels: Expansion | None = None,
    real_weights: Float | None = None,
    classic: Classic,
    seed: int,
) -> TrainingSet:
    """Training set of one strategy: real records (``rows``) first, then synthetic, SMOTE records and copies.

    Model strategies need the ``synthetic`` records that passed the filter; with soft ``labels`` a real
    record has a row for each class that it may belong to. ``real_weights`` (n_real,) are the audit's.
    """
    X, strata, names = data.X[rows], data.strata[rows], data.strata_names
    wanted = wanted_with(strategy, stratum_counts(strata, names), plan, synthetic, names)
    if labels is not None:
        counted = np.bincount(labels.strata, weights=labels.shares, minlength=len(names))
        effective = np.array([wanted[k].effective if k in wanted else 0.0 for k in names])
        weights = labels.shares * (effective / np.maximum(counted, 1e-9))[labels.strata]
        return TrainingSet(X[labels.rows], labels.strata, weights / weights.mean())
    by_code = {names.index(name): w for name, w in wanted.items()}
    parts_X, parts_s, shares = [X], [strata], np.ones(0)
    if strategy.has_model and synthetic is not None:
        drawn = _first_of_each(synthetic.strata, {k: w.synthetic for k, w in by_code.items()})
        parts_X.append(synthetic.X[drawn])
        parts_s.append(synthetic.strata[drawn])
        shares = np.ones(len(drawn)) if synthetic.shares is None else synthetic.shares[drawn]
        shares = strategy.synthetic_weight * shares
    if classic_counts := {k: w.classic for k, w in by_code.items() if w.classic}:
        table = StratifiedTable(X, strata, data.is_category, data.n_levels)
        classic_records = make_records(table, classic_counts, classic=classic, seed=seed)
        parts_X.append(classic_records.X)
        parts_s.append(classic_records.strata)
    copies = random_oversample_indices(strata, {k: w.copies for k, w in by_code.items()}, seed)
    parts_X.append(X[copies])
    parts_s.append(strata[copies])
    all_strata = np.concatenate(parts_s)
    # A stratum that is not in this part has no weight to give, and no records to give it to.
    weight = np.array([wanted[name].weight if name in wanted else 1.0 for name in names])
    weights = weight[all_strata]
    weights[len(X) : len(X) + len(shares)] *= shares
    if real_weights is not None:
        weights[: len(X)] *= real_weights
    return TrainingSet(np.concatenate(parts_X), all_strata, weights / weights.mean())


@dataclass(frozen=True)
class DrawnSet:
    """Images, the row of each record in them, stratum codes, draw weights of mean 1 and a mask of synthetic records."""

    X: Images
    rows: Int
    strata: Int
    weights: Float
    synthetic: Bool


def drawn_training_set(
    strategy: Strategy, data: Records, rows: Int, *, plan: BalancePlan, synthetic: Synthetic | None
) -> DrawnSet:
    """Training set of one strategy whose estimator draws records by weight, instead of copying them.

    Without synthetic records no image is copied.
    """
    X, strata, names = data.X, data.strata[rows], data.strata_names
    wanted = wanted_with(strategy, stratum_counts(strata, names), plan, synthetic, names)
    by_code, n_real = {names.index(name): w for name, w in wanted.items()}, len(strata)
    if strategy.has_model and synthetic is not None:
        drawn = _first_of_each(synthetic.strata, {k: w.synthetic for k, w in by_code.items()})
        rows = np.concatenate([rows, len(X) + np.arange(len(drawn))])
        X = np.concatenate([X, synthetic.X[drawn]])
        strata = np.concatenate([strata, synthetic.strata[drawn]])
    weight = np.zeros(len(names))
    for k, amounts in by_code.items():
        weight[k] = amounts.effective / max(1, amounts.counted)
    is_synthetic = np.arange(len(strata)) >= n_real
    weights = weight[strata] * np.where(is_synthetic, strategy.synthetic_weight, 1.0)
    return DrawnSet(X, rows, strata, weights / weights.mean(), is_synthetic)


def wanted_with(
    strategy: Strategy,
    counts: Mapping[str, int],
    plan: BalancePlan,
    synthetic: Synthetic | None,
    names: tuple[str, ...],
) -> dict[str, Wanted]:
    """Records that the strategy wants beside these real counts, from these synthetic records."""
    available = shares = None
    if synthetic is not None:
        available = stratum_counts(synthetic.strata, names)
        if synthetic.shares is not None:
            shares = share_sums(synthetic.strata, synthetic.shares, names)
    return wanted_records(strategy, counts, plan, available=available, shares=shares)


def stratum_counts(strata: Int, names: tuple[str, ...]) -> dict[str, int]:
    """Records of each stratum, by name."""
    counts = np.bincount(strata, minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))


def _first_of_each(strata: Int, counts: Mapping[int, int]) -> Int:
    """Indices of the first ``counts[k]`` records of each stratum k."""
    rows = [np.flatnonzero(strata == k)[:n] for k, n in sorted(counts.items())]
    return np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
