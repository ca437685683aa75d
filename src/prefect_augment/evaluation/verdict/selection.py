"""Which strategy the hold-out is to confirm, by the scores on validation records."""

from collections.abc import Sequence

import numpy as np

from prefect_augment.errors import ParameterError
from prefect_augment.schema import Choice, Strategy, StrategyScore

SIMPLEST_FIRST = (
    "as_is",
    "threshold",
    "weights",
    "loss",
    "resampling",
    "classic",
    "probe",
    "bagging",
    "soft_labels",
    "clean",
    "model",
    "mixture",
)
# Scores nearer than this are a tie: 0.2 points is one record of a tail class of 250, and is below
# the minimum detectable effect of every table measured (adult's is 0.7 points).
TIE = 0.002


def choose_strategy(scores: Sequence[StrategyScore], *, prefer_model: bool = False) -> Choice:
    """The strategies that the hold-out compares, by validation scores alone.

    ``prefer_model``: the chosen one is the best with synthetic records whatever its score, since
    ``evaluation.on_no_gain = "publish"`` publishes it.

    Where some strategies have more seeds than others (the finalists), only those can win, so that none wins by one
    lucky seed. Among strategies that tie with the top the simplest wins, in the order of ``SIMPLEST_FIRST``, then the
    smaller amount. Two tie when their means differ by at most :func:`tie_width`, or one standard error of their
    difference over common seeds, whichever is larger. ParameterError without a baseline.
    """
    per_strategy: dict[str, list[StrategyScore]] = {}
    for score in sorted(scores, key=lambda s: (s.strategy.name, s.seed)):
        if score.strategy.is_control:
            continue
        per_strategy.setdefault(score.strategy.name, []).append(score)
    baselines = [s for s in per_strategy.values() if not s[0].strategy.has_model]
    models = [s for s in per_strategy.values() if s[0].strategy.has_model]
    if not baselines:
        raise ParameterError(
            "no strategy without synthetic records was scored, so there is nothing to compare with; "
            "score at least 'as is'."
        )
    scale = scale_of(scores)
    best, baseline = _elect(list(per_strategy.values()), scale), _elect(baselines, scale)
    if not best.has_model:
        # A baseline that ties with a noisy model may not tie with the baselines' own best, and what is
        # confirmed has to be what would be published.
        best = baseline
    model = _elect(models, scale) if models else None
    mean = {name: _mean(s) for name, s in per_strategy.items()}
    top = max(mean, key=lambda name: mean[name])
    reason = f"{best.name} has a mean score of {mean[best.name]:.3f} on validation records"
    if top != best.name:
        reason += f"; {top} has {mean[top]:.3f}, which is a tie or rests on fewer seeds"
    return Choice(
        chosen=model if prefer_model and model is not None else best,
        baseline=baseline,
        as_is=next(s.strategy for s in scores if s.strategy.family == "as_is"),
        model=model,
        scores=mean,
        reason=reason + ".",
    )


def scale_of(scores: Sequence[StrategyScore]) -> float:
    """The unit of small differences: 1 for scores in [0, 1], for others the score of as is, in size.

    Without as is it is the largest score. Costs, losses and users' functions have scales of their own.
    """
    if all(s.measure.unit == "points" for s in scores):
        return 1.0
    as_is = [abs(s.score) for s in scores if s.strategy.family == "as_is"]
    return float(np.mean(as_is)) if as_is else max(abs(s.score) for s in scores)


def tie_width(score: StrategyScore, scale: float, gaps: Sequence[float] = ()) -> float:
    """Difference up to which two scores are a tie: :data:`TIE`, or what one record is worth, times the scale.

    One record of a class of average size moves balanced accuracy by 1 / n_validation. Of two ``gaps`` between
    the strategies and more, by seed or by fold, a standard error of their mean is a tie too.
    """
    width = scale * max(TIE, 1.0 / max(1, score.n_validation))
    if len(gaps) < 2:
        return width
    return max(width, float(np.std(gaps, ddof=1) / np.sqrt(len(gaps))))


def _elect(candidates: list[list[StrategyScore]], scale: float) -> Strategy:
    """Simplest of the strategies that tie with the one of the highest mean."""
    most = max(len(s) for s in candidates)
    finalists = sorted(
        (s for s in candidates if len(s) == most), key=lambda s: _simplicity(s[0].strategy)
    )
    top = max(finalists, key=_mean)  # the simplest, where means are equal
    return next(s for s in finalists if _mean(top) - _mean(s) <= _tie(top, s, scale))[0].strategy


def _tie(a: list[StrategyScore], b: list[StrategyScore], scale: float) -> float:
    """Difference in mean score up to which two strategies count as equal, by their common seeds."""
    of_seed = {s.seed: s.score for s in b}
    gaps = [s.score - of_seed[s.seed] for s in a if s.seed in of_seed]
    return tie_width(a[0], scale, gaps)


def _mean(scores: list[StrategyScore]) -> float:
    return float(np.mean([s.score for s in scores]))


def _simplicity(strategy: Strategy) -> tuple[int, float, str]:
    family = "classic" if strategy.is_image_strategy else strategy.family
    return SIMPLEST_FIRST.index(family), strategy.amount, strategy.name
