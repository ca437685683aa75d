"""What a strategy's estimators predict on records that they were not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.evaluation.metrics.measures import Measure
from prefect_augment.evaluation.metrics.scores import mean_score, predict_classes, score_predictions
from prefect_augment.schema import EstimatorScore, Strategy


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
        hits: Float = np.mean(
            [
                [
                    predict_classes(proba, self._multipliers(name, s)) == y
                    for s, proba in enumerate(per_seed)
                ]
                for name, per_seed in self.proba.items()
            ],
            axis=0,
        )
        return hits

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
