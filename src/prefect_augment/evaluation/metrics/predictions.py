"""What a strategy's estimators predict on records that they were not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prefect_augment.evaluation.metrics.scores import predict_classes, score_predictions
from prefect_augment.schema import EstimatorScore, Strategy

__all__ = ["StrategyPredictions"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class StrategyPredictions:
    """A strategy's probabilities on the hold-out, per estimator."""

    strategy: Strategy
    proba: dict[str, Float]  # (n_seeds, n_records, n_classes), the same seeds for all strategies
    multipliers: dict[str, Float] = field(default_factory=dict)  # (n_seeds, n_classes), if tuned
    is_fixed: bool = False  # draws nothing, so every seed is the same estimator

    @property
    def n_seeds(self) -> int:
        """Seeds that the strategy was trained with."""
        return len(next(iter(self.proba.values())))

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

    def scores(self, y: Int, classes: Sequence[str], compared: Bool) -> dict[str, EstimatorScore]:
        """Per estimator, mean over seeds."""
        return {
            name: _mean_score(
                [
                    score_predictions(
                        y,
                        proba,
                        classes=classes,
                        compared=compared,
                        multipliers=self._multipliers(name, s),
                    )
                    for s, proba in enumerate(per_seed)
                ]
            )
            for name, per_seed in self.proba.items()
        }

    def _multipliers(self, estimator: str, seed: int) -> Float | None:
        return self.multipliers[estimator][seed] if estimator in self.multipliers else None


def _mean_score(scores: list[EstimatorScore]) -> EstimatorScore:
    """Mean over seeds; the worst class is that of the mean recalls."""
    recall = {k: float(np.mean([s.recall[k] for s in scores])) for k in scores[0].recall}
    worst = min(recall, key=lambda k: recall[k])
    return EstimatorScore(
        balanced_accuracy=float(np.mean([s.balanced_accuracy for s in scores])),
        macro_f1=float(np.mean([s.macro_f1 for s in scores])),
        auprc=float(np.mean([s.auprc for s in scores])),
        worst_recall=recall[worst],
        worst_class=worst,
        brier=float(np.mean([s.brier for s in scores])),
        recall=recall,
    )
