"""Which records are scored, and what the gate is asked, the same for every kind of data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prefect_augment.datatypes import BalancePlan
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.gates import Asked, GateOutcome
from prefect_augment.params import Gate
from prefect_augment.stages.records import Records

__all__ = ["best_first", "gate_wishes", "groups_of", "rarest_in_val", "score_folds"]

Int = NDArray[np.int64]


def rarest_in_val(records: Records) -> int:
    """Return how many val records the rarest judged class has; 0 where none is judged."""
    judged = np.flatnonzero(records.judged)
    return min((int(np.sum(records.is_val & (records.y == k))) for k in judged), default=0)


def score_folds(records: Records, *, n_folds: int, seed: int) -> Int:
    """Return the fold of each record; with one fold, val's is 0 and fit's -1: it only trains."""
    if n_folds == 1:
        return np.where(records.is_val, 0, -1)
    return stratified_folds(
        records.strata, groups=records.groups, n_folds=n_folds, seed=seed, keys=records.keys
    )


def groups_of(records: Records, rows: Int) -> Int | None:
    """Return the groups of some records, where there are groups."""
    return None if records.groups is None else records.groups[rows]


def gate_wishes(
    records: Records,
    plan: BalancePlan,
    gate: Gate,
    fit: Int,
    ordinals: Int,
    *,
    seed: int,
    share: float,
    metrics: bool,
) -> Asked:
    """Return what the gate is asked of candidates made from the records ``fit``."""
    return Asked(
        strata=records.strata_names,
        stratum_class=records.class_of_stratum(plan),
        wanted=np.array([round(c.n_synthetic * share) for c in plan.classes], dtype=np.int64),
        ordinals=ordinals,
        fit_keys=records.keys[fit],
        fit_groups=groups_of(records, fit),
        purpose=gate.purpose,
        near_copy_quantile=gate.near_copy_quantile,
        fidelity_quantile=gate.fidelity_quantile,
        seed=seed,
        metrics=metrics,
    )


def best_first(
    outcome: GateOutcome, strata: NDArray[np.int64], ordinals: NDArray[np.int64], gate: Gate
) -> NDArray[np.int64]:
    """Return the kept candidates by stratum and rank: a smaller amount is a prefix of a larger one."""
    first = -outcome.score if gate.purpose == "utility" else np.zeros(len(ordinals))
    order = np.lexsort((ordinals, first, strata))
    return order[outcome.kept[order]]
