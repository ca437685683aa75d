"""Facts of the search on validation records: what was tried in which rung, how it scored, and why it was dropped.

Facts: what the one reading of the hold-out says beside the verdict.

Robustness, groups and calibration of the strategies that met on the hold-out. They travel by the path of
their receipt, :attr:`.Verdict.diagnostics`; the report has them under the keys of :class:`HoldoutResult`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from prefect_augment.params.keys import step_key
from prefect_augment.params.models import ModelParams
from prefect_augment.params.run import Budget, RunParams
from prefect_augment.schema.base import (
    BalancePlan,
    DatasetRef,
    Difference,
    FilterResult,
    Interval,
    Result,
    Strategy,
)

__all__ = [
    "CalibrationResult",
    "CalibrationScore",
    "ConditionRow",
    "Experiment",
    "Gap",
    "GroupRow",
    "HoldoutResult",
    "RobustnessResult",
    "Rung",
    "SearchResult",
    "SliceResult",
    "SliceRow",
    "StrategyCalibration",
    "Trial",
]


class Experiment(Result):
    """What crosses the steps of one comparison: records, plan, parameters, and the candidates once there are some.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records.
    plan : BalancePlan
        Amounts per class.
    params : RunParams
        What was requested.
    candidates : FilterResult, optional
        Synthetic records that the filter has looked at.
    """

    dataset: DatasetRef
    plan: BalancePlan
    params: RunParams = RunParams()
    candidates: FilterResult | None = None

    def with_model(self, model: ModelParams) -> Experiment:
        """Return the experiment with another generative model."""
        return self._with(model=model)

    def with_budget(self, budget: Budget) -> Experiment:
        """Return the experiment with another budget."""
        return self._with(budget=budget)

    def with_seeds(self, n_seeds: int) -> Experiment:
        """Return the experiment with another number of seeds."""
        evaluation = self.params.evaluation.model_copy(update={"n_seeds": n_seeds})
        return self._with(evaluation=evaluation)

    def _with(self, **sections: Any) -> Experiment:
        return self.model_copy(update={"params": self.params.model_copy(update=sections)})

    def key(self, step: str, *inputs: Any, seed: int | None = None) -> str:
        """Return the name of a step's outcome on these records.

        Parameters
        ----------
        step : str
            A name of :data:`~prefect_augment.params.keys.STEPS`, which says what parameters count.
        *inputs
            What the step reads beside dataset, plan and candidates.
        seed : int, optional
            The run's where not given.
        """
        read = [self.dataset.key, self.dataset.digest, self.plan.identity]
        read += [self.candidates.key if self.candidates else "", *inputs]
        return step_key(
            step, self.params, inputs=read, seed=self.params.seed if seed is None else seed
        )


class Trial(Result):
    """One setting of one strategy in one rung."""

    strategy: Strategy
    model: str = ""  # kind of the generative model, of strategies that have one
    score: float  # balanced accuracy on validation records, mean over estimators, folds and seeds
    spread: float | None  # standard deviation over these folds and seeds; None where there is one
    n_scores: int  # folds times seeds
    seconds: float = 0.0  # 0 where budget.steps asks for the same bytes every time
    kept: bool
    reason: str = ""  # why it was dropped


class Rung(Result):
    """One round of the search: everything in it was trained alike."""

    name: str
    effort: float  # share of the steps of an estimator that judges in full
    n_seeds: int
    trials: tuple[Trial, ...]
    note: str = ""

    @property
    def n_kept(self) -> int:
        """Trials that went on."""
        return sum(trial.kept for trial in self.trials)


class SearchResult(Result):
    """The search as a whole; key ``search`` of ``report.json``."""

    rungs: tuple[Rung, ...]
    n_settings: int  # at most tried of a strategy: the same for baselines and models
    skipped: dict[str, str] = Field(default_factory=dict)  # kind of model -> why it was not tried

    @property
    def n_trials(self) -> int:
        """Settings that were tried in the first rung."""
        return len(self.rungs[0].trials) if self.rungs else 0


Shown = Literal["gains", "loses", "not shown", "too few"]


# --- robustness -------------------------------------------------------------------------------


class ConditionRow(Result):
    """Balanced accuracy on the hold-out under one condition, in [0, 1]."""

    name: (
        str  # noise, blur …; "clean" for the records as they are, "mean" for the mean of the others
    )
    strength: str  # what was done and how much of it, in words
    balanced_accuracy: dict[str, Interval]  # by strategy
    differences: tuple[Difference, ...]  # the pairs of the verdict, under this condition
    # How much larger each difference is than on clean records; empty for these.
    changes: tuple[Difference, ...] = ()


class RobustnessResult(Result):
    """The compared strategies on corrupted copies of hold-out records; trained on no such copies."""

    n_records: int  # hold-out records that were corrupted, each in every way
    seed: int
    clean: ConditionRow  # the same records as they are
    conditions: tuple[ConditionRow, ...]
    mean: ConditionRow
    sentence: str


# --- groups -----------------------------------------------------------------------------------


class SliceRow(Result):
    """One class within one group: its recall before and after."""

    label: str
    group: dict[str, str]  # column -> value
    n_holdout: int
    before: Interval | None = None  # None where there are too few records
    after: Interval | None = None
    difference: Interval | None = None  # holds together with those of all other slices
    decision: Shown


class GroupRow(Result):
    """One group over its classes: the mean of their recalls, before and after."""

    group: dict[str, str]
    n_holdout: int
    n_classes: int  # with enough records in the group
    before: Interval | None = None
    after: Interval | None = None
    difference: Interval | None = None  # holds together with those of all other groups
    decision: Shown


class Gap(Result):
    """Highest less lowest recall over the groups that have enough records."""

    label: str  # empty: the mean over the classes
    columns: tuple[str, ...]
    before: Interval
    after: Interval
    change: Interval


class SliceResult(Result):
    """Whether the recipe helps one group and hurts another."""

    by: tuple[str, ...]  # balance.by
    before: str  # the strategy that is compared with
    after: str  # the strategy whose recipe is published, or the chosen one where that is as is
    min_records: int  # with fewer hold-out records nothing is said of a slice
    n_too_few: int  # slices with fewer
    groups: tuple[GroupRow, ...]
    slices: tuple[SliceRow, ...]
    gaps: tuple[Gap, ...]
    flags: tuple[
        str, ...
    ]  # where one group gains and another loses, or the gap widens; in sentences


# --- calibration ------------------------------------------------------------------------------


class CalibrationScore(Result):
    """How far probabilities are from what happens, in [0, 1]; lower is better."""

    brier: Interval  # half the mean squared distance, as LearnerScore has it, over all classes
    ece: Interval  # of the most probable class; 0 within it: nothing is shown
    class_ece: Interval  # mean over CalibrationFacts.looked_at
    expected: dict[
        str, float
    ]  # class -> records that the probabilities sum up to, per record there


class StrategyCalibration(Result):
    """One estimator of one strategy, as it predicts and with its prior corrected."""

    as_predicted: CalibrationScore
    corrected: CalibrationScore | None = None  # None where the training prior is the true one
    change: Interval | None = None  # Brier score, corrected less as predicted


class CalibrationResult(Result):
    """Calibration of the compared strategies on the hold-out."""

    n_records: int
    n_bins: int
    looked_at: tuple[
        str, ...
    ]  # the rarest judged classes, whose probabilities are looked at one by one
    strategies: dict[str, dict[str, StrategyCalibration]]  # strategy -> estimator
    prior_true: dict[str, float]  # class -> share of the real training records
    prior_train: dict[str, dict[str, float]]  # strategy -> class -> share that it trains with
    published: str
    sentence: str


# --- all of it --------------------------------------------------------------------------------


class HoldoutResult(Result):
    """What the verdict's reading of the hold-out says further; None where it was not asked."""

    robustness: RobustnessResult | None = None
    slices: SliceResult | None = None
    calibration: CalibrationResult | None = None
