"""The answers of a verdict in sentences: what to use, what it brings and costs, whether synthetic records help."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefect_augment.evaluation.metrics.bootstrap import Bootstrap
from prefect_augment.evaluation.metrics.predictions import MeasureDraws, StrategyPredictions
from prefect_augment.evaluation.verdict.out_of_fold import OutOfFold, pooled
from prefect_augment.schema import (
    Change,
    Decision,
    Difference,
    EstimatorScore,
    Interval,
    MeasureInfo,
    Privacy,
    StrategyScore,
    SyntheticAnswer,
    Verdict,
)

# Scores that fall by less than this are no price worth a word; so many are named.
LEAST_PRICE, MAX_PRICES = 0.01, 3
BRIER = "Brier score"  # the only one of which less is better
AS_THEY_ARE = "your data as they are"


@dataclass(frozen=True)
class Comparison:
    """The strategies that the hold-out compares, and what may be published."""

    boot: Bootstrap
    predictions: Mapping[str, StrategyPredictions]
    chosen: str
    baseline: str
    as_is: str
    max_recall_loss: float
    level: float
    n_compared: int
    measure: MeasureInfo
    out_of_fold: OutOfFold | None = None
    measured: MeasureDraws | None = None  # of a measure other than balanced accuracy

    @property
    def has_model(self) -> bool:
        """Whether the chosen strategy has synthetic records."""
        return self.predictions[self.chosen].strategy.has_model

    @property
    def best_without(self) -> str:
        """The best way without synthetic records, for a sentence."""
        return AS_THEY_ARE if self.baseline == self.as_is else self.baseline

    @property
    def is_external(self) -> bool:
        """Whether the chosen strategy has records that somebody else made."""
        return self.predictions[self.chosen].strategy.family == "external"

    @property
    def unit(self) -> float:
        """What a share of 1 is in the measure: of a cost or loss, what it is with the data as they are."""
        if self.measured is None or self.measure.unit == "points":
            return 1.0
        return abs(float(self.measured.values[self.as_is].mean())) or 1.0

    def difference(
        self, strategy: str, against: str, *, boot: Bootstrap | None = None, level: float = 0.95
    ) -> Interval:
        """By the measure, higher being better: on the hold-out, and out of fold where that is known."""
        interval = self.on_holdout(strategy, against, boot=boot, level=level)
        of_search = self.out_of_fold
        if of_search is None or not {strategy, against} <= of_search.predictions.keys():
            return interval
        more = of_search.difference(strategy, against, level=level)
        return pooled([interval, more], of_search.measure, level=level)

    def on_holdout(
        self, strategy: str, against: str, *, boot: Bootstrap | None = None, level: float = 0.95
    ) -> Interval:
        """By the measure, higher being better, on the hold-out alone."""
        if self.measured is not None:
            return self.measured.difference(strategy, against, level=level)
        return (boot or self.boot).difference(strategy, against, level=level)


def first_answer(of: OutOfFold, strategy: str, against: str) -> str:
    """What one strategy brings on the validation records alone, before others and the hold-out are known."""
    measure = of.measure.info if of.measure else MeasureInfo()
    gain = _gain(measure, of.difference(strategy, against), over=AS_THEY_ARE)
    return (
        f"First comparison, on {len(of.y):,} validation records. With {strategy}: {gain}. "
        "What else is tried has to do better; the hold-out then decides."
    )


def what_to_use(
    of: Comparison, published: str, gain: Difference | None, price: Sequence[Change]
) -> str:
    """The first answer: the strategy, what it brings over the data as they are, and its price."""
    if of.n_compared < 2:
        return (
            f"Use {published}: only one class can be compared, and its recall alone shows no gain."
        )
    if gain is None:
        why = ": nothing else was clearly better on validation records"
        if of.chosen != of.as_is:
            tried = of.baseline if of.baseline != of.as_is else of.chosen
            why = f". With {tried}: {_gain(of.measure, of.difference(tried, of.as_is))}"
        return f"Use {AS_THEY_ARE}{why}."
    is_external = of.is_external and published == of.chosen
    use = "the external records beside the real ones" if is_external else published
    chance = ", which may be chance" if side(gain.interval) == "inconclusive" else ""
    answer = f"Use {use}: {_gain(of.measure, gain.interval, over=AS_THEY_ARE)}{chance}."
    falls = ", ".join(f"{c.name} {100 * c.before:.1f} to {100 * c.after:.1f}" for c in price)
    return f"{answer} Its price: {falls}." if falls else answer


def on_synthetic(
    of: Comparison, synthetic: SyntheticAnswer, shown: str, boot: Bootstrap | None
) -> str:
    """The second answer: what strategy ``shown`` brings over the best way without synthetic records."""
    if boot is None:
        return (
            f"Synthetic records: no gain shown, since {shown} did no better than {of.best_without} on "
            "validation records."
        )
    lead = {
        "proven": "Synthetic records help, and this is proven",
        "preferred": "Synthetic records: preferred, not proven",
        "harmful": "Synthetic records do harm",
    }.get(synthetic, "Synthetic records: no gain shown")
    gap = of.difference(shown, of.baseline, boot=boot, level=of.level)
    over = f"{of.best_without}, the best way without them"
    answer = f"{lead}. With {shown}: {_gain(of.measure, gap, over=over, level=of.level)}."
    worst = boot.worst_recall_difference(shown, of.as_is)
    if worst.high < -of.max_recall_loss:
        loss = f"{_signed_points(worst.estimate)} points {_ends(worst, 0.95)}"
        answer += (
            f" The worst recall changes by {loss}; the limit is {100 * of.max_recall_loss:.1f}."
        )
    return answer


def losses_by_estimator(of: Comparison, gains: Mapping[str, Interval], published: str) -> list[str]:
    """A sentence for each estimator to which what is published is shown to do harm; a mean would hide it."""
    return [
        f"{estimator} loses by it. With {published}: {_gain(of.measure, gain, over=AS_THEY_ARE)}."
        for estimator, gain in gains.items()
        if gain.high < 0
    ]


def with_safety(verdict: Verdict, privacy: Privacy | None) -> Verdict:
    """Add the third answer, for synthetic records that go out; none where they were not attacked."""
    if privacy is None:
        return verdict
    answer = {"none shown": "yes, as far as the attacks show", "leak": "no", "gap": "no"}
    why = privacy.sentence.split(". ")[0].rstrip(".")  # the report has the rest
    safe = f"Safe to publish: {answer.get(privacy.finding, 'not known')}. {why}."
    return verdict.model_copy(update={"answers": (*verdict.answers, safe)})


def with_controls(verdict: Verdict, scores: Sequence[StrategyScore]) -> Verdict:
    """Add where a gain by soft labels comes from, on validation records, if they were tried."""
    first = {s.strategy.family: s for s in scores if s.seed == 0}
    if not {"ensemble", "model"} <= first.keys():
        return verdict
    named = {
        verdict.baseline: next(s for s in scores if s.strategy.name == verdict.baseline),
        "soft labels of the real records alone": None
        if verdict.baseline == "soft labels"
        else first.get("soft_labels"),
        "the ensemble that gives the labels, itself": first["ensemble"],
        f"with {first['model'].strategy.name}": first["model"],
    }
    parts = ", ".join(f"{name} {_shown(score)}" for name, score in named.items() if score)
    reason = f"What soft labels bring, by {verdict.measure.title} on validation records: {parts}."
    return verdict.model_copy(update={"reasons": (*verdict.reasons, reason)})


def _shown(score: StrategyScore) -> str:
    value = score.measure.shown(score.score)
    return f"{100 * value:.1f}" if score.measure.unit == "points" else f"{value:.3g}"


def price(
    published: Mapping[str, EstimatorScore], as_is: Mapping[str, EstimatorScore]
) -> tuple[Change, ...]:
    """Scores by estimator that are worse than as is by a point or more, the largest loss first."""

    def means(scores: Mapping[str, EstimatorScore]) -> dict[str, float]:
        named = [
            {
                "macro-F1": score.macro_f1,
                "average precision": score.auprc,
                BRIER: score.brier,
                **{f"recall of {label}": recall for label, recall in score.recall.items()},
            }
            for score in scores.values()
        ]
        return {name: float(np.mean([of[name] for of in named])) for name in named[0]}

    before, after = means(as_is), means(published)
    losses = {n: (after[n] - before[n]) * (1 if n == BRIER else -1) for n in before}
    worst = sorted((n for n in losses if losses[n] >= LEAST_PRICE), key=lambda n: -losses[n])
    return tuple(Change(name=n, before=before[n], after=after[n]) for n in worst[:MAX_PRICES])


def side(interval: Interval) -> Decision:
    """On which side of no difference an interval lies."""
    if interval.low > 0:
        return "accept"
    return "reject" if interval.high < 0 else "inconclusive"


def _gain(measure: MeasureInfo, interval: Interval, *, over: str = "", level: float = 0.95) -> str:
    """The difference by the measure, with its interval; ``over`` is what it is a difference to."""
    if measure.unit == "points":
        over = over and f" over {over}"
        return f"{_signed_points(interval.estimate)} points of {measure.title}{over} {_ends(interval, level)}"
    if not measure.higher_is_better:
        interval = Interval(estimate=-interval.estimate, low=-interval.high, high=-interval.low)
    over = over and f" against {over}"
    e, low, high = (_signed(v, ".3g") for v in (interval.estimate, interval.low, interval.high))
    return f"{measure.title} {e}{over} ({100 * level:.4g} % interval {low} to {high})"


def _ends(interval: Interval, level: float) -> str:
    low, high = map(_signed_points, (interval.low, interval.high))
    return f"({100 * level:.4g} % interval {low} to {high})"


def _signed_points(share: float) -> str:
    return _signed(round(100 * share, 1) + 0.0, ".1f")  # no "-0.0"


def _signed(x: float, form: str) -> str:
    """Write a number with its sign, the minus as in the report's tables."""
    return f"{x:+{form}}".replace("-", "−")
