"""What strategies predict of records that they were not trained on, its scores, and a measure of it with its intervals.

Records of other than the compared classes never enter a score; a compared record that is predicted as another class
counts as wrong. Class codes are ``0 .. n_classes - 1``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.evaluation.metrics.bootstrap import Draws, stretched, wider_interval
from prefect_augment.evaluation.metrics.measures import (
    Measure,
    average_precision,
    balanced_accuracy,
    brier,
    log_loss,
    roc_auc,
)
from prefect_augment.schema import EstimatorScore, Interval, Strategy


def predict_classes(proba: Float, multipliers: Float | None = None) -> Int:
    """Most probable class code of each record after multiplication; the lower code where two tie.

    ``multipliers`` have shape (n_classes,) or (n_records, n_classes).
    """
    weighted = proba if multipliers is None else proba * multipliers
    return np.argmax(weighted, axis=1).astype(np.int64)


def score_predictions(
    y: Int,  # (n_records,)
    proba: Float,  # (n_records, n_classes), rows sum to 1
    *,
    classes: Sequence[str],
    compared: Bool,  # (n_classes,) classes that count
    multipliers: Float | None = None,
    measure: Measure | None = None,
) -> EstimatorScore:
    """Balanced accuracy and other scores over the compared classes that occur in ``y``.

    They are the measures of :mod:`.measures`; ``auprc`` is 1 for a single class, ``worst_class`` the first class with
    the lowest recall, and ``metric`` the value of ``measure`` (balanced accuracy without one). ``multipliers`` change
    decisions (accuracy, F1, recall), not the probabilities behind AUPRC, ROC AUC, log loss and the Brier score.
    ParameterError if the shapes do not fit together; EmptyClassError if no record belongs to a compared class.
    """
    _check_shapes(y, proba, classes, compared)
    counted = compared[y]
    if not counted.any():
        raise EmptyClassError(
            "none of the compared classes has a record here, so there is nothing to score; "
            "compare classes that occur, or add hold-out records."
        )
    y, proba = y[counted], proba[counted]
    if multipliers is not None and multipliers.ndim == 2:
        multipliers = multipliers[counted]
    predicted = predict_classes(proba, multipliers)

    n_classes = len(classes)
    n_true = np.bincount(y, minlength=n_classes)
    n_predicted = np.bincount(predicted, minlength=n_classes)
    n_right = np.bincount(y[y == predicted], minlength=n_classes)
    present = np.flatnonzero(n_true)
    recall = n_right[present] / n_true[present]
    f1 = 2 * n_right[present] / (n_true[present] + n_predicted[present])
    worst = int(np.argmin(recall))

    def value(of: Measure) -> float | None:
        result = of.value(y, proba, predicted)
        return result if np.isfinite(result) else None

    return EstimatorScore(
        balanced_accuracy=float(recall.mean()),
        macro_f1=float(f1.mean()),
        auprc=1.0 if len(present) == 1 else average_precision(compared).value(y, proba, predicted),
        worst_recall=float(recall[worst]),
        worst_class=classes[int(present[worst])],
        brier=brier(compared).value(y, proba, predicted),
        recall={classes[int(k)]: float(r) for k, r in zip(present, recall, strict=True)},
        metric=value(measure or balanced_accuracy(compared)),
        roc_auc=value(roc_auc(compared)),
        log_loss=value(log_loss(compared)),
    )


def mean_score(scores: Sequence[EstimatorScore]) -> EstimatorScore:
    """Mean of an estimator's scores over seeds, on the same records; the worst class is that of the mean recalls."""
    recall = {k: float(np.mean([s.recall[k] for s in scores])) for k in scores[0].recall}
    worst = min(recall, key=lambda k: recall[k])

    def mean(name: str) -> Any:
        values = [getattr(s, name) for s in scores]
        return None if None in values else float(np.mean(values))

    return EstimatorScore(
        **{name: mean(name) for name in EstimatorScore.model_fields if name not in _OF_RECALL},
        worst_recall=recall[worst],
        worst_class=worst,
        recall=recall,
    )


_OF_RECALL = ("recall", "worst_recall", "worst_class")


def _check_shapes(y: Int, proba: Float, classes: Sequence[str], compared: Bool) -> None:
    """Refuse arrays that cannot belong together, before numpy broadcasts them into nonsense."""
    expected = (len(y), len(classes))
    if proba.shape != expected or compared.shape != expected[1:]:
        raise ParameterError(
            f"expected proba of shape {expected} and compared of shape {expected[1:]} for "
            f"{len(y)} records and {len(classes)} classes; got {proba.shape} and {compared.shape}."
        )
    if len(y) and (y.min() < 0 or y.max() >= len(classes)):
        raise ParameterError(
            f"class codes must lie in 0..{len(classes) - 1}; got {int(y.min())}..{int(y.max())}."
        )


@dataclass(frozen=True)
class StrategyPredictions:
    """A strategy's probabilities on the hold-out, per estimator."""

    strategy: Strategy
    proba: dict[str, Float]  # (n_seeds, n_records, n_classes), the same seeds for all strategies
    # (n_seeds, n_classes), if tuned; (n_seeds, n_records, n_classes) where each fold has its own.
    multipliers: dict[str, Float] = field(default_factory=dict)
    is_fixed: bool = False  # draws nothing, so every seed is the same estimator

    @property
    def n_seeds(self) -> int:
        """Seeds that the strategy was trained with."""
        return len(next(iter(self.proba.values())))

    def of(self, estimator: str) -> "StrategyPredictions":
        """The same of one estimator."""
        return replace(self, proba={estimator: self.proba[estimator]})

    def first(self, n_seeds: int) -> "StrategyPredictions":
        """The same of the first seeds."""
        proba = {name: values[:n_seeds] for name, values in self.proba.items()}
        multipliers = {name: values[:n_seeds] for name, values in self.multipliers.items()}
        return replace(self, proba=proba, multipliers=multipliers)

    def hits(self, y: Int) -> Float:
        """Share of estimators that are right, shape (n_seeds, n_records)."""
        hits = [[decided == y for _, decided in self.decided(s)] for s in range(self.n_seeds)]
        return np.mean(hits, axis=1)

    def decided(self, seed: int) -> list[tuple[Float, Int]]:
        """Each estimator's probabilities and decisions under a seed."""
        return [
            (per_seed[seed], predict_classes(per_seed[seed], self._multipliers(name, seed)))
            for name, per_seed in self.proba.items()
        ]

    def scores(
        self, y: Int, classes: Sequence[str], compared: Bool, measure: Measure | None = None
    ) -> dict[str, EstimatorScore]:
        """Per estimator, mean over seeds."""
        score = partial(score_predictions, y, classes=classes, compared=compared, measure=measure)
        return {
            name: mean_score(
                [score(p, multipliers=self._multipliers(name, s)) for s, p in enumerate(per_seed)]
            )
            for name, per_seed in self.proba.items()
        }

    def _multipliers(self, estimator: str, seed: int) -> Float | None:
        return self.multipliers[estimator][seed] if estimator in self.multipliers else None


# A scorer of scikit-learn's takes milliseconds for each draw.
MOST_SLOW_DRAWS = 300


@dataclass(frozen=True)
class MeasureDraws:
    """A measure other than balanced accuracy by strategy and seed, mean over the estimators, higher being better."""

    values: Mapping[str, Float]  # by strategy, (n_seeds,)
    draws: Mapping[str, Float]  # (n_draws, n_seeds), with the records drawn anew
    n_units: int

    @classmethod
    def of(
        cls,
        y: Int,
        predictions: Mapping[str, StrategyPredictions],
        measure: Measure,
        *,
        groups: Any,
        n_bootstrap: int,
        seed: int,
    ) -> "MeasureDraws":
        """Draw the records, the same for all strategies (Bayesian bootstrap, Rubin 1981)."""
        n_draws = n_bootstrap if measure.vectorised else min(n_bootstrap, MOST_SLOW_DRAWS)
        drawn = Draws.of(len(y), groups, n_seeds=1, n_draws=n_draws, seed=seed)
        values, draws = {}, {}
        for name, of_strategy in predictions.items():
            single, many = [], []
            for s in range(1 if of_strategy.is_fixed else of_strategy.n_seeds):
                pairs = of_strategy.decided(s)
                single.append(np.mean([measure.value(y, *pair) for pair in pairs]))
                many.append(
                    np.mean(
                        [measure.values(y, *p, drawn.weights, unit=drawn.unit) for p in pairs],
                        axis=0,
                    )
                )
            shape = of_strategy.n_seeds
            values[name] = measure.oriented(np.broadcast_to(single, shape))
            draws[name] = measure.oriented(
                np.broadcast_to(np.transpose(many), (len(many[0]), shape))
            )
        return cls(values, draws, drawn.weights.shape[1])

    def difference(self, strategy: str, against: str, *, level: float = 0.95) -> Interval:
        """The measure of ``strategy`` less that of ``against``, paired by record."""
        n_seeds = len(self.values[strategy])
        seeds = []
        for name in (strategy, against) if n_seeds > 1 else ():
            of_seed = self.draws[name]
            # What chance in single records makes of the spread between seeds.
            apart = of_seed - of_seed.mean(axis=1, keepdims=True)
            chance = float(apart.var(axis=0).mean()) * n_seeds / (n_seeds - 1)
            seeds.append((float(self.values[name].var(ddof=1)), chance))
        draws = (self.draws[strategy] - self.draws[against]).mean(axis=1)
        draws = draws[np.isfinite(draws)]
        estimate = float((self.values[strategy] - self.values[against]).mean())
        records = float(draws.var())
        uncertain = records**2 / max(1, self.n_units - 1)
        factor = wider_interval(records, seeds, n_seeds, uncertain, level=level)
        return stretched(estimate, draws, factor, level=level)
