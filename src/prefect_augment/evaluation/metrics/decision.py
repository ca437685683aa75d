"""What the hold-out says about the chosen strategy.

The comparison is fixed beforehand: the chosen strategy, the best baseline (a strategy without
synthetic records) and as is. This module reads predictions and trains nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics.bootstrap import Bootstrap, paired_bootstrap
from prefect_augment.evaluation.metrics.scores import predict_classes, score_predictions
from prefect_augment.schema import (
    Decision,
    Difference,
    EstimatorScore,
    Interval,
    Strategy,
    Verdict,
)

__all__ = ["OnNoGain", "StrategyPredictions", "decide", "inconclusive"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]
OnNoGain = Literal["recipe", "fail", "publish"]


@dataclass(frozen=True)
class StrategyPredictions:
    """A strategy's probabilities on the hold-out, per estimator."""

    strategy: Strategy
    proba: dict[str, Float]  # (n_seeds, n_records, n_classes), the same seeds for all strategies
    multipliers: dict[str, Float] = field(default_factory=dict)  # (n_seeds, n_classes), if tuned

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


def decide(
    y: Int,  # (n_records,)
    predictions: Mapping[str, StrategyPredictions],  # by strategy name
    *,
    classes: Sequence[str],
    compared: Bool,  # (n_classes,); classes without a hold-out record are removed here
    chosen: str,
    baseline: str,
    as_is: str,
    model: str | None = None,  # best strategy with synthetic records: shown, without a vote
    on_no_gain: OnNoGain = "recipe",
    max_recall_loss: float = 0.02,
    n_bootstrap: int = 2000,
    seed: int = 0,
    groups: Any = None,
    twins: Bool | None = None,  # (n_records,) values that also occur in the training part
    not_compared: Mapping[str, str] | None = None,  # reason by class
) -> Verdict:
    """The verdict of the hold-out on the chosen strategy.

    ``accept`` where the 95 % interval of the difference lies above 0 and the worst recall does not
    fall by more than ``max_recall_loss``; ``reject`` where the interval lies below 0, or the
    interval of the worst recall's fall lies beyond that loss; ``inconclusive`` otherwise, and with
    fewer than two compared classes. A chosen strategy with synthetic records is compared with the
    baseline, a chosen baseline with as is. Class differences and the decisions on them are
    corrected for the number of classes (max-T).

    With ``on_no_gain="publish"`` the chosen strategy is published whatever the verdict. Otherwise a
    strategy that is not accepted gives way to the best baseline, or to as is where that baseline is
    worse. (The caller raises for ``fail``.) ParameterError if a strategy has no predictions.
    """
    shown = [] if model is None else [model]
    for name in (chosen, baseline, as_is, *shown):
        if name not in predictions:
            raise ParameterError(
                f"no hold-out predictions of strategy {name!r}, only of {sorted(predictions)}."
            )
    n_k = np.bincount(y, minlength=len(classes))
    compared = compared & (n_k > 0)
    why_not = _why_not_compared(classes, compared, n_k, not_compared or {})
    if not compared.any():
        return inconclusive(
            ("The hold-out has no record of any compared class, so it compares no strategy.",),
            chosen=chosen,
            baseline=baseline,
            published=chosen if on_no_gain == "publish" else baseline,
            not_compared=why_not,
            n_holdout=len(y),
            n_seeds=predictions[chosen].n_seeds,
        )

    # Paired intervals, the same draws for the strategies that take part in the decision.
    names = list(dict.fromkeys([chosen, baseline, as_is]))
    hits = {name: predictions[name].hits(y) for name in names}
    boot = paired_bootstrap(
        y, hits, compared=compared, groups=groups, n_bootstrap=n_bootstrap, seed=seed
    )
    boots = dict.fromkeys(names, boot)
    if model is not None and model not in names:
        # On its own: draws depend on all strategies in them, and one that is only shown must not decide.
        hits[model] = predictions[model].hits(y)
        boots[model] = paired_bootstrap(
            y, {name: hits[name] for name in (model, baseline)},
            compared=compared, groups=groups, n_bootstrap=n_bootstrap, seed=seed,
        )  # fmt: skip

    # The decision and its consequence.
    has_model = predictions[chosen].strategy.has_model
    against = baseline if has_model else as_is
    decision, reasons = _decision(
        boot, chosen, against, as_is, max_recall_loss, int(compared.sum())
    )
    published, why = _what_to_publish(
        boot, decision, has_model, chosen, baseline, as_is, on_no_gain
    )
    if predictions[chosen].strategy.family == "external":
        why = _advice_on_external(decision, published)

    # What else the report shows.
    pairs = dict.fromkeys(
        [(chosen, against), (chosen, as_is), (baseline, as_is), *((m, baseline) for m in shown)]
    )
    differences = tuple(
        Difference(strategy=a, against=b, interval=boots[a].difference(a, b))
        for a, b in pairs
        if a != b
    )
    gap = boot.difference(chosen, against)
    of_class = {classes[k]: i for k, i in boot.class_difference(chosen, against).items()}
    alone = np.zeros(len(y), dtype=bool) if twins is None else ~twins & compared[y]
    return Verdict(
        decision=decision,
        reasons=(*reasons, why),
        chosen=chosen,
        baseline=baseline,
        published=published,
        strategies={name: predictions[name].scores(y, classes, compared) for name in boots},
        balanced_accuracy={name: b.balanced_accuracy(name) for name, b in boots.items()},
        differences=differences,
        # A strategy and itself do not differ: nothing could have been detected.
        minimum_detectable_effect=(gap.high - gap.low) / 2 if chosen != against else 1.0,
        class_recall={
            name: {classes[k]: i for k, i in b.class_recall(name).items()}
            for name, b in boots.items()
        },
        class_decisions={name: _side(i) for name, i in of_class.items()},
        class_differences=of_class,
        not_compared=why_not,
        n_holdout=len(y),
        n_seeds=predictions[chosen].n_seeds,
        without_twins={name: _balanced(y, hits[name], alone) for name in boots}
        if alone.any()
        else {},
        n_without_twins=int(alone.sum()),
    )


def _decision(
    boot: Bootstrap, chosen: str, against: str, as_is: str, max_recall_loss: float, n_compared: int
) -> tuple[Decision, list[str]]:
    """Decision on ``chosen`` and the reasons for it."""
    if n_compared < 2:
        return "inconclusive", ["Only one class can be compared: its recall alone shows no gain."]
    if chosen == against:
        return "inconclusive", [
            f"No strategy did better on validation records than {chosen}, so there is no gain to show."
        ]
    gap = boot.difference(chosen, against)
    side = _side(gap)
    verb = {"accept": "raises", "reject": "lowers", "inconclusive": "does not clearly change"}[side]
    detectable = 100 * (gap.high - gap.low) / 2
    reasons = [
        f"{chosen} {verb} balanced accuracy against {against}: {_points(gap)}.",
        f"Effects below {detectable:.1f} points cannot be told from chance on this hold-out.",
    ]
    worst = boot.worst_recall_difference(chosen, as_is)
    if chosen == as_is or worst.estimate >= -max_recall_loss:
        return side, reasons
    reasons.append(
        f"The worst class's recall changes by {_points(worst)} against {as_is}; a loss of "
        f"{100 * max_recall_loss:.1f} points is allowed."
    )
    exceeds = worst.high < -max_recall_loss
    return "reject" if exceeds or side == "reject" else "inconclusive", reasons


def _what_to_publish(
    boot: Bootstrap,
    decision: Decision,
    has_model: bool,
    chosen: str,
    baseline: str,
    as_is: str,
    on_no_gain: OnNoGain,
) -> tuple[str, str]:
    if decision == "accept":
        return chosen, f"The recipe of {chosen} is published."
    if on_no_gain == "publish":
        return (
            chosen,
            f"The recipe of {chosen} is published all the same, because on_no_gain is publish.",
        )
    is_worse = decision == "reject" and not has_model
    is_worse = is_worse or _side(boot.difference(baseline, as_is)) == "reject"
    strategy = as_is if is_worse else baseline
    detail = f", as {baseline} is shown to be worse" if is_worse else ", the best baseline"
    if on_no_gain == "fail":
        return strategy, f"on_no_gain is fail; otherwise {strategy}{detail}, would be published."
    return strategy, f"The recipe of {strategy} is published{detail}."


def _advice_on_external(decision: Decision, published: str) -> str:
    """What to do with external synthetic records; none of them is published."""
    if decision == "accept":
        return "Train on the real records together with these."
    advice = "Do without them" if decision == "reject" else "Nothing speaks for them so far"
    return f"{advice}: of the other strategies use {published}."


def inconclusive(
    reasons: tuple[str, ...],
    *,
    chosen: str,
    baseline: str,
    published: str,
    not_compared: dict[str, str],
    n_holdout: int = 0,
    n_seeds: int = 0,
) -> Verdict:
    """The verdict of a run in which no class can be compared."""
    return Verdict(
        decision="inconclusive",
        reasons=reasons,
        chosen=chosen,
        baseline=baseline,
        published=published,
        strategies={},
        balanced_accuracy={},
        differences=(),
        minimum_detectable_effect=1.0,
        class_recall={},
        class_decisions={},
        not_compared=not_compared,
        n_holdout=n_holdout,
        n_seeds=n_seeds,
    )


def _why_not_compared(
    classes: Sequence[str], compared: Bool, n_k: Int, known: Mapping[str, str]
) -> dict[str, str]:
    reasons = {}
    for k in np.flatnonzero(~compared):
        missing = "it has no record in the hold-out" if n_k[k] == 0 else "it is not in all parts"
        reasons[classes[int(k)]] = known.get(classes[int(k)], missing)
    return reasons


def _side(interval: Interval) -> Decision:
    if interval.low > 0:
        return "accept"
    return "reject" if interval.high < 0 else "inconclusive"


def _points(interval: Interval) -> str:
    e, low, high = (100 * v for v in (interval.estimate, interval.low, interval.high))
    return f"{e:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"


def _balanced(y: Int, hits: Float, rows: Bool) -> float:
    """Balanced accuracy, mean over estimators and seeds, on some of the records."""
    y, hit_rate = y[rows], hits[:, rows].mean(axis=0)
    return float(np.mean([hit_rate[y == k].mean() for k in np.unique(y)]))


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
