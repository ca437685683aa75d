"""The search on validation records by successive halving: pilots of every setting, then fewer strategies in full.

1. *Pilots*: every setting of every strategy, estimators with a third of their steps, one seed, three of the five
   folds where strategies are compared by folds.
2. *Full*: the best setting of the best four strategies, all steps, all folds, one seed. Beside these go on, whatever
   their scores, the records as they are and the best strategy with synthetic records, since both are compared on the
   hold-out.
3. *Seeds*: the best three of these and as is, with all seeds.

Who goes on is decided by counts and scores. With a budget in minutes the clock says how many: more
strategies than four, or fewer, and so many seeds as there is time for (:mod:`.clock`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from prefect_augment.evaluation.metrics.selection import TIE
from prefect_augment.experiment.evaluator import Evaluator, Synthetic, kept_synthetic
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.score import out_of_fold, score_predicted
from prefect_augment.experiment.table_evaluator import TableEvaluator, draw_synthetic
from prefect_augment.params import Budget
from prefect_augment.plan.search_space import N_KEPT, PILOT_EFFORT, PILOT_FOLDS
from prefect_augment.schema.base import (
    Choice,
    Result,
    Strategy,
    StrategyScore,
)
from prefect_augment.schema.experiment import Experiment, Rung, SearchResult, Trial
from prefect_augment.storage.staging import Stage
from prefect_augment.storage.store import Store
from prefect_augment.synthesis.effort import effective_budget

__all__ = [
    "N_FINALISTS",
    "best_settings",
    "decided",
    "finalists",
    "go_on",
    "pilot",
    "rung",
]

N_FINALISTS = 3  # strategies that are scored with all seeds, beside as is


class _Pilots(Result):
    """The receipt of a strategy's pilots."""

    scores: tuple[StrategyScore, ...]


def pilot(
    experiment: Experiment,
    strategies: Sequence[Strategy],
    store: Store,
    *,
    budget: Budget | None = None,
) -> tuple[StrategyScore, ...]:
    """Score the settings of one strategy with a third of the estimators' steps, and one seed.

    Parameters
    ----------
    experiment : Experiment
        As for :func:`~prefect_augment.experiment.score.score`.
    strategies : sequence of Strategy
        A strategy with each of its settings.
    store : Store
        The root that the dataset lies under.
    budget : Budget, optional
        Train a model of tables for the pilot alone, with so much effort, on what each fold trains on.

    Returns
    -------
    tuple of StrategyScore
        In the order of ``strategies``. ``seconds`` is each one's share of what all of them took.
    """
    own = None if budget is None else effective_budget(budget)
    key = experiment.key("pilot", list(strategies), PILOT_EFFORT, PILOT_FOLDS, own)
    stage = Stage(store, "pilot", key)
    return stage.run(_Pilots, lambda: _pilot(experiment, strategies, store, budget)).scores


def _pilot(
    experiment: Experiment, strategies: Sequence[Strategy], store: Store, budget: Budget | None
) -> _Pilots:
    started, seed = time.monotonic(), experiment.params.seed * 1000
    evaluator = open_evaluator(store, experiment)
    has_candidates = experiment.candidates is not None or budget is not None
    folds = evaluator.folds(seed=seed, has_candidates=has_candidates)
    folds = np.where(folds < PILOT_FOLDS, folds, -1)
    predicted = out_of_fold(
        evaluator,
        strategies,
        folds,
        given=kept_synthetic(evaluator, store) if strategies[0].has_model else None,
        seed=seed,
        effort=PILOT_EFFORT,
        draw=None if budget is None else partial(_draw, evaluator, budget),
    )
    scores = [
        score_predicted(evaluator.records, strategy, proba, folds, seed=0)
        for strategy, proba in zip(strategies, predicted, strict=True)
    ]
    seconds = round((time.monotonic() - started) / len(scores), 3)
    return _Pilots(scores=tuple(s.model_copy(update={"seconds": seconds}) for s in scores))


def _draw(evaluator: Evaluator, budget: Budget, rows: NDArray[np.int64], seed: int) -> Synthetic:
    """Train a model of tables on some records, and draw from it."""
    assert isinstance(evaluator, TableEvaluator)
    return draw_synthetic(evaluator, rows, seed=seed, budget=budget)


# --- who goes on ------------------------------------------------------------------------------


def best_settings(pilots: Sequence[StrategyScore]) -> list[StrategyScore]:
    """Return each strategy's best setting, the best strategy first.

    Of settings that tie with a strategy's highest score the first one is taken: the best of eight on few records
    is the luckiest one. Two tie where they are nearer than :data:`~prefect_augment.evaluation.metrics.selection.TIE`,
    one record's worth of score, or one standard error of their difference over the folds.
    """
    of_strategy: dict[str, list[StrategyScore]] = {}
    for score in pilots:
        of_strategy.setdefault(score.strategy.name, []).append(score)
    best = []
    for scores in of_strategy.values():
        top = max(scores, key=lambda s: s.score)
        best.append(next(s for s in scores if top.score - s.score <= _tie(top, s)))
    return sorted(best, key=lambda s: -s.score)


def _tie(top: StrategyScore, other: StrategyScore) -> float:
    """Difference up to which two settings of a strategy count as equal."""
    if top is other:
        return 0.0
    width = max(TIE, 1.0 / max(1, top.n_validation))
    if len(top.folds) < 2:
        return width
    gaps = np.subtract(top.folds, other.folds)
    return max(width, float(np.std(gaps, ddof=1) / np.sqrt(len(gaps))))


def go_on(pilots: Sequence[StrategyScore], *, n_kept: int = N_KEPT) -> list[Strategy]:
    """Return the settings that are scored in full: of the best strategies the best, as is, the best with a model.

    Parameters
    ----------
    pilots : sequence of StrategyScore
        All settings of all strategies, in the strategies' order.
    n_kept : int
        Strategies beside those that go on whatever their scores.
    """
    ranked = best_settings(pilots)
    kept = [score.strategy for score in ranked[:n_kept]]
    kept += [s.strategy for s in ranked if s.strategy.family == "as_is"]
    kept += [s.strategy for s in ranked if s.strategy.has_model][:1]
    order = [score.strategy for score in pilots]
    return sorted(dict.fromkeys(kept), key=order.index)


def finalists(full: Sequence[StrategyScore]) -> list[Strategy]:
    """Return the strategies that are scored with all seeds: as is and the best of the others."""
    ranked = sorted(full, key=lambda s: (s.strategy.family != "as_is", -s.score))
    return [score.strategy for score in ranked[: N_FINALISTS + 1]]


# --- what the report shows --------------------------------------------------------------------


def decided(info: SearchResult, choice: Choice) -> SearchResult:
    """Return the search with what validation has chosen: of the last rung, what goes to the hold-out is kept."""
    goes_on = {choice.chosen, choice.baseline, choice.as_is}
    last = info.rungs[-1]
    trials = tuple(
        trial.model_copy(
            update={
                "kept": trial.strategy in goes_on,
                "reason": "" if trial.strategy in goes_on else choice.reason.rstrip("."),
            }
        )
        for trial in last.trials
    )
    rungs = (*info.rungs[:-1], last.model_copy(update={"trials": trials}))
    return info.model_copy(update={"rungs": rungs})


def rung(
    name: str,
    scores: Sequence[StrategyScore],
    kept: Sequence[Strategy],
    *,
    reasons: Mapping[str, str],
    effort: float = 1.0,
    timed: bool = True,
    model: str = "",
    note: str = "",
) -> Rung:
    """Write down a round of the search.

    Parameters
    ----------
    name : str
        Of the rung.
    scores : sequence of StrategyScore
        One or more per setting: several seeds count together.
    kept : sequence of Strategy
        Settings that went on.
    reasons : mapping of str to str
        Why a setting was dropped, by the strategy's name where that is there; ``""`` for the others.
    timed : bool
        Whether seconds are shown: not where the same bytes are asked for.
    model : str
        Kind of the model of strategies that have one.
    """
    grouped: dict[Strategy, list[StrategyScore]] = {}
    for score in scores:
        grouped.setdefault(score.strategy, []).append(score)
    best = {score.strategy.name: score.strategy for score in best_settings(scores)}
    trials = []
    for strategy, found in grouped.items():
        parts = [part for score in found for part in (score.folds or (score.score,))]
        reason = ""
        if strategy not in kept:
            other = best[strategy.name]
            reason = (
                reasons.get(strategy.name, reasons.get("", ""))
                if other == strategy
                else "another setting of this strategy scored higher, or as high and stands before it"
            )
        trials.append(
            Trial(
                strategy=strategy,
                model=model if strategy.has_model else "",
                score=math.fsum(score.score for score in found) / len(found),
                spread=float(np.std(parts, ddof=1)) if len(parts) > 1 else None,
                n_scores=len(parts),
                seconds=sum(score.seconds for score in found) if timed else 0.0,
                kept=strategy in kept,
                reason=reason,
            )
        )
    return Rung(
        name=name,
        effort=effort,
        n_seeds=max((len(found) for found in grouped.values()), default=0),
        trials=tuple(trials),
        note=note,
    )
