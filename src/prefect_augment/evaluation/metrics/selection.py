"""Which arm to take to the hold-out, by the scores on val.

What the hold-out then says is :func:`~prefect_augment.evaluation.metrics.decision.decide`, offered here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics.bootstrap import paired_bootstrap
from prefect_augment.evaluation.metrics.decision import ArmPredictions, OnNoGain, decide
from prefect_augment.schema.base import Arm, ArmScore

__all__ = ["TIE", "ArmChoice", "ArmPredictions", "choose_arm", "decide", "paired_bootstrap"]

SIMPLEST_FIRST = (
    "as_is",
    "threshold",
    "weights",
    "loss",
    "resampling",
    "classic",
    "model",
    "mixture",
)
# Scores nearer than this are a tie: 0.2 points is one record of a tail class of 250, and is below
# the minimum detectable effect of every table measured (adult's is 0.7 points).
TIE = 0.002


@dataclass(frozen=True)
class ArmChoice:
    """What val says.

    Attributes
    ----------
    best : Arm
        The arm to take to the hold-out.
    baseline : Arm
        The best arm without synthetic records.
    model : Arm or None
        The best arm with synthetic records, where there is one.
    mean : dict of str to float
        Mean score per arm name, in [0, 1].
    n_seeds : dict of str to int
    reason : str
        The choice in one sentence.
    """

    best: Arm
    baseline: Arm
    model: Arm | None
    mean: dict[str, float]
    n_seeds: dict[str, int]
    reason: str

    def to_verify(self, on_no_gain: OnNoGain) -> Arm:
        """The arm that the hold-out is asked about: the one that would be published.

        With ``publish`` that is the model's, whatever val says of it.
        """
        return self.model if on_no_gain == "publish" and self.model is not None else self.best


def choose_arm(scores: Sequence[ArmScore]) -> ArmChoice:
    """The best arm, the best baseline and the best arm with a model, by their scores on val.

    Parameters
    ----------
    scores : sequence of ArmScore
        Any number of seeds per arm. Where some arms have more seeds than others (the finalists),
        only those stand for election, so that no arm wins by one lucky seed.

    Returns
    -------
    ArmChoice
        Among arms that tie with the top, the simplest: as is before threshold, weights,
        loss, resampling, classic, model, mixture; then the smaller amount. Two arms tie when their means
        differ by at most 0.002, one record's worth of score, or one standard error of their
        difference over common seeds, whichever is largest.

    Raises
    ------
    ParameterError
        If no score is of an arm without synthetic records.
    """
    per_arm: dict[str, list[ArmScore]] = {}
    for score in sorted(scores, key=lambda s: (s.arm.name, s.seed)):
        per_arm.setdefault(score.arm.name, []).append(score)
    baselines = [s for s in per_arm.values() if not s[0].arm.has_model]
    models = [s for s in per_arm.values() if s[0].arm.has_model]
    if not baselines:
        raise ParameterError(
            "choose_arm found no arm without synthetic records to compare with; "
            "score at least 'as is'."
        )
    best, baseline = _elect(list(per_arm.values())), _elect(baselines)
    if not best.has_model:
        # A baseline that ties with a noisy model may not tie with the baselines' own best, and what is
        # judged has to be what would be published.
        best = baseline
    model = _elect(models) if models else None
    mean = {name: _mean(s) for name, s in per_arm.items()}
    top = max(mean, key=lambda name: mean[name])
    reason = f"{best.name} has a mean score of {mean[best.name]:.3f} on val"
    if top != best.name:
        reason += f"; {top} has {mean[top]:.3f}, which is a tie or rests on fewer seeds"
    return ArmChoice(
        best=best,
        baseline=baseline,
        model=model,
        mean=mean,
        n_seeds={name: len(s) for name, s in per_arm.items()},
        reason=reason + ".",
    )


def _elect(candidates: list[list[ArmScore]]) -> Arm:
    """Simplest of the arms that tie with the one of the highest mean."""
    most = max(len(s) for s in candidates)
    finalists = sorted(
        (s for s in candidates if len(s) == most), key=lambda s: _simplicity(s[0].arm)
    )
    top = max(finalists, key=_mean)  # the simplest, where means are equal
    return next(s for s in finalists if _mean(top) - _mean(s) <= _tie_width(top, s))[0].arm


def _tie_width(a: list[ArmScore], b: list[ArmScore]) -> float:
    """Difference in mean score up to which two arms count as equal."""
    # One record of a class of average size moves balanced accuracy by 1 / n_val.
    width = max(TIE, 1.0 / a[0].n_val) if a[0].n_val else TIE
    of_seed = {s.seed: s.score for s in b}
    gaps = [s.score - of_seed[s.seed] for s in a if s.seed in of_seed]
    if len(gaps) < 2:
        return width
    return max(width, float(np.std(gaps, ddof=1) / np.sqrt(len(gaps))))


def _mean(scores: list[ArmScore]) -> float:
    return float(np.mean([s.score for s in scores]))


def _simplicity(arm: Arm) -> tuple[int, float, str]:
    return SIMPLEST_FIRST.index(arm.family), arm.amount, arm.name
