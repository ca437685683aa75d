"""The evaluator: what judging needs to know of a kind of data.

Scoring, gating and the verdict are written once, over this protocol. Tables bring a
:class:`~prefect_augment.experiment.table_evaluator.TableEvaluator`, images an
:class:`~prefect_augment.experiment.image_evaluator.ImageEvaluator`, which is imported on use: it needs torch.

Which records are scored, and what the gate is asked, the same for every kind of data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import (
    FilterOutcome,
    FilterRequest,
    Labelled,
    Limits,
    Records,
    by_columns,
)
from prefect_augment.encoding.strata import table_strata
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.neighbours import Space
from prefect_augment.params import Quality
from prefect_augment.schema.base import BalancePlan, DatasetInfo, Strategy
from prefect_augment.schema.experiment import Experiment
from prefect_augment.shards.staged import read_shards
from prefect_augment.storage.store import Store
from prefect_augment.synthesis.soft_labels import SHARE

__all__ = [
    "Evaluator",
    "Question",
    "Synthetic",
    "best_first",
    "filter_request",
    "groups_of",
    "kept_synthetic",
    "rarest_in_validation",
    "score_folds",
]

Int = NDArray[np.int64]


class Synthetic(NamedTuple):
    """Synthetic records for strategies.

    Attributes
    ----------
    X : ndarray, shape (n, ...)
        Best first within a stratum.
    strata : ndarray of int64, shape (n,)
    shares : ndarray of float64, shape (n,), optional
        What each counts, where a record may stand for several classes; else each counts 1.
    """

    X: NDArray[Any]
    strata: Int
    shares: NDArray[np.float64] | None = None


class Evaluator(Protocol):
    """Records of one kind, and how they are read, learnt and judged."""

    @property
    def experiment(self) -> Experiment:
        """Records, plan and parameters of the comparison."""
        ...

    @property
    def info(self) -> DatasetInfo:
        """What is known of the staged records."""
        ...

    @property
    def plan(self) -> BalancePlan:
        """Amounts per class."""
        ...

    @property
    def records(self) -> Records:
        """Training and validation, sorted by key."""
        ...

    @property
    def estimators(self) -> tuple[str, ...]:
        """Names of the classifiers that judge a strategy."""
        ...

    def read(self, table: pa.Table) -> Records:
        """Staged records of another part."""
        ...

    def encode(self, table: pa.Table) -> NDArray[Any]:
        """The array form of records alone."""
        ...

    def folds(self, *, seed: int, has_candidates: bool) -> Int:
        """Fold of each record whose predictions are scored; -1 for records that only train.

        ``has_candidates`` says that a model's candidates are compared in this run.
        """
        ...

    def is_fixed(self, strategy: Strategy) -> bool:
        """Whether another seed trains the same estimators on the same records again."""
        ...

    def synthetic(self, rows: Int, *, given: Synthetic | None, seed: int) -> Synthetic:
        """Synthetic records for a strategy that trains on ``rows``, best first within a stratum.

        ``given`` are those that the run's own model drew and the gate kept.
        """
        ...

    def predictions(
        self,
        strategy: Strategy,
        rows: Int,
        X: NDArray[Any],
        *,
        synthetic: Synthetic | None,
        seed: int,
        effort: float = 1.0,
    ) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Train each estimator on the strategy made of ``rows``; yield its name and probabilities of ``X``.

        ``effort`` is the share of its steps that an estimator takes, where it is trained in steps.
        """
        ...

    def plain_space(self, X: NDArray[Any]) -> Space:
        """Where distances are measured that may not know which records trained anything."""
        ...

    def filter(self, question: Question) -> FilterOutcome:
        """Hold candidates against real records."""
        ...


def kept_synthetic(
    evaluator: Evaluator, store: Store, *, with_dropped: bool = False
) -> Synthetic | None:
    """Return the candidates that passed the gate as arrays: best first within a stratum.

    Records that another tool made are judged as they are, ``with_dropped``: with what our gate
    would drop.
    """
    report = evaluator.experiment.candidates
    if report is None:
        return None
    shards = report.kept + (report.dropped if with_dropped else ())
    if not shards:
        return None
    # What is kept has a rank and what is dropped a reason; only the source's columns are common.
    info = evaluator.info
    soft = [SHARE] if report.shares and not with_dropped else []
    columns = [*dict.fromkeys([*(c.name for c in info.columns), info.label, *soft])]
    table = read_shards(store, shards, columns)
    index = {name: i for i, name in enumerate(evaluator.records.strata_names)}
    strata = table_strata(table, label=info.label, by=by_columns(evaluator.plan))
    return Synthetic(
        evaluator.encode(table),
        np.array([index[s] for s in strata], dtype=np.int64),
        table[SHARE].to_numpy() if soft else None,
    )


def rarest_in_validation(records: Records) -> int:
    """Return how many validation records the rarest judged class has; 0 where none is judged."""
    compared = np.flatnonzero(records.compared)
    return min((int(np.sum(records.is_validation & (records.y == k))) for k in compared), default=0)


def score_folds(records: Records, *, n_folds: int, seed: int) -> Int:
    """Return the fold of each record; with one fold, validation's is 0 and fit's -1: it only trains."""
    if n_folds == 1:
        return np.where(records.is_validation, 0, -1)
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
    training, validation : ndarray of int64
        Rows of the evaluator's records: those that the candidates were made from, and others.
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

    training: Int
    validation: Int
    candidates: Labelled
    ordinals: Int
    seed: int
    share: float = 1.0
    metrics: bool = False


def filter_request(
    records: Records, plan: BalancePlan, quality: Quality, question: Question
) -> FilterRequest:
    """Return what the filter is asked, beside the records."""
    return FilterRequest(
        strata=records.strata_names,
        stratum_class=records.class_of_stratum(plan),
        wanted=np.array(
            [round(c.n_synthetic * question.share) for c in plan.classes], dtype=np.int64
        ),
        ordinals=question.ordinals,
        training_keys=records.keys[question.training],
        training_groups=groups_of(records, question.training),
        validation_groups=groups_of(records, question.validation),
        purpose="soft" if plan.soft_labels else quality.purpose,
        near_copy_quantile=quality.near_copy_quantile,
        fidelity_quantile=quality.fidelity_quantile,
        seed=question.seed,
        metrics=question.metrics,
        limits=Limits(
            false_alarm=quality.false_alarm,
            max_fault_share=quality.max_fault_share,
            min_coverage=quality.min_coverage,
        ),
        # Of the whole run's candidates alone: a fold has too few real records to tell.
        drop_unsafe=question.metrics and quality.on_unsafe_class == "drop",
    )


def best_first(
    outcome: FilterOutcome,
    strata: NDArray[np.int64],
    ordinals: NDArray[np.int64],
    quality: Quality,
) -> NDArray[np.int64]:
    """Return the kept candidates by stratum and rank: a smaller amount is a prefix of a larger one."""
    # With soft labels all scores are 0, and the ordinals decide.
    first = -outcome.score if quality.purpose == "utility" else np.zeros(len(ordinals))
    order = np.lexsort((ordinals, first, strata))
    return order[outcome.kept[order]]
