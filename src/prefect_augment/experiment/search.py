"""The search on val by successive halving: pilots of every setting, then fewer arms in full.

1. *Pilots*: every setting of every arm, learners with a third of their steps, one seed, three of the five
   folds where arms are compared by folds.
2. *Full*: the best setting of the best four arms, all steps, all folds, one seed. Beside these go on, whatever
   their scores, the records as they are and the best arm with synthetic records, since both are compared on the
   hold-out.
3. *Seeds*: the best three of these and as is, with all seeds.

Who goes on is decided by counts and scores. With a budget in minutes the clock says how many: more arms than four,
or fewer, and so many seeds as there is time for (:mod:`.clock`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from prefect_augment.evaluation.metrics.selection import TIE
from prefect_augment.experiment.evaluator import Synthetic, Wishes, Workbench, kept_synthetic
from prefect_augment.experiment.open_evaluator import open_bench
from prefect_augment.experiment.score import out_of_fold, score_predicted
from prefect_augment.params import Budget, Classic, Gate, ModelParams
from prefect_augment.plan.search_space import N_KEPT, PILOT_EFFORT, PILOT_FOLDS
from prefect_augment.schema.base import (
    Arm,
    ArmScore,
    BalancePlan,
    Choice,
    DatasetRef,
    Fact,
    GateReport,
)
from prefect_augment.schema.experiment import Rung, SearchFacts, Trial
from prefect_augment.shards.staged import load_facts
from prefect_augment.storage.staging import Stage, stage_key
from prefect_augment.storage.store import Store
from prefect_augment.synthesis.effort import effort

if TYPE_CHECKING:
    from prefect_augment.experiment.table_evaluator import TableBench

__all__ = [
    "N_FINALISTS",
    "best_settings",
    "decided",
    "finalists",
    "go_on",
    "pilot",
    "rung",
]

ALGORITHM_VERSION = 2

N_FINALISTS = 3  # arms that are scored with all seeds, beside as is


class _Pilots(Fact):
    """The receipt of an arm's pilots."""

    scores: tuple[ArmScore, ...]


def pilot(
    dataset: DatasetRef,
    *,
    arms: Sequence[Arm],
    plan: BalancePlan,
    model: ModelParams,
    classic: Classic,
    gate: Gate,
    run_seed: int,
    store: Store,
    candidates: GateReport | None = None,
    device: str = "auto",
    budget: Budget | None = None,
) -> tuple[ArmScore, ...]:
    """Score the settings of one arm with a third of the learners' steps.

    Parameters
    ----------
    arms : sequence of Arm
        An arm with each of its settings.
    run_seed : int
        The run's seed; pilots have one.
    candidates : GateReport, optional
        What the gate kept of the run's own candidates, where a model was trained.
    budget : Budget, optional
        Train a model of tables for the pilot alone, with so much effort, on what each fold trains on.

    Returns
    -------
    tuple of ArmScore
        In the order of ``arms``. ``seconds`` is each one's share of what all of them took.
    """
    own = [] if budget is None else effort(budget)
    key = stage_key(
        "pilot",
        algorithm_version=ALGORITHM_VERSION,
        params=[
            *(list(arms), list(plan.classes), plan.learner_steps, plan.learner_width, plan.n_folds),
            *(model, classic, gate, PILOT_EFFORT, PILOT_FOLDS, own),
        ],
        inputs=[dataset.key, candidates.key if candidates else ""],
        seed=run_seed,
    )
    stage = Stage(store, "pilot", key)
    found = stage.outcome(_Pilots)
    if found is not None:
        return found.scores
    started = time.monotonic()
    wishes = Wishes(gate=gate, classic=classic, model=model, device=device)
    bench = open_bench(store, load_facts(dataset, store), plan, wishes)
    has_candidates = candidates is not None or budget is not None
    folds = bench.folds(seed=run_seed * 1000, has_candidates=has_candidates)
    folds = np.where(folds < PILOT_FOLDS, folds, -1)
    draw = None
    if budget is not None:
        draw = partial(_draw, bench, model=model, gate=gate, budget=budget)
    given = kept_synthetic(bench, store, candidates) if arms[0].has_model else None
    predicted = out_of_fold(
        bench,
        arms,
        folds,
        given=given,
        seed=run_seed * 1000,
        effort=PILOT_EFFORT,
        draw=draw,
    )
    scores = [
        score_predicted(bench.records, arm, proba, folds, seed=0)
        for arm, proba in zip(arms, predicted, strict=True)
    ]
    seconds = round((time.monotonic() - started) / len(scores), 3)
    timed = tuple(score.model_copy(update={"seconds": seconds}) for score in scores)
    return stage.finish(_Pilots(scores=timed)).scores


def _draw(
    bench: Workbench,
    rows: NDArray[np.int64],
    seed: int,
    *,
    model: ModelParams,
    gate: Gate,
    budget: Budget,
) -> Synthetic:
    """Train a model of tables on some records, and draw from it."""
    # Imported here: images, which have no such draws, do without what it loads.
    from prefect_augment.experiment.table_evaluator import draw_synthetic

    return draw_synthetic(
        cast("TableBench", bench), rows, model=model, gate=gate, seed=seed, budget=budget
    )


# --- who goes on ------------------------------------------------------------------------------


def best_settings(pilots: Sequence[ArmScore]) -> list[ArmScore]:
    """Return each arm's best setting, the best arm first.

    Of settings that tie with an arm's highest score the first one is taken: the best of eight on few records
    is the luckiest one. Two tie where they are nearer than :data:`~prefect_augment.evaluation.metrics.selection.TIE`,
    one record's worth of score, or one standard error of their difference over the folds.
    """
    of_arm: dict[str, list[ArmScore]] = {}
    for score in pilots:
        of_arm.setdefault(score.arm.name, []).append(score)
    best = []
    for scores in of_arm.values():
        top = max(scores, key=lambda s: s.score)
        best.append(next(s for s in scores if top.score - s.score <= _tie(top, s)))
    return sorted(best, key=lambda s: -s.score)


def _tie(top: ArmScore, other: ArmScore) -> float:
    """Difference up to which two settings of an arm count as equal."""
    if top is other:
        return 0.0
    width = max(TIE, 1.0 / max(1, top.n_val))
    if len(top.folds) < 2:
        return width
    gaps = np.subtract(top.folds, other.folds)
    return max(width, float(np.std(gaps, ddof=1) / np.sqrt(len(gaps))))


def go_on(pilots: Sequence[ArmScore], *, n_kept: int = N_KEPT) -> list[Arm]:
    """Return the settings that are scored in full: of the best arms the best, as is, the best with a model.

    Parameters
    ----------
    pilots : sequence of ArmScore
        All settings of all arms, in the arms' order.
    n_kept : int
        Arms beside those that go on whatever their scores.
    """
    ranked = best_settings(pilots)
    kept = [score.arm for score in ranked[:n_kept]]
    kept += [s.arm for s in ranked if s.arm.family == "as_is"]
    kept += [s.arm for s in ranked if s.arm.has_model][:1]
    order = [score.arm for score in pilots]
    return sorted(dict.fromkeys(kept), key=order.index)


def finalists(full: Sequence[ArmScore]) -> list[Arm]:
    """Return the arms that are scored with all seeds: as is and the best of the others."""
    ranked = sorted(full, key=lambda s: (s.arm.family != "as_is", -s.score))
    return [score.arm for score in ranked[: N_FINALISTS + 1]]


# --- what the report shows --------------------------------------------------------------------


def decided(facts: SearchFacts, choice: Choice) -> SearchFacts:
    """Return the search with what val has chosen: of the last rung, what goes to the hold-out is kept."""
    goes_on = {choice.chosen, choice.baseline, choice.as_is}
    last = facts.rungs[-1]
    trials = tuple(
        trial.model_copy(
            update={
                "kept": trial.arm in goes_on,
                "reason": "" if trial.arm in goes_on else choice.reason.rstrip("."),
            }
        )
        for trial in last.trials
    )
    rungs = (*facts.rungs[:-1], last.model_copy(update={"trials": trials}))
    return facts.model_copy(update={"rungs": rungs})


def rung(
    name: str,
    scores: Sequence[ArmScore],
    kept: Sequence[Arm],
    *,
    reasons: Mapping[str, str],
    effort: float = 1.0,
    timed: bool = True,
    model: str = "",
    note: str = "",
) -> Rung:
    """Write down a round of the search.

    Parameters
    ----------
    name : str
        Of the rung.
    scores : sequence of ArmScore
        One or more per setting: several seeds count together.
    kept : sequence of Arm
        Settings that went on.
    reasons : mapping of str to str
        Why a setting was dropped, by the arm's name where that is there; ``""`` for the others.
    timed : bool
        Whether seconds are shown: not where the same bytes are asked for.
    model : str
        Kind of the model of arms that have one.
    """
    grouped: dict[Arm, list[ArmScore]] = {}
    for score in scores:
        grouped.setdefault(score.arm, []).append(score)
    best = {score.arm.name: score.arm for score in best_settings(scores)}
    trials = []
    for arm, found in grouped.items():
        parts = [part for score in found for part in (score.folds or (score.score,))]
        reason = ""
        if arm not in kept:
            other = best[arm.name]
            reason = (
                reasons.get(arm.name, reasons.get("", ""))
                if other == arm
                else "another setting of this arm scored higher, or as high and stands before it"
            )
        trials.append(
            Trial(
                arm=arm,
                model=model if arm.has_model else "",
                score=math.fsum(score.score for score in found) / len(found),
                spread=float(np.std(parts, ddof=1)) if len(parts) > 1 else None,
                n_scores=len(parts),
                seconds=sum(score.seconds for score in found) if timed else 0.0,
                kept=arm in kept,
                reason=reason,
            )
        )
    return Rung(
        name=name,
        effort=effort,
        n_seeds=max((len(found) for found in grouped.values()), default=0),
        trials=tuple(trials),
        note=note,
    )
