"""Score every strategy with the same estimators and steps on validation records; then choose."""

import time

import numpy as np

from prefect_augment.array_types import Float, Int
from prefect_augment.evaluation.metrics.measures import Measure
from prefect_augment.evaluation.metrics.scores import predict_classes, score_predictions
from prefect_augment.evaluation.metrics.thresholds import tune_multipliers
from prefect_augment.experiment.evaluator import Evaluator, chosen_measure
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.out_of_fold import (
    Predictions,
    cross_fitted,
    folds_of,
    predict,
    read,
    score_key,
    scored_rows,
)
from prefect_augment.experiment.training_set import stratum_counts
from prefect_augment.plan.strategies import AMOUNTS, as_trained
from prefect_augment.schema import (
    Choice,
    EstimatorScore,
    Experiment,
    Strategy,
    StrategyScore,
    Verdict,
)
from prefect_augment.storage import Stage, Store


def score(experiment: Experiment, strategy: Strategy, seed: int, store: Store) -> StrategyScore:
    """Train the estimators on one strategy and score them on validation records.

    With amount 0 the amounts 1/2 and 1 are both tried and the better one is returned. Another
    ``seed`` (0, 1, 2 …) has other folds, copies, SMOTE records and synthetic records. Strategies of
    images train on the experiment's candidates; a table's model is fitted anew within each fold.
    """
    own = experiment.params.seed * 1000 + seed
    stage = Stage(store, "score", score_key(experiment, "score", [strategy], seed=own))
    return stage.run(StrategyScore, lambda: _score(experiment, strategy, seed, own, store))


def _score(
    experiment: Experiment, strategy: Strategy, seed: int, own: int, store: Store
) -> StrategyScore:
    started = time.monotonic()
    evaluator = open_evaluator(store, experiment)
    folds = folds_of(evaluator, own)
    if seed and evaluator.is_fixed(strategy) and folds.min() < 0:
        # One split and nothing random: another seed would do the same work again.
        return score(experiment, strategy, 0, store).model_copy(update={"seed": seed})
    amounts = AMOUNTS if strategy.amount == 0 else (strategy.amount,)
    measure, scored = chosen_measure(evaluator), []
    for amount in amounts:
        one = strategy.model_copy(update={"amount": amount})
        path = predict(evaluator, as_trained(one), own, store)
        predicted = read(evaluator, path, folds, store)
        result = score_predicted(evaluator, one, predicted, folds, seed=seed, measure=measure)
        scored.append(result.model_copy(update={"path": path}))
    best = max(scored, key=lambda s: s.score)
    return best.model_copy(update={"seconds": round(time.monotonic() - started, 3)})


def published_strategy(choice: Choice, verdict: Verdict) -> Strategy:
    """The strategy whose recipe the verdict publishes."""
    return {strategy.name: strategy for strategy in (choice.as_is, choice.baseline, choice.chosen)}[
        verdict.published
    ]


def score_predicted(
    evaluator: Evaluator,
    strategy: Strategy,
    predictions: Predictions,
    folds: Int,
    *,
    seed: int,
    measure: Measure,
) -> StrategyScore:
    """Score one strategy's predictions over the compared classes, on all folds together and on each.

    The score is the mean of ``measure`` over the estimators, its negative where lower is better, and
    0 where it is undefined, which the records decide and no strategy.
    """
    data = evaluator.records
    rows = scored_rows(data, folds)
    y = data.y[rows]
    estimators: dict[str, EstimatorScore] = {}
    thresholds: dict[str, dict[str, float]] = {}
    of_folds: list[list[float]] = []
    for name, proba in predictions.items():
        multipliers = None
        if strategy.tune_threshold:
            multipliers = cross_fitted(data, proba[rows], rows, seed, measure)
            tuned = tune_multipliers(y, proba[rows], compared=data.compared, measure=measure)
            thresholds[name] = {c: float(m) for c, m in zip(data.classes, tuned, strict=True)}
        estimators[name] = score_predictions(
            y, proba[rows], classes=data.classes, compared=data.compared, multipliers=multipliers,
            measure=measure,
        )  # fmt: skip
        decided = predict_classes(proba[rows], multipliers)
        of_folds.append(_on_each(measure, y, proba[rows], decided, folds[rows]))
    return StrategyScore(
        strategy=strategy,
        seed=seed,
        score=float(np.mean([measure.oriented(s.metric or 0.0) for s in estimators.values()])),
        measure=measure.info,
        estimators=estimators,
        thresholds=thresholds,
        n_train=int(np.sum(folds != 0)),
        n_validation=len(rows),
        folds=tuple(float(x) for x in np.mean(of_folds, axis=0)),
        sampled=stratum_counts(data.strata, data.strata_names) if evaluator.is_sampled else {},
    )


def _on_each(measure: Measure, y: Int, proba: Float, decided: Int, folds: Int) -> list[float]:
    """The measure, higher being better, on each fold where it is defined; empty for a single fold."""
    numbers = np.unique(folds)
    if len(numbers) < 2:
        return []
    values = [measure.value(y[f], proba[f], decided[f]) for f in (folds == n for n in numbers)]
    return [measure.oriented(value) for value in values if np.isfinite(value)]
