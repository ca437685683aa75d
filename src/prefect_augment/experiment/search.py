"""The search on validation records by successive halving: pilots of every setting, then fewer strategies in full.

1. *Pilots*: every setting of every strategy, a third of the estimators' steps, one seed, three of
the five folds where strategies are compared by folds. 2. *Full*: the best setting of the best four
strategies, all steps, all folds, one seed. As is and the best strategy with synthetic records
always go on, since both are compared on the hold-out. 3. *Seeds*: the best two of these and as
is, with all seeds.

Counts and scores decide. With a budget in minutes, the time decides how many strategies and seeds
there are (:mod:`prefect_augment.plan.search_space`).
"""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from prefect_augment.array_types import Int
from prefect_augment.evaluation.verdict.selection import scale_of, tie_width
from prefect_augment.experiment.evaluator import (
    Evaluator,
    Synthetic,
    chosen_measure,
    kept_synthetic,
)
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.score import folds_of, out_of_fold, score_key, score_predicted
from prefect_augment.experiment.table_evaluator import TableEvaluator, draw_synthetic
from prefect_augment.params import Budget
from prefect_augment.plan.search_space import N_KEPT, PILOT_FOLDS, PILOT_STEP_SHARE
from prefect_augment.schema import (
    Choice,
    Experiment,
    Result,
    Rung,
    SearchResult,
    Strategy,
    StrategyScore,
    Trial,
)
from prefect_augment.storage import Stage, Store
from prefect_augment.synthesis.training_budget import effective_budget

N_FINALISTS = 2  # strategies that are scored with all seeds, beside as is


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

    With a ``budget`` a model of tables is trained for the pilot alone, on each fold's training
    records. ``seconds`` of each score is its share of the time of all.
    """
    own = None if budget is None else effective_budget(budget)
    inputs = (PILOT_STEP_SHARE, PILOT_FOLDS, own)
    key = score_key(experiment, "pilot", strategies, *inputs, seed=experiment.params.seed)
    stage = Stage(store, "pilot", key)
    return stage.run(_Pilots, lambda: _pilot(experiment, strategies, store, budget)).scores


def _pilot(
    experiment: Experiment, strategies: Sequence[Strategy], store: Store, budget: Budget | None
) -> _Pilots:
    started, seed = time.monotonic(), experiment.params.seed * 1000
    evaluator = open_evaluator(store, experiment)
    folds = folds_of(evaluator, seed)
    folds = np.where(folds < PILOT_FOLDS, folds, -1)
    predicted = out_of_fold(
        evaluator,
        strategies,
        folds,
        candidates=kept_synthetic(evaluator, store) if strategies[0].has_model else None,
        seed=seed,
        step_share=PILOT_STEP_SHARE,
        draw=None if budget is None else partial(_draw, evaluator, budget),
    )
    measure = chosen_measure(evaluator)
    scores = [
        score_predicted(evaluator, strategy, proba, folds, seed=0, measure=measure)
        for strategy, proba in zip(strategies, predicted, strict=True)
    ]
    seconds = round((time.monotonic() - started) / len(scores), 3)
    return _Pilots(scores=tuple(s.model_copy(update={"seconds": seconds}) for s in scores))


def _draw(evaluator: Evaluator, budget: Budget, rows: Int, seed: int) -> Synthetic:
    assert isinstance(evaluator, TableEvaluator)
    return draw_synthetic(evaluator, rows, seed=seed, budget=budget)


def best_settings(pilots: Sequence[StrategyScore]) -> list[StrategyScore]:
    """Each strategy's best setting, the best strategy first.

    Of settings that tie with the strategy's highest score the first is taken: the best of eight on
    few records is the luckiest one. Two tie where they differ by at most
    :func:`~prefect_augment.evaluation.verdict.selection.tie_width`, or one standard error of their
    difference over the folds.
    """
    by_strategy: dict[str, list[StrategyScore]] = {}
    for score in pilots:
        by_strategy.setdefault(score.strategy.name, []).append(score)
    best, scale = [], scale_of(pilots)
    for scores in by_strategy.values():
        top = max(scores, key=lambda s: s.score)
        best.append(next(s for s in scores if top.score - s.score <= _tie(top, s, scale)))
    return sorted(best, key=lambda s: -s.score)


def best_kind(pilots: Sequence[Sequence[StrategyScore]]) -> int:
    """Index of the kind of model to train: of those that tie with the best pilot the first, and cheapest."""
    best = [max(scores, key=lambda s: s.score) for scores in pilots]
    top, scale = max(best, key=lambda s: s.score), scale_of(best)
    return next(i for i, s in enumerate(best) if top.score - s.score <= _tie(top, s, scale))


def _tie(top: StrategyScore, other: StrategyScore, scale: float) -> float:
    """Difference up to which two settings of a strategy count as equal, by the folds."""
    return (
        0.0 if top is other else tie_width(top, scale, np.subtract(top.folds, other.folds).tolist())
    )


def survivors(pilots: Sequence[StrategyScore], *, n_kept: int = N_KEPT) -> list[Strategy]:
    """The settings that are scored in full: the best ``n_kept`` strategies, as is, the best with a model."""
    best = best_settings(pilots)
    ranked = [score for score in best if not score.strategy.is_control]
    kept = [score.strategy for score in ranked[:n_kept]]
    kept += [score.strategy for score in best if score.strategy.is_control]
    kept += [s.strategy for s in ranked if s.strategy.family == "as_is"]
    kept += [s.strategy for s in ranked if s.strategy.has_model][:1]
    order = [score.strategy for score in pilots]
    return sorted(dict.fromkeys(kept), key=order.index)


def finalists(full: Sequence[StrategyScore]) -> list[Strategy]:
    """The strategies that are scored with all seeds: as is and the best of the others."""
    eligible = (score for score in full if not score.strategy.is_control)
    ranked = sorted(eligible, key=lambda s: (s.strategy.family != "as_is", -s.score))
    return [score.strategy for score in ranked[: N_FINALISTS + 1]]


def with_choice(info: SearchResult, choice: Choice) -> SearchResult:
    """The search result with the final choice: the last rung keeps what the hold-out compares."""
    compared = {choice.chosen, choice.baseline, choice.as_is}
    last = info.rungs[-1]
    trials = tuple(
        trial.model_copy(
            update={
                "kept": trial.strategy in compared,
                "reason": "" if trial.strategy in compared else choice.reason.rstrip("."),
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
    step_share: float = 1.0,
    timed: bool = True,
    model: str = "",
) -> Rung:
    """A round of the search for the report.

    ``reasons`` say why a setting was dropped, by the strategy's name, or ``""`` for the others. Seconds are not shown
    (``timed``) where a run has to be reproducible to the byte. ``model`` is the kind of strategies with a model.
    """
    grouped: dict[Strategy, list[StrategyScore]] = {}
    for score in scores:
        grouped.setdefault(score.strategy, []).append(score)
    best = {score.strategy.name: score.strategy for score in best_settings(scores)}
    trials = []
    for strategy, results in grouped.items():
        parts = [part for score in results for part in (score.folds or (score.score,))]
        reason = ""
        if strategy not in kept:
            other = best[strategy.name]
            reason = (
                reasons.get(strategy.name, reasons.get("", ""))
                if other == strategy
                else "another setting of this strategy scored higher, or as high and comes first"
            )
        trials.append(
            Trial(
                strategy=strategy,
                model=model if strategy.has_model else "",
                score=math.fsum(score.score for score in results) / len(results),
                spread=float(np.std(parts, ddof=1)) if len(parts) > 1 else None,
                n_scores=len(parts),
                seconds=sum(score.seconds for score in results) if timed else 0.0,
                kept=strategy in kept,
                reason=reason,
            )
        )
    return Rung(
        name=name,
        step_share=step_share,
        n_seeds=max((len(results) for results in grouped.values()), default=0),
        trials=tuple(trials),
    )
