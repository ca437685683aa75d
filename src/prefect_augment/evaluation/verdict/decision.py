"""What the hold-out answers: what to use and what it brings, and whether synthetic records help.

The comparison is fixed beforehand: the chosen strategy, the best baseline (a strategy without
synthetic records) and as is. This module reads predictions and trains nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

import numpy as np
from scipy.special import ndtr, ndtri

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics.bootstrap import Bootstrap, paired_bootstrap
from prefect_augment.evaluation.metrics.measures import Measure
from prefect_augment.evaluation.metrics.predictions import MeasureDraws, StrategyPredictions
from prefect_augment.evaluation.verdict.answers import (
    Comparison,
    losses_by_estimator,
    on_synthetic,
    price,
    side,
    what_to_use,
)
from prefect_augment.evaluation.verdict.out_of_fold import OutOfFold
from prefect_augment.schema import Difference, Interval, MeasureInfo, SyntheticAnswer, Verdict

OnNoGain = Literal["recipe", "fail", "publish"]
Require = Literal["proven", "preferred"]

# What a sceptic expects of synthetic records before the comparison: most generators harm most
# classifiers a little (docs/verdict.md has the measurement). Mean and standard deviation of the gain.
PRIOR_MEAN, PRIOR_SD = -0.005, 0.02
# Seeds of strategies that draw, for "proven": two have a spread with one degree of freedom, and their intervals
# lie above 0 in 2.9 % of comparisons without a gain (benchmarks/evidence.py).
LEAST_SEEDS = 3
# "preferred": a loss of a point is less likely than this.
LOSS, MAX_CHANCE_OF_LOSS = 0.01, 0.1


class _Drawn(TypedDict):
    """What every bootstrap of one verdict shares."""

    groups: Any
    n_bootstrap: int
    seed: int


def decide(
    y: Int,  # (n_records,)
    predictions: Mapping[str, StrategyPredictions],  # by strategy name
    *,
    classes: Sequence[str],
    measure: Measure | None = None,  # balanced accuracy by default
    compared: Bool,  # (n_classes,); classes without a hold-out record are removed here
    chosen: str,
    baseline: str,
    as_is: str,
    model: str | None = None,  # best strategy with synthetic records: shown, without a vote
    on_no_gain: OnNoGain = "recipe",
    require: Require = "preferred",
    max_recall_loss: float = 0.02,
    level: float = 0.95,  # of the interval that shows whether synthetic records help
    n_bootstrap: int = 2000,
    seed: int = 0,
    groups: Any = None,
    twins: Bool | None = None,  # (n_records,) values that also occur in the training part
    not_compared: Mapping[str, str] | None = None,  # reason by class
    out_of_fold: OutOfFold | None = None,  # of the search
) -> Verdict:
    """The verdict of the hold-out: two answers, and what is published.

    Gains are measured on the hold-out and out of fold together, where ``out_of_fold`` has both strategies. Synthetic
    records are ``proven`` where the interval of their gain over the best baseline lies above 0, the hold-out alone has
    a gain, the worst class is not shown to lose more than ``max_recall_loss`` against as is, and strategies that draw
    were trained with at least three seeds; ``harmful`` where the interval lies below 0 or the worst class is shown to
    lose more; ``preferred`` where a sceptic expects a gain and a loss of a point has a chance below 10 %; else ``no
    gain shown``. The chosen strategy is published where ``require`` is met, and with ``on_no_gain="publish"`` whatever
    the answer. Otherwise it gives way to the best baseline, or to as is where that baseline did no better, or its worst
    class is shown to lose too much. (The caller raises for ``fail``.)

    ``decision`` is about what is published, against the data as they are: ``accept`` where its
    interval lies above 0, ``reject`` below, else ``inconclusive``. Class differences are corrected
    for the number of classes (max-T). ParameterError if a strategy has no predictions.
    """
    for name in (chosen, baseline, as_is):
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
    drawn: _Drawn = {"groups": groups, "n_bootstrap": n_bootstrap, "seed": seed}
    boot = paired_bootstrap(y, hits, compared=compared, **drawn)
    boots = dict.fromkeys(names, boot)
    if model and model in predictions and model not in names:
        # On its own: draws depend on all strategies in them, and one that is only shown must not decide.
        hits[model] = predictions[model].hits(y)
        of_model = {name: hits[name] for name in (model, baseline, as_is)}
        boots[model] = paired_bootstrap(y, of_model, compared=compared, **drawn)

    # The answers and their consequence.
    of = Comparison(
        boot, predictions, chosen, baseline, as_is, max_recall_loss, level, int(compared.sum()),
        MeasureInfo(), out_of_fold,
    )  # fmt: skip
    if measure is not None and measure.info != MeasureInfo():
        every = {name: predictions[name] for name in boots}
        measured = MeasureDraws.of(y, every, measure, **drawn)
        of = replace(of, measure=measure.info, measured=measured)
    shown = chosen if of.has_model else model
    synthetic = _synthetic_answer(of, shown, boots.get(shown or ""))
    published = _what_to_publish(of, synthetic, on_no_gain, require)
    scores = {name: predictions[name].scores(y, classes, compared, measure) for name in boots}
    gain = None
    if published != as_is:
        interval = of.difference(published, as_is)
        gain = Difference(strategy=published, against=as_is, interval=interval)
    costs = price(scores[published], scores[as_is])
    decision = side(gain.interval) if gain and of.n_compared > 1 else "inconclusive"
    own = measure if of.measured else None
    by_estimator = _by_estimator(of, published, y, compared, own, drawn) if gain else {}
    answers = (
        what_to_use(of, published, gain, costs),
        *([on_synthetic(of, synthetic, shown, boots.get(shown))] if shown else []),
    )

    # What else the report shows.
    against = baseline if of.has_model else as_is
    pairs = [(published, as_is), (chosen, against), (chosen, as_is), (baseline, as_is)]
    pairs += [(shown, baseline)] if shown in boots else []
    differences = [
        Difference(strategy=a, against=b, interval=boots[a].difference(a, b))
        for a, b in dict.fromkeys(pairs)
        if a != b
    ]
    gap = of.on_holdout(chosen, against)
    # A strategy and itself do not differ: nothing could have been detected.
    detectable = (gap.high - gap.low) / 2 if chosen != against else 1.0
    by_class = boot.class_difference(published if gain else chosen, as_is)
    of_class = {classes[k]: i for k, i in by_class.items()}
    untwinned = np.zeros(len(y), dtype=bool) if twins is None else ~twins & compared[y]
    return Verdict(
        decision=decision,
        synthetic=synthetic,
        answers=answers,
        reasons=(
            *losses_by_estimator(of, by_estimator, published),
            *_reasons(of, published, detectable, on_no_gain),
        ),
        measure=of.measure,
        gain=gain,
        by_estimator=by_estimator,
        price=costs,
        chosen=chosen,
        baseline=baseline,
        published=published,
        strategies=scores,
        balanced_accuracy={name: b.balanced_accuracy(name) for name, b in boots.items()},
        differences=tuple(differences),
        minimum_detectable_effect=detectable,
        class_recall={
            name: {classes[k]: i for k, i in b.class_recall(name).items()}
            for name, b in boots.items()
        },
        class_decisions={name: side(i) for name, i in of_class.items()},
        class_differences=of_class,
        not_compared=why_not,
        n_holdout=len(y),
        n_seeds=predictions[chosen].n_seeds,
        without_twins={name: _balanced(y, hits[name], untwinned) for name in boots}
        if untwinned.any()
        else {},
        n_without_twins=int(untwinned.sum()),
    )


def _by_estimator(
    of: Comparison,
    published: str,
    y: Int,
    compared: Bool,
    measure: Measure | None,  # None: balanced accuracy
    drawn: _Drawn,
) -> dict[str, Interval]:
    """What each estimator alone gains by the published strategy."""
    gains = {}
    for estimator in of.predictions[published].proba:
        alone = {name: of.predictions[name].of(estimator) for name in (published, of.as_is)}
        if measure is not None:
            draws: MeasureDraws | Bootstrap = MeasureDraws.of(y, alone, measure, **drawn)
        else:
            hits = {name: predictions.hits(y) for name, predictions in alone.items()}
            draws = paired_bootstrap(y, hits, compared=compared, **drawn)
        gains[estimator] = draws.difference(published, of.as_is)
    return gains


def _synthetic_answer(of: Comparison, shown: str | None, boot: Bootstrap | None) -> SyntheticAnswer:
    """Whether the synthetic records of strategy ``shown`` help over the best way without them."""
    if shown is None:
        return "not tried"
    if boot is None or of.n_compared < 2:
        return "no gain shown"
    gap, plain = (
        of.difference(shown, of.baseline, boot=boot, level=level) for level in (of.level, 0.95)
    )
    confirmed = of.on_holdout(shown, of.baseline, boot=boot).estimate > 0
    worst = boot.worst_recall_difference(shown, of.as_is)
    if plain.high < 0 or worst.high < -of.max_recall_loss:
        return "harmful"
    if not of.has_model:  # validation did not choose it, so a gain here is one of two looks
        return "no gain shown"
    pair = [of.predictions[name] for name in (shown, of.baseline)]
    has_seeds = pair[0].n_seeds >= LEAST_SEEDS or all(p.is_fixed for p in pair)
    if gap.low > 0 and confirmed and has_seeds:
        return "proven"
    is_guarded = worst.estimate >= -of.max_recall_loss
    return "preferred" if is_guarded and is_preferred(gap, of.unit) else "no gain shown"


def is_preferred(gap: Interval, unit: float) -> bool:
    """Whether a sceptic expects a gain, and hardly a loss (normal prior, normal likelihood).

    The interval is read as one of 95 %: at a later look it is wider, and the sceptic more so.
    """
    estimate, half = gap.estimate / unit, (gap.high - gap.low) / 2 / unit
    variance = (half / ndtri(0.975)) ** 2
    if variance == 0:
        return estimate > 0
    precision = 1 / variance + 1 / PRIOR_SD**2
    mean = (estimate / variance + PRIOR_MEAN / PRIOR_SD**2) / precision
    chance_of_loss = float(ndtr((-LOSS - mean) * np.sqrt(precision)))
    return mean > 0 and chance_of_loss < MAX_CHANCE_OF_LOSS


def _what_to_publish(
    of: Comparison, synthetic: SyntheticAnswer, on_no_gain: OnNoGain, require: Require
) -> str:
    enough = ("proven",) if require == "proven" else ("proven", "preferred")
    if on_no_gain == "publish" or (of.has_model and synthetic in enough):
        return of.chosen
    is_worse = of.baseline != of.as_is and (
        of.difference(of.baseline, of.as_is).estimate <= 0
        or of.boot.worst_recall_difference(of.baseline, of.as_is).high < -of.max_recall_loss
    )
    return of.as_is if is_worse else of.baseline


def _reasons(of: Comparison, published: str, detectable: float, on_no_gain: OnNoGain) -> list[str]:
    """What the answers rest on, and what follows for the version."""
    reasons = []
    if of.n_compared > 1 and detectable < 1 and of.measure.unit == "points":
        reasons.append(
            f"Effects below {100 * detectable:.1f} points cannot be told from chance on this hold-out."
        )
    if of.is_external:
        return reasons
    if published == of.chosen and on_no_gain == "publish":
        return [
            *reasons,
            f"{published} is published whatever the answers, because on_no_gain is publish.",
        ]
    if on_no_gain == "fail" and published != of.chosen:
        return [*reasons, f"on_no_gain is fail; otherwise {published} would be published."]
    if published == of.as_is:
        return [*reasons, "The real records are published as they are."]
    return [*reasons, f"The recipe of {published} is published."]


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
        answers=reasons[:1],
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


def _balanced(y: Int, hits: Float, rows: Bool) -> float:
    """Balanced accuracy, mean over estimators and seeds, on some of the records."""
    y, hit_rate = y[rows], hits[:, rows].mean(axis=0)
    return float(np.mean([hit_rate[y == k].mean() for k in np.unique(y)]))
