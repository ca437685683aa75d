"""Which records are scored, and what the gate is asked, the same for every kind of data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefect_augment.datatypes import BalancePlan
from prefect_augment.evaluation.candidates import Asked, GateOutcome, Labelled
from prefect_augment.evaluation.class_gates import Limits
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.params import Gate
from prefect_augment.stages.records import Records

__all__ = [
    "Question",
    "best_first",
    "gate_wishes",
    "groups_of",
    "rarest_in_val",
    "score_folds",
]

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


@dataclass(frozen=True)
class Question:
    """Candidates to hold against real records.

    Attributes
    ----------
    fit, val : ndarray of int64
        Rows of the workbench's records: those that the candidates were made from, and others.
    candidates : Labelled
        Encoded, with their strata.
    ordinals : ndarray of int64, shape (n_candidates,)
        Each one's place among those of its stratum.
    seed : int
        Of the classifiers' folds.
    share : float
        Scales the plan's wanted records to the part that is used.
    metrics : bool
        Measure what is only reported, too.
    """

    fit: Int
    val: Int
    candidates: Labelled
    ordinals: Int
    seed: int
    share: float = 1.0
    metrics: bool = False


def gate_wishes(records: Records, plan: BalancePlan, gate: Gate, question: Question) -> Asked:
    """Return what the gate is asked, beside the records."""
    return Asked(
        strata=records.strata_names,
        stratum_class=records.class_of_stratum(plan),
        wanted=np.array(
            [round(c.n_synthetic * question.share) for c in plan.classes], dtype=np.int64
        ),
        ordinals=question.ordinals,
        fit_keys=records.keys[question.fit],
        fit_groups=groups_of(records, question.fit),
        val_groups=groups_of(records, question.val),
        purpose="soft" if plan.soft_labels else gate.purpose,
        near_copy_quantile=gate.near_copy_quantile,
        fidelity_quantile=gate.fidelity_quantile,
        seed=question.seed,
        metrics=question.metrics,
        limits=Limits(
            false_alarm=gate.false_alarm,
            max_fault_share=gate.max_fault_share,
            min_coverage=gate.min_coverage,
        ),
        # Of the whole run's candidates alone: a fold has too few real records to tell.
        drop_unsafe=question.metrics and gate.on_unsafe_class == "drop",
    )


def best_first(
    outcome: GateOutcome, strata: NDArray[np.int64], ordinals: NDArray[np.int64], gate: Gate
) -> NDArray[np.int64]:
    """Return the kept candidates by stratum and rank: a smaller amount is a prefix of a larger one."""
    # With soft labels all scores are 0, and the ordinals decide.
    first = -outcome.score if gate.purpose == "utility" else np.zeros(len(ordinals))
    order = np.lexsort((ordinals, first, strata))
    return order[outcome.kept[order]]
