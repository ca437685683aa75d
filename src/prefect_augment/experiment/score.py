"""Score every strategy with the same estimators and steps on validation records; then choose."""

import io
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import N_FOLDS, Records
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.metrics.measures import Measure
from prefect_augment.evaluation.metrics.predictions import StrategyPredictions
from prefect_augment.evaluation.metrics.scores import predict_classes, score_predictions
from prefect_augment.evaluation.metrics.thresholds import cross_fitted_multipliers, tune_multipliers
from prefect_augment.evaluation.verdict.selection import choose_strategy
from prefect_augment.experiment.evaluator import (
    Evaluator,
    Synthetic,
    chosen_measure,
    groups_of,
    kept_synthetic,
)
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.plan.strategies import AMOUNTS, as_trained
from prefect_augment.schema import (
    Choice,
    EstimatorScore,
    Experiment,
    Result,
    Strategy,
    StrategyScore,
    Verdict,
)
from prefect_augment.storage import Stage, Store

__all__ = [
    "choose",
    "out_of_fold",
    "predicted_out_of_fold",
    "published_strategy",
    "score",
    "score_predicted",
]

Predictions = dict[str, NDArray[np.float64]]  # estimator -> probabilities, shape (n, n_classes)


def score(experiment: Experiment, strategy: Strategy, seed: int, store: Store) -> StrategyScore:
    """Train the estimators on one strategy and score them on validation records.

    With amount 0 the amounts 1/2 and 1 are both tried and the better one is returned. Another
    ``seed`` (0, 1, 2 …) has other folds, copies, SMOTE records and synthetic records. Strategies of
    images train on the experiment's candidates; a table's model is fitted anew within each fold.
    """
    own = experiment.params.seed * 1000 + seed
    stage = Stage(store, "score", experiment.key("score", strategy, seed=own))
    return stage.run(StrategyScore, lambda: _score(experiment, strategy, seed, own, store))


def _score(
    experiment: Experiment, strategy: Strategy, seed: int, own: int, store: Store
) -> StrategyScore:
    started = time.monotonic()
    evaluator = open_evaluator(store, experiment)
    folds = _folds(evaluator, own)
    if seed and evaluator.is_fixed(strategy) and folds.min() < 0:
        # One split and nothing random: another seed would do the same work again.
        return score(experiment, strategy, 0, store).model_copy(update={"seed": seed})
    amounts = AMOUNTS if strategy.amount == 0 else (strategy.amount,)
    measure, scored = chosen_measure(evaluator), []
    for amount in amounts:
        one = strategy.model_copy(update={"amount": amount})
        path = _predict(evaluator, as_trained(one), own, store).path
        predicted = _read(evaluator, path, folds, store)
        result = score_predicted(evaluator, one, predicted, folds, seed=seed, measure=measure)
        scored.append(result.model_copy(update={"path": path}))
    best = max(scored, key=lambda s: s.score)
    return best.model_copy(update={"seconds": round(time.monotonic() - started, 3)})


class _Predicted(Result):
    """The receipt of out-of-fold predictions."""

    path: str  # an array (n_estimators, n_predicted, n_classes)


def _predict(evaluator: Evaluator, strategy: Strategy, own: int, store: Store) -> _Predicted:
    """Out-of-fold probabilities, which strategies that differ in thresholds alone share."""
    experiment = evaluator.experiment
    stage = Stage(store, "predict", experiment.key("predict", strategy, seed=own))

    def build() -> _Predicted:
        folds, candidates, draw = _folds(evaluator, own), None, None
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
        rows, path = folds >= 0, f"{stage.prefix}/probabilities.npy"
        store.put(path, _as_bytes(np.stack([proba[rows] for proba in predicted.values()])))
        return _Predicted(path=path)

    return stage.run(_Predicted, build)


def _folds(evaluator: Evaluator, own: int) -> NDArray[np.int64]:
    return evaluator.folds(seed=own, has_candidates=evaluator.experiment.candidates is not None)


def _read(evaluator: Evaluator, path: str, folds: NDArray[np.int64], store: Store) -> Predictions:
    """Probabilities by estimator, (n_records, n_classes); NaN for records that only train."""
    data, loaded = evaluator.records, np.load(io.BytesIO(store.read(path)), allow_pickle=False)
    predicted = {}
    for name, proba in zip(evaluator.estimators, loaded, strict=True):
        predicted[name] = np.full((len(data.y), len(data.classes)), np.nan)
        predicted[name][folds >= 0] = proba
    return predicted


def predicted_out_of_fold(
    evaluator: Evaluator, scores: Sequence[StrategyScore], store: Store
) -> tuple[NDArray[np.int64], StrategyPredictions]:
    """What one strategy predicted with each of its seeds, and the rows of the compared records."""
    data, strategy, measure = evaluator.records, scores[0].strategy, chosen_measure(evaluator)
    proba: dict[str, list[NDArray[np.float64]]] = {}
    tuned: dict[str, list[NDArray[np.float64]]] = {}
    for score in scores:
        folds = _folds(evaluator, evaluator.experiment.params.seed * 1000 + score.seed)
        rows = _scored_rows(data, folds)
        for name, every in _read(evaluator, score.path, folds, store).items():
            proba.setdefault(name, []).append(every[rows])
            if strategy.tune_threshold:
                of_folds = _cross_fitted(data, every[rows], rows, score.seed, measure)
                tuned.setdefault(name, []).append(of_folds)
    stacked = {name: np.stack(of) for name, of in proba.items()}
    multipliers = {name: np.stack(of) for name, of in tuned.items()}
    return rows, StrategyPredictions(strategy, stacked, multipliers)


def _scored_rows(data: Records, folds: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero((folds >= 0) & data.compared[data.y])


def _cross_fitted(
    data: Records,
    proba: NDArray[np.float64],
    rows: NDArray[np.int64],
    seed: int,
    measure: Measure,
) -> NDArray[np.float64]:
    """Multipliers of each record that were tuned without it, shape (n_rows, n_classes)."""
    y = data.y[rows]
    inner = stratified_folds(
        y, groups=groups_of(data, rows), n_folds=N_FOLDS, seed=seed, keys=data.keys[rows]
    )
    return cross_fitted_multipliers(y, proba, inner, data.compared, measure)


def _as_bytes(values: NDArray[np.float64]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.astype(np.float32), allow_pickle=False)
    return buffer.getvalue()


def _the_same(synthetic: Synthetic, rows: NDArray[np.int64], seed: int) -> Synthetic:
    return synthetic


def choose(scores: Sequence[StrategyScore], *, prefer_model: bool = False) -> Choice:
    """Choose, by validation scores alone, the strategies that the hold-out compares.

    ``prefer_model``: the hold-out tests the best strategy with synthetic records whatever its
    score, since ``evaluation.on_no_gain = "publish"`` publishes it.
    """
    choice = choose_strategy(scores)
    return Choice(
        chosen=choice.to_verify("publish" if prefer_model else "recipe"),
        baseline=choice.baseline,
        as_is=next(s.strategy for s in scores if s.strategy.family == "as_is"),
        model=choice.model,
        scores=choice.mean,
        reason=choice.reason,
    )


def published_strategy(choice: Choice, verdict: Verdict) -> Strategy:
    """The strategy whose recipe the verdict publishes."""
    return {strategy.name: strategy for strategy in (choice.as_is, choice.baseline, choice.chosen)}[
        verdict.published
    ]


def out_of_fold(
    evaluator: Evaluator,
    strategies: Sequence[Strategy],
    folds: NDArray[np.int64],
    *,
    candidates: Synthetic | None,
    seed: int,
    step_share: float = 1.0,
    draw: Callable[[NDArray[np.int64], int], Synthetic] | None = None,
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
            inner = seed * 100 + fold
            synthetic = (
                draw(train, inner)
                if draw
                else evaluator.synthetic(train, candidates=candidates, seed=inner)
            )
        done: dict[Strategy, dict[str, NDArray[np.float64]]] = {}
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


def score_predicted(
    evaluator: Evaluator,
    strategy: Strategy,
    predictions: Predictions,
    folds: NDArray[np.int64],
    *,
    seed: int,
    measure: Measure,
) -> StrategyScore:
    """Score one strategy's predictions over the compared classes, on all folds together and on each.

    The score is the mean of ``measure`` over the estimators, its negative where lower is better, and
    0 where it is undefined, which the records decide and no strategy.
    """
    data = evaluator.records
    rows = _scored_rows(data, folds)
    y = data.y[rows]
    estimators: dict[str, EstimatorScore] = {}
    thresholds: dict[str, dict[str, float]] = {}
    of_folds: list[list[float]] = []
    for name, proba in predictions.items():
        multipliers = None
        if strategy.tune_threshold:
            multipliers = _cross_fitted(data, proba[rows], rows, seed, measure)
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
    )


def _on_each(
    measure: Measure,
    y: NDArray[np.int64],
    proba: NDArray[np.float64],
    decided: NDArray[np.int64],
    folds: NDArray[np.int64],
) -> list[float]:
    """The measure, higher being better, on each fold where it is defined; empty for a single fold."""
    numbers = np.unique(folds)
    if len(numbers) < 2:
        return []
    values = [measure.value(y[f], proba[f], decided[f]) for f in (folds == n for n in numbers)]
    return [measure.oriented(value) for value in values if np.isfinite(value)]
