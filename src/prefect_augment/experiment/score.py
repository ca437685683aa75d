"""Score: every arm under the same learners and steps, on val records only; then the choice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import N_FOLDS, Records
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.metrics.scores import predict_classes, score_predictions
from prefect_augment.evaluation.metrics.selection import choose_arm
from prefect_augment.evaluation.metrics.thresholds import cross_fitted_multipliers, tune_multipliers
from prefect_augment.experiment.evaluator import (
    Synthetic,
    Wishes,
    Workbench,
    groups_of,
    kept_synthetic,
)
from prefect_augment.experiment.open_evaluator import open_bench
from prefect_augment.params import Classic, Gate, ModelParams
from prefect_augment.plan.strategies import AMOUNTS, as_trained
from prefect_augment.schema.base import (
    Arm,
    ArmScore,
    BalancePlan,
    Choice,
    DatasetRef,
    GateReport,
    LearnerScore,
    Verdict,
)
from prefect_augment.shards.staged import load_facts
from prefect_augment.storage.staging import Stage, stage_key
from prefect_augment.storage.store import Store

__all__ = ["choose", "out_of_fold", "published_arm", "score", "score_predicted"]

ALGORITHM_VERSION = 3

Predictions = dict[str, NDArray[np.float64]]  # learner -> probabilities, shape (n, n_classes)


def score(
    dataset: DatasetRef,
    *,
    arm: Arm,
    plan: BalancePlan,
    model: ModelParams,
    classic: Classic,
    gate: Gate,
    seed: int,
    run_seed: int,
    store: Store,
    candidates: GateReport | None = None,
    device: str = "auto",
) -> ArmScore:
    """Train the learners on one arm and score them on val.

    Parameters
    ----------
    arm : Arm
        With amount 0 the amounts 1/2 and 1 are both tried and the better one is returned.
    seed : int
        0, 1, 2 …: another partition into folds, other copies, SMOTE records and synthetic records.
    run_seed : int
        The run's seed.
    candidates : GateReport, optional
        What the gate kept of the run's own candidates, where a model was trained. Arms of images
        train on them; a table's model is fitted anew within each fold.
    device : str
        Where networks compute: auto, cpu or cuda.

    Returns
    -------
    ArmScore
        Scores over the judged classes; its arm names the amount that was best.
    """
    key = stage_key(
        "score",
        algorithm_version=ALGORITHM_VERSION,
        params=[
            arm,
            list(plan.classes),
            plan.learner_steps,
            plan.learner_width,
            plan.n_folds,
            model,
            classic,
            gate,
        ],
        inputs=[dataset.key, candidates.key if candidates else ""],
        seed=run_seed * 1000 + seed,
    )
    stage = Stage(store, "score", key)
    found = stage.outcome(ArmScore)
    if found is not None:
        return found
    started = time.monotonic()
    wishes = Wishes(gate=gate, classic=classic, model=model, device=device)
    bench = open_bench(store, load_facts(dataset, store), plan, wishes)
    folds = bench.folds(seed=run_seed * 1000 + seed, has_candidates=candidates is not None)
    if seed and bench.is_fixed(arm) and folds.min() < 0:
        # One split and nothing random: another seed would do the same work again.
        same = score(
            dataset,
            arm=arm,
            plan=plan,
            model=model,
            classic=classic,
            gate=gate,
            seed=0,
            run_seed=run_seed,
            store=store,
            candidates=candidates,
            device=device,
        )
        return stage.finish(same.model_copy(update={"seed": seed}))
    amounts = AMOUNTS if arm.amount == 0 else (arm.amount,)
    arms = [arm.model_copy(update={"amount": amount}) for amount in amounts]
    given = kept_synthetic(bench, store, candidates) if arm.has_model else None
    predicted = out_of_fold(bench, arms, folds, given=given, seed=run_seed * 1000 + seed)
    scored = [
        score_predicted(bench.records, a, p, folds, seed=seed)
        for a, p in zip(arms, predicted, strict=True)
    ]
    best = max(scored, key=lambda s: s.score)
    return stage.finish(best.model_copy(update={"seconds": round(time.monotonic() - started, 3)}))


def choose(scores: Sequence[ArmScore], *, prefer_model: bool = False) -> Choice:
    """Fix, from scores on val alone, what the hold-out will compare.

    Parameters
    ----------
    scores : sequence of ArmScore
        All arms with one seed or more.
    prefer_model : bool
        Ask the hold-out about the best arm with synthetic records, whatever val says of it: it is
        the one that ``gate.on_no_gain = "publish"`` publishes.
    """
    found = choose_arm(scores)
    return Choice(
        chosen=found.to_verify("publish" if prefer_model else "recipe"),
        baseline=found.baseline,
        as_is=next(s.arm for s in scores if s.arm.family == "as_is"),
        model=found.model,
        scores=found.mean,
        reason=found.reason,
    )


def published_arm(choice: Choice, verdict: Verdict) -> Arm:
    """Return the arm whose recipe the verdict publishes."""
    return {arm.name: arm for arm in (choice.as_is, choice.baseline, choice.chosen)}[
        verdict.published
    ]


def out_of_fold(
    bench: Workbench,
    arms: Sequence[Arm],
    folds: NDArray[np.int64],
    *,
    given: Synthetic | None,
    seed: int,
    effort: float = 1.0,
    draw: Callable[[NDArray[np.int64], int], Synthetic] | None = None,
) -> list[Predictions]:
    """Return each arm's out-of-fold probabilities.

    The arms share each fold's synthetic records, and arms that differ in thresholds alone their learners.

    Parameters
    ----------
    bench : Workbench
        The records and their learners.
    arms : sequence of Arm
        All with synthetic records, or none.
    folds : ndarray of int64, shape (n_records,)
        Fold of each record that is scored; -1 for records that only train.
    given : Synthetic, optional
        The run's own candidates.
    seed : int
        Of the learners and of what is drawn.
    effort : float in (0, 1]
        Share of a learner's steps.
    draw : callable, optional
        Makes synthetic records from (rows, seed), instead of the workbench.
    """
    data = bench.records
    shape = (len(data.y), len(data.classes))
    predictions: list[Predictions] = [
        {name: np.full(shape, np.nan) for name in bench.learners} for _ in arms
    ]
    for fold in range(folds.max() + 1):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        synthetic = None
        if arms[0].has_model:
            inner = seed * 100 + fold
            synthetic = (
                draw(train, inner) if draw else bench.synthetic(train, given=given, seed=inner)
            )
        done: dict[Arm, dict[str, NDArray[np.float64]]] = {}
        for arm, out in zip(arms, predictions, strict=True):
            plain = as_trained(arm)
            if plain not in done:
                done[plain] = dict(
                    bench.predictions(
                        arm, train, data.X[test], synthetic=synthetic, seed=seed, effort=effort
                    )
                )
            for name, proba in done[plain].items():
                out[name][test] = proba
    return predictions


def score_predicted(
    data: Records, arm: Arm, predictions: Predictions, folds: NDArray[np.int64], *, seed: int
) -> ArmScore:
    """Score one arm's predictions over the judged classes, on all folds together and on each."""
    rows = np.flatnonzero((folds >= 0) & data.judged[data.y])
    y = data.y[rows]
    learners: dict[str, LearnerScore] = {}
    thresholds: dict[str, dict[str, float]] = {}
    of_folds: list[list[float]] = []
    for name, proba in predictions.items():
        multipliers = None
        if arm.tune_threshold:
            inner = stratified_folds(
                y, groups=groups_of(data, rows), n_folds=N_FOLDS, seed=seed, keys=data.keys[rows]
            )
            multipliers = cross_fitted_multipliers(y, proba[rows], inner, judged=data.judged)
            tuned = tune_multipliers(y, proba[rows], judged=data.judged)
            thresholds[name] = {c: float(m) for c, m in zip(data.classes, tuned, strict=True)}
        learners[name] = score_predictions(
            y, proba[rows], classes=data.classes, judged=data.judged, multipliers=multipliers
        )
        right = predict_classes(proba[rows], multipliers) == y
        of_folds.append(_recalls(y, right, folds[rows]))
    return ArmScore(
        arm=arm,
        seed=seed,
        score=float(np.mean([s.balanced_accuracy for s in learners.values()])),
        learners=learners,
        thresholds=thresholds,
        n_train=int(np.sum(folds != 0)),
        n_val=len(rows),
        folds=tuple(float(x) for x in np.mean(of_folds, axis=0)),
    )


def _recalls(
    y: NDArray[np.int64], right: NDArray[np.bool_], folds: NDArray[np.int64]
) -> list[float]:
    """Return the mean recall on each fold over the classes that occur there; nothing of a single fold."""
    numbers = np.unique(folds)
    if len(numbers) < 2:
        return []
    found = []
    for fold in numbers:
        here = folds == fold
        n = np.bincount(y[here])
        found.append(float(np.mean(np.bincount(y[here], right[here])[n > 0] / n[n > 0])))
    return found
