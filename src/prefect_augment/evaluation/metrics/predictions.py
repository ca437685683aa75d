"""What strategies predict of records that they were not trained on, and a measure of it with its intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.evaluation.metrics.bootstrap import Draws, stretched, wider_interval
from prefect_augment.evaluation.metrics.measures import Measure
from prefect_augment.evaluation.metrics.scores import mean_score, predict_classes, score_predictions
from prefect_augment.schema import EstimatorScore, Interval, Strategy


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
        return {
            name: mean_score(
                [
                    score_predictions(
                        y,
                        proba,
                        classes=classes,
                        compared=compared,
                        multipliers=self._multipliers(name, s),
                        measure=measure,
                    )
                    for s, proba in enumerate(per_seed)
                ]
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
