"""What the clock allows of the search on validation records: how many strategies in full, and how many seeds.

Where ``budget.steps`` is set, the clock has no say. Else it is read off receipts, which
tell what pilots and scores took, and never looked at: a rerun decides alike.

Which generative models ``model: auto`` tries, and which it passes over and why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate

from prefect_augment.encoding.arrays import N_FOLDS, SMALL_VALIDATION
from prefect_augment.params import AutoModel, Budget, FlowModel, ModelParams, TreesModel
from prefect_augment.plan.search_space import N_KEPT, PILOT_EFFORT, PILOT_FOLDS
from prefect_augment.registry import model_kinds, resolve_model
from prefect_augment.schema.base import BalancePlan, DatasetInfo, Strategy, StrategyScore

__all__ = [
    "COMPARISON_SHARE",
    "PILOT_SHARE",
    "Schedule",
    "model_of",
    "pilot_budget",
    "suitable",
    "training_budget",
]

# Of budget.minutes: what judging may take, its hold-out included. A network is trained in most of the rest; where
# there is none, the rest is for ingest, the report and for what takes longer than its pilot said.
COMPARISON_SHARE, COMPARISON_SHARE_ALONE = 0.5, 0.7
# On the hold-out: the chosen strategy, the best baseline and as is.
HOLDOUT_STRATEGIES = 3


@dataclass(frozen=True)
class Schedule:
    """The judge's part of a budget.

    Attributes
    ----------
    seconds : float
        That judging may take; infinite where the clock has no say.
    workers : int
        Strategies that are scored at the same time.
    spent : float
        Seconds of what was scored before, pilots of generative models.
    """

    seconds: float = math.inf
    workers: int = 1
    spent: float = 0.0

    @classmethod
    def of(
        cls, budget: Budget, *, workers: int, trains_network: bool, spent: float = 0.0
    ) -> Schedule:
        """Return the clock of a run.

        Parameters
        ----------
        budget : Budget
        workers : int
        trains_network : bool
            Whether a generative model takes its part of the minutes.
        spent : float
            See the class.
        """
        if budget.steps:
            return cls(workers=workers)
        share = COMPARISON_SHARE if trains_network else COMPARISON_SHARE_ALONE
        return cls(60 * share * budget.minutes, workers, spent)

    @property
    def has_a_say(self) -> bool:
        """Whether minutes count."""
        return math.isfinite(self.seconds)

    def n_kept(self, pilots: Sequence[StrategyScore], best: Sequence[StrategyScore]) -> int:
        """Return how many strategies can be scored in full beside the hold-out's, at least two.

        Parameters
        ----------
        pilots : sequence of StrategyScore
            All of them, with what they took.
        best : sequence of StrategyScore
            Those of each strategy's best setting, the best strategy first.

        Returns
        -------
        int
            :data:`N_KEPT` where the clock has no say; with time for more, more.
        """
        if not self.has_a_say:
            return N_KEPT
        n_folds, more = (N_FOLDS, N_FOLDS / PILOT_FOLDS) if pilots[0].folds else (1, 1.0)
        full = [more / PILOT_EFFORT * score.seconds for score in best]
        left = self._left(len(best), pilots) - _holdout(full, n_folds)
        return max(2, sum(taken <= left for taken in accumulate(full)))

    def n_seeds(
        self,
        pilots: Sequence[StrategyScore],
        full: Sequence[StrategyScore],
        finalists: Sequence[Strategy],
        *,
        most: int,
    ) -> int:
        """Return with how many seeds the finalists can be scored and compared on the hold-out, at least one.

        Parameters
        ----------
        pilots, full : sequence of StrategyScore
            What was scored so far, in full with one seed.
        finalists : sequence of Strategy
            What further seeds are for.
        most : int
            That were asked for.
        """
        if not self.has_a_say:
            return most
        seconds = [score.seconds for score in full if score.strategy in finalists]
        holdout = _holdout(seconds, len(full[0].folds) or 1)
        left = self._left(len(seconds), (*pilots, *full)) - holdout
        of_seed = math.fsum(seconds) + holdout
        return 1 + max(0, min(most - 1, int(left / of_seed))) if of_seed > 0 else most

    def _left(self, n: int, scored: Sequence[StrategyScore]) -> float:
        """Return what so many strategies may take together after what was scored: their seconds go by side by side."""
        taken = self.spent + math.fsum(score.seconds for score in scored)
        return self.seconds * min(self.workers, n) - taken


def _holdout(seconds: Sequence[float], n_folds: int) -> float:
    """Return what strategies take that are trained once, on the records of all folds."""
    of_fold = math.fsum(seconds) / len(seconds) / n_folds
    return HOLDOUT_STRATEGIES * of_fold * n_folds / max(1, n_folds - 1)


# Of a model's training, what its pilot gets.
PILOT_SHARE = 0.25
_BY_NAME = "tried only where it is asked for by name: it was ahead of the others on no set that it was measured on"
_TABLES: dict[str, ModelParams] = {"trees": TreesModel(), "flow": FlowModel()}


def suitable(
    info: DatasetInfo, plan: BalancePlan, model: ModelParams
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the kinds of models to compare by pilots, and why others are passed over.

    Parameters
    ----------
    info : DatasetInfo
        Of the ingested records.
    plan : BalancePlan
        Without synthetic records in it, no model is tried.
    model : ModelParams
        The wish; one by name is not compared with others.

    Returns
    -------
    tuple of str
        Kinds; no more than one leaves nothing to compare.
    dict of str to str
        Kind -> reason, for the report.
    """
    kind = resolve_model(model, modality=info.modality)
    if not isinstance(model, AutoModel) or kind is None or not plan.n_synthetic:
        return ((kind,) if kind and plan.n_synthetic else ()), {}
    over = {k: _BY_NAME for k in model_kinds(info.modality) if k != kind}
    if info.modality == "image":
        return (kind,), over
    del over["flow"]
    n_validation = min(
        (info.part_counts.get("validation", {}).get(k, 0) for k in info.compared), default=0
    )
    if find_spec("torch") is None:
        over["flow"] = "it needs the extra torch"
    elif n_validation < SMALL_VALIDATION["table"]:
        over["flow"] = (
            f"it is trained in steps, and the rarest judged class has {n_validation} validation records: "
            f"strategies are compared by "
            f"folds below {SMALL_VALIDATION['table']}, and every fold would take its whole budget"
        )
    else:
        return (kind, "flow"), over
    return (kind,), over


def model_of(kind: str) -> ModelParams:
    """Return the params of a kind that :func:`suitable` names for tables."""
    return _TABLES[kind]


def pilot_budget(budget: Budget) -> Budget:
    """Return what a pilot's training may take: a quarter of what the run's would."""
    return budget.model_copy(
        update={
            "minutes": PILOT_SHARE * budget.minutes,
            "steps": max(1, round(PILOT_SHARE * budget.steps)) if budget.steps else 0,
        }
    )


def training_budget(budget: Budget, n_piloted: int) -> Budget:
    """Return what training may take after so many kinds' pilots: of minutes what these have left.

    Steps are as many as were asked for.
    """
    if budget.steps:
        return budget
    left = 1 - PILOT_SHARE * n_piloted
    return budget.model_copy(update={"minutes": left * budget.minutes})
