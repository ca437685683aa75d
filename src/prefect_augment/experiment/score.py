"""Predictions of strategies for records that they were not trained on, and their scores; then the choice.

Out-of-fold predictions are staged once, for the score, for strategies that differ in thresholds alone, and as
evidence beside the hold-out's.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from prefect_augment.array_types import Array, Float, Int
from prefect_augment.encoding.arrays import N_FEWER_FOLDS, N_FOLDS, Records
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.metrics.measures import Measure
from prefect_augment.evaluation.metrics.predictions import (
    StrategyPredictions,
    predict_classes,
    score_predictions,
)
from prefect_augment.evaluation.metrics.thresholds import cross_fitted_multipliers, tune_multipliers
from prefect_augment.evaluation.verdict.out_of_fold import OutOfFold
from prefect_augment.experiment.evaluator import (
    Evaluator,
    StoredArray,
    Synthetic,
    chosen_measure,
    groups_of,
    has_candidates,
    kept_synthetic,
    score_folds,
)
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.training_set import stratum_counts
from prefect_augment.params import NoModel
from prefect_augment.plan.strategies import AMOUNTS, as_trained
from prefect_augment.schema import (
    Choice,
    EstimatorScore,
    Experiment,
    MeasureInfo,
    Strategy,
    StrategyScore,
    Verdict,
)
from prefect_augment.storage import Stage, Store

Predictions = dict[str, Float]  # estimator -> probabilities, shape (n, n_classes)


def score_key(
    experiment: Experiment, step: str, strategies: Sequence[Strategy], *inputs: object, seed: int
) -> str:
    """Name of a step's outcome; strategies without synthetic records are scored before there are any."""
    if any(s.has_model or s.family == "external" for s in strategies):
        return experiment.key(step, list(strategies), *inputs, seed=seed)
    alone = experiment.with_model(NoModel()).model_copy(update={"candidates": None})
    return alone.key(step, list(strategies), has_candidates(experiment), *inputs, seed=seed)


def out_of_fold(
    evaluator: Evaluator,
    strategies: Sequence[Strategy],
    folds: Int,
    *,
    candidates: Synthetic | None,
    seed: int,
    step_share: float = 1.0,
    draw: Callable[[Int, int], Synthetic] | None = None,
) -> list[Predictions]:
    """Each strategy's out-of-fold probabilities.

    All strategies have synthetic records, or none. They share each fold's synthetic records, and
    strategies that differ in thresholds alone share their estimators. ``folds`` are -1 for records
    that only train. ``draw`` makes synthetic records from (rows, seed), instead of the evaluator.
    """
    data = evaluator.records
    shape = (len(data.y), len(data.classes))
    predictions: list[Predictions] = [
        {name: np.full(shape, np.nan) for name in evaluator.estimators} for _ in strategies
    ]
    for fold in range(folds.max() + 1):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        synthetic = None
        if strategies[0].has_model:
            synthetic = (
                draw(train, seed)
                if draw
                else evaluator.synthetic(train, candidates=candidates, seed=seed)
            )
        done: dict[Strategy, dict[str, Float]] = {}
        for strategy, out in zip(strategies, predictions, strict=True):
            plain = as_trained(strategy)
            if plain not in done:
                done[plain] = dict(
                    evaluator.predictions(
                        strategy,
                        train,
                        data.X[test],
                        synthetic=synthetic,
                        seed=seed,
                        step_share=step_share,
                    )
                )
            for name, proba in done[plain].items():
                out[name][test] = proba
    return predictions


def predict(evaluator: Evaluator, strategy: Strategy, own: int, store: Store) -> str:
    """Path of the out-of-fold probabilities, which strategies that differ in thresholds alone share."""
    stage = Stage(
        store, "predict", score_key(evaluator.experiment, "predict", [strategy], seed=own)
    )

    def make() -> Array:
        candidates, draw, folds = None, None, folds_of(evaluator, own)
        if strategy.family == "external":
            # Whoever made them may have seen these records: the scores choose nothing, the thresholds serve.
            external = kept_synthetic(evaluator, store, with_dropped=True)
            assert external is not None
            draw = partial(_the_same, external)
        elif strategy.has_model:
            candidates = kept_synthetic(evaluator, store)
        (predicted,) = out_of_fold(
            evaluator, [strategy], folds, candidates=candidates, seed=own, draw=draw
        )
        scored = [proba[folds >= 0] for proba in predicted.values()]
        return np.asarray(scored, dtype=np.float32)  # the precision that is staged

    return StoredArray.of(stage, "probabilities", make).path


def predict_all(evaluator: Evaluator, strategy: Strategy, own: int, store: Store) -> Float:
    """Out-of-fold probabilities of every record, (n_records, n_classes), the mean over the estimators.

    Where strategies are compared by folds, these are the search's predictions. Else estimators train in
    :data:`N_FEWER_FOLDS` folds, for as many steps together as for one setting of the search.
    """
    data, searched = evaluator.records, folds_of(evaluator, own)
    if searched.min() >= 0:
        predicted = read(evaluator, predict(evaluator, strategy, own, store), searched, store)
        return np.asarray(np.mean([*predicted.values()], axis=0))
    stage = Stage(store, "audit", score_key(evaluator.experiment, "audit", [strategy], seed=own))

    def make() -> Array:
        folds = score_folds(data, n_folds=N_FEWER_FOLDS, seed=own)
        (predicted,) = out_of_fold(
            evaluator, [strategy], folds, candidates=None, seed=own, step_share=1 / N_FEWER_FOLDS
        )
        return np.asarray(np.mean([*predicted.values()], axis=0), dtype=np.float32)

    return StoredArray.of(stage, "probabilities", make).load(store).astype(np.float64)


def folds_of(evaluator: Evaluator, own: int) -> Int:
    """Fold of each record under a seed; -1 for records that only train."""
    return evaluator.folds(seed=own, has_candidates=has_candidates(evaluator.experiment))


def read(evaluator: Evaluator, path: str, folds: Int, store: Store) -> Predictions:
    """Probabilities by estimator, (n_records, n_classes); NaN for records that only train."""
    data, loaded = evaluator.records, StoredArray(path=path).load(store)
    predicted = {}
    for name, proba in zip(evaluator.estimators, loaded, strict=True):
        predicted[name] = np.full((len(data.y), len(data.classes)), np.nan)
        predicted[name][folds >= 0] = proba
    return predicted


def _of_strategy(
    evaluator: Evaluator, scores: Sequence[StrategyScore], store: Store
) -> tuple[Int, StrategyPredictions]:
    """What one strategy predicted with each of its seeds, and the rows of the compared records."""
    data, strategy, measure = evaluator.records, scores[0].strategy, chosen_measure(evaluator)
    proba: dict[str, list[Float]] = {}
    tuned: dict[str, list[Float]] = {}
    for score in scores:
        folds = folds_of(evaluator, evaluator.experiment.params.seed * 1000 + score.seed)
        rows = scored_rows(data, folds)
        for name, every in read(evaluator, score.path, folds, store).items():
            proba.setdefault(name, []).append(every[rows])
            if strategy.tune_threshold:
                of_folds = cross_fitted(data, every[rows], rows, score.seed, measure)
                tuned.setdefault(name, []).append(of_folds)
    stacked = {name: np.stack(of) for name, of in proba.items()}
    multipliers = {name: np.stack(of) for name, of in tuned.items()}
    return rows, StrategyPredictions(strategy, stacked, multipliers)


def scored_rows(data: Records, folds: Int) -> Int:
    """Rows of the compared records that are predicted."""
    return np.flatnonzero((folds >= 0) & data.compared[data.y])


def cross_fitted(data: Records, proba: Float, rows: Int, seed: int, measure: Measure) -> Float:
    """Multipliers of each record that were tuned without it, shape (n_rows, n_classes)."""
    y = data.y[rows]
    inner = stratified_folds(
        y, groups=groups_of(data, rows), n_folds=N_FOLDS, seed=seed, keys=data.keys[rows]
    )
    return cross_fitted_multipliers(y, proba, inner, data.compared, measure)


def _the_same(synthetic: Synthetic, rows: Int, seed: int) -> Synthetic:
    return synthetic


def evidence(
    evaluator: Evaluator, scores: Sequence[StrategyScore], store: Store
) -> OutOfFold | None:
    """What the search's predictions of validation records, or of all by folds, say; None without them."""
    data, evaluation = evaluator.records, evaluator.experiment.params.evaluation
    measure = chosen_measure(evaluator)
    by_strategy: dict[str, list[StrategyScore]] = {}
    # Whoever made external records may have seen these; a control is no rival that could have been chosen.
    own = [
        s
        for s in scores
        if s.path and s.strategy.family != "external" and not s.strategy.is_control
    ]
    if not own:
        return None
    for score in sorted(own, key=lambda s: s.seed):
        by_strategy.setdefault(score.strategy.name, []).append(score)
    predictions = {}
    for name, of in by_strategy.items():
        rows, predictions[name] = _of_strategy(evaluator, of, store)
    n_folds = max(1, len(own[0].folds))
    return OutOfFold(
        data.y[rows],
        predictions,
        n_folds=n_folds,
        test_share=len(rows) / n_folds / max(1, int(data.compared[data.y].sum())),
        models=frozenset(s.strategy.name for s in own if s.strategy.has_model),
        measure=None if measure.info == MeasureInfo() else measure,
        groups=None if data.groups is None else data.groups[rows],
        n_bootstrap=evaluation.n_bootstrap,
        seed=evaluator.experiment.params.seed,
    )


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
