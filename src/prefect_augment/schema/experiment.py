"""Results of one comparison: the experiment, the search on validation records, and diagnostics on the hold-out.

Groups and calibration on the hold-out are stored at :attr:`.Verdict.diagnostics`; the report has them
under the keys of :class:`HoldoutResult`.
"""

from typing import Any, Literal

from pydantic import AliasChoices, Field, model_validator

from prefect_augment.params.keys import step_key
from prefect_augment.params.models import ModelParams
from prefect_augment.params.run import Budget, RunParams
from prefect_augment.schema.base import BalancePlan, DatasetRef, FilterResult, Interval, Result
from prefect_augment.schema.comparison import Strategy

# Records that strategies of a table are compared on, of training and validation together, and as many of the hold-out.
# With more, chance no longer decides, and a comparison takes hours.
MAX_COMPARED = 200_000


class Experiment(Result):
    """The object that the steps of one comparison share."""

    dataset: DatasetRef  # ingested records
    plan: BalancePlan  # amounts per class
    params: RunParams = RunParams()
    candidates: FilterResult | None = None  # filtered synthetic records

    @property
    def max_compared(self) -> int:
        """Most training and validation records that strategies are compared on; 0 for all of them.

        A model's or external images are held against every image, of which any may have been copied.
        """
        if self.dataset.modality == "table":
            return MAX_COMPARED
        return 0 if self.candidates else self.plan.max_compared

    def with_model(self, model: ModelParams) -> "Experiment":
        """Return the experiment with another generative model."""
        return self._with(model=model)

    def with_budget(self, budget: Budget) -> "Experiment":
        """Return the experiment with another budget."""
        return self._with(budget=budget)

    def with_seeds(self, n_seeds: int) -> "Experiment":
        """Return the experiment with another number of seeds."""
        evaluation = self.params.evaluation.model_copy(update={"n_seeds": n_seeds})
        return self._with(evaluation=evaluation)

    def _with(self, **sections: Any) -> "Experiment":
        return self.model_copy(update={"params": self.params.model_copy(update=sections)})

    def key(self, step: str, *inputs: Any, seed: int | None = None) -> str:
        """Return the name of a step's outcome on these records.

        ``step`` is a name of :data:`~prefect_augment.params.keys.STEPS`; ``inputs`` are what it reads besides
        dataset, plan and candidates; ``seed`` is the run's by default.
        """
        read: list[Any] = [self.dataset.key, self.dataset.digest, self.plan.identity]
        read += [self.candidates.key if self.candidates else "", *inputs]
        if self.max_compared and self.dataset.n_records > self.max_compared:
            read.append({"max_compared": self.max_compared})
        seed = self.params.seed if seed is None else seed
        return step_key(step, self.params, inputs=read, seed=seed)


class Trial(Result):
    """One setting of one strategy in one rung."""

    strategy: Strategy
    model: str = ""  # kind of the generative model, of strategies that have one
    score: float  # as StrategyScore.score, on validation records, mean over estimators, folds and seeds
    spread: float | None  # standard deviation over these folds and seeds; None for one
    n_scores: int  # folds times seeds
    seconds: float = 0.0  # 0 with budget.steps, for equal bytes
    kept: bool
    reason: str = ""  # why it was dropped


class Rung(Result):
    """One round of the search, with equal training for all trials."""

    name: str
    # Share of an estimator's full steps.
    step_share: float = Field(validation_alias=AliasChoices("step_share", "effort"))
    n_seeds: int
    trials: tuple[Trial, ...]
    note: str = ""

    @property
    def n_kept(self) -> int:
        """Trials that went on."""
        return sum(trial.kept for trial in self.trials)


class SearchResult(Result):
    """The whole search; key ``search`` of ``report.json``."""

    rungs: tuple[Rung, ...]
    n_settings: int  # most settings tried of a strategy, equal for baselines and models
    skipped: dict[str, str] = Field(default_factory=dict)  # kind of model -> reason

    @property
    def n_trials(self) -> int:
        """Settings tried in the first rung."""
        return len(self.rungs[0].trials) if self.rungs else 0


Shown = Literal["gains", "loses", "not shown", "too few"]


# --- groups -----------------------------------------------------------------------------------


class SliceRow(Result):
    """One class within one group: its recall before and after."""

    label: str
    group: dict[str, str]  # column -> value
    n_holdout: int
    before: Interval | None = None  # None for too few records
    after: Interval | None = None
    difference: Interval | None = None  # simultaneous over all slices
    decision: Shown


class GroupRow(Result):
    """One group over its classes: mean recall before and after."""

    group: dict[str, str]
    n_holdout: int
    n_classes: int  # with enough records in the group
    before: Interval | None = None
    after: Interval | None = None
    difference: Interval | None = None  # simultaneous over all groups
    decision: Shown


class Gap(Result):
    """Highest minus lowest recall over the groups with enough records."""

    label: str  # empty: the mean over the classes
    columns: tuple[str, ...]
    before: Interval
    after: Interval
    change: Interval


class SliceResult(Result):
    """Whether the recipe helps one group and hurts another."""

    by: tuple[str, ...]  # balance.by
    before: str  # the strategy compared with
    after: str  # the published strategy, or the chosen one if that is as is
    min_records: int  # hold-out records that a slice needs
    n_too_few: int  # slices with fewer
    groups: tuple[GroupRow, ...]
    slices: tuple[SliceRow, ...]
    gaps: tuple[Gap, ...]
    flags: tuple[str, ...]  # sentences: one group gains and another loses, or the gap widens


# --- calibration ------------------------------------------------------------------------------


class CalibrationScore(Result):
    """How far probabilities are from frequencies, in [0, 1]; lower is better."""

    brier: Interval  # half the mean squared distance over all classes, as in EstimatorScore
    ece: Interval  # of the most probable class; no evidence if it contains 0
    class_ece: Interval  # mean over CalibrationResult.looked_at
    expected: dict[str, float]  # class -> sum of its probabilities over its number of records


class StrategyCalibration(Result):
    """One estimator of one strategy, as predicted and with its prior corrected."""

    as_predicted: CalibrationScore
    corrected: CalibrationScore | None = None  # None if the training prior is the true one
    change: Interval | None = None  # Brier score, corrected minus as predicted


class CalibrationResult(Result):
    """Calibration of the compared strategies on the hold-out."""

    n_records: int
    n_bins: int
    # The rarest compared classes, whose probabilities are measured singly.
    looked_at: tuple[str, ...]
    strategies: dict[str, dict[str, StrategyCalibration]]  # strategy -> estimator
    prior_true: dict[str, float]  # class -> share of the real training records
    prior_train: dict[str, dict[str, float]]  # strategy -> class -> share in training
    published: str
    sentence: str


# --- all of it --------------------------------------------------------------------------------


def without_removed(stored: Any) -> Any:
    """Ignore corrupted records' results, which versions before 0.3 stored."""
    if isinstance(stored, dict):
        return {name: value for name, value in stored.items() if name != "robustness"}
    return stored


class HoldoutResult(Result):
    """Further measurements of the verdict's reading of the hold-out; None if not requested."""

    slices: SliceResult | None = None
    calibration: CalibrationResult | None = None

    _ignore_removed = model_validator(mode="before")(without_removed)
