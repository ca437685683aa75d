"""How many strategies and seeds the budget allows, and which generative models ``model: auto`` tries.

With ``budget.steps`` time plays no part. Otherwise it comes from the receipts of pilots and scores
and never from a clock, so that a rerun decides alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate

from prefect_augment.encoding.arrays import N_FOLDS, SMALL_VALIDATION
from prefect_augment.params import AutoModel, Budget, FlowModel, ModelParams, TreesModel
from prefect_augment.plan.search_space import N_KEPT, PILOT_FOLDS, PILOT_STEP_SHARE
from prefect_augment.registry import model_kinds, resolve_model
from prefect_augment.schema import BalancePlan, DatasetInfo, Strategy, StrategyScore

# Of budget.minutes, for the comparison with its hold-out. A network trains in most of the rest; without one, the
# rest is for ingest, the report and for scores that take longer than their pilots suggest.
COMPARISON_SHARE, COMPARISON_SHARE_ALONE = 0.5, 0.7
# On the hold-out: the chosen strategy, the best baseline and as is.
HOLDOUT_STRATEGIES = 3


@dataclass(frozen=True)
class Schedule:
    """The comparison's part of a budget."""

    seconds: float = math.inf  # infinite where time does not count
    workers: int = 1  # strategies that are scored at the same time
    spent: float = 0.0  # seconds of earlier scores, the pilots of generative models

    @classmethod
    def of(
        cls, budget: Budget, *, workers: int, trains_network: bool, spent: float = 0.0
    ) -> "Schedule":
        """The schedule of a run; ``trains_network``: a generative model takes its part of the minutes."""
        if budget.steps:
            return cls(workers=workers)
        share = COMPARISON_SHARE if trains_network else COMPARISON_SHARE_ALONE
        return cls(60 * share * budget.minutes, workers, spent)

    def n_kept(self, pilots: Sequence[StrategyScore], best: Sequence[StrategyScore]) -> int:
        """Strategies that can be scored in full beside those on the hold-out, at least two.

        ``best`` are the pilots of each strategy's best setting, the best strategy first.
        :data:`N_KEPT` where time does not count.
        """
        if math.isinf(self.seconds):
            return N_KEPT
        n_folds, more = (N_FOLDS, N_FOLDS / PILOT_FOLDS) if pilots[0].folds else (1, 1.0)
        full = [more / PILOT_STEP_SHARE * score.seconds for score in best]
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
        """Seeds with which the finalists can be scored and compared on the hold-out, from one to ``most``.

        ``pilots`` and ``full`` are the scores so far, in full with one seed.
        """
        if math.isinf(self.seconds):
            return most
        seconds = [score.seconds for score in full if score.strategy in finalists]
        holdout = _holdout(seconds, len(full[0].folds) or 1)
        left = self._left(len(seconds), (*pilots, *full)) - holdout
        per_seed = math.fsum(seconds) + holdout
        return 1 + max(0, min(most - 1, int(left / per_seed))) if per_seed > 0 else most

    def _left(self, n: int, scored: Sequence[StrategyScore]) -> float:
        """Seconds that ``n`` strategies may still take together; ``workers`` of them run side by side."""
        taken = self.spent + math.fsum(score.seconds for score in scored)
        return self.seconds * min(self.workers, n) - taken


def _holdout(seconds: Sequence[float], n_folds: int) -> float:
    """Seconds of the strategies on the hold-out, trained once on the records of all folds."""
    per_fold = math.fsum(seconds) / len(seconds) / n_folds
    return HOLDOUT_STRATEGIES * per_fold * n_folds / max(1, n_folds - 1)


# Of a model's training, what its pilot gets.
PILOT_SHARE = 0.25
_BY_NAME = "tried only by name: it was best on none of the data sets that it was measured on"
#: Parameters of the kinds for tables that :func:`suitable` returns.
TABLE_MODELS: dict[str, ModelParams] = {"trees": TreesModel(), "flow": FlowModel()}


def suitable(
    info: DatasetInfo, plan: BalancePlan, model: ModelParams
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Kinds of models to compare by pilots, and why others are skipped, by kind.

    A model by name is not compared with others; none is tried if the plan has no synthetic records.
    """
    kind = resolve_model(model, modality=info.modality)
    if not isinstance(model, AutoModel) or kind is None or not plan.n_synthetic:
        return ((kind,) if kind and plan.n_synthetic else ()), {}
    skipped = {k: _BY_NAME for k in model_kinds(info.modality) if k != kind}
    if info.modality == "image":
        return (kind,), skipped
    del skipped["flow"]
    n_validation = min(
        (info.part_counts.get("validation", {}).get(k, 0) for k in info.compared), default=0
    )
    if find_spec("torch") is None:
        skipped["flow"] = "it needs the extra torch"
    elif n_validation < SMALL_VALIDATION["table"]:
        skipped["flow"] = (
            f"it is trained in steps, and the rarest compared class has {n_validation} validation records: "
            f"below {SMALL_VALIDATION['table']} strategies are compared by folds, and every fold would take "
            "its whole budget"
        )
    else:
        return (kind, "flow"), skipped
    return (kind,), skipped


def pilot_budget(budget: Budget) -> Budget:
    """Budget of a pilot's training: a quarter of the run's."""
    return budget.model_copy(
        update={
            "minutes": PILOT_SHARE * budget.minutes,
            "steps": max(1, round(PILOT_SHARE * budget.steps)) if budget.steps else 0,
        }
    )


def training_budget(budget: Budget, n_piloted: int) -> Budget:
    """Budget of training after the pilots of ``n_piloted`` kinds; steps stay as requested."""
    if budget.steps:
        return budget
    left = 1 - PILOT_SHARE * n_piloted
    return budget.model_copy(update={"minutes": left * budget.minutes})
