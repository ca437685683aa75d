"""Score: every arm under the same learners and steps, on val records only; then the choice."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from prefect_augment.datatypes import (
    Arm,
    ArmScore,
    BalancePlan,
    Choice,
    DatasetFacts,
    DatasetRef,
    LearnerScore,
    Verdict,
)
from prefect_augment.evaluation.compare import choose_arm
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.learners import fit_learner
from prefect_augment.evaluation.metrics import score_predictions
from prefect_augment.evaluation.thresholds import cross_fitted_multipliers, tune_multipliers
from prefect_augment.params import Classic, Gate, ModelParams
from prefect_augment.reading.staged import load_facts
from prefect_augment.stages.arms import AMOUNTS, build_training_set
from prefect_augment.stages.matrix import Matrix, training_matrix
from prefect_augment.stages.synthetic import draw_synthetic
from prefect_augment.staging import Stage, stage_key
from prefect_augment.storage import Store

__all__ = [
    "FIXED",
    "N_FOLDS",
    "SMALL_VAL",
    "choose",
    "fit_and_predict",
    "load_training",
    "published_arm",
    "score",
]

ALGORITHM_VERSION = 1
N_FOLDS = 5
# Below this many val records in the rarest judged class, val alone decides by luck: its standard
# error of recall is then above 3 points, so the arms are compared by repeated folds over fit + val.
SMALL_VAL = 200

# Families that add no record: they give every seed the same training set.
FIXED = ("as_is", "threshold", "weights", "given")

Predictions = dict[str, NDArray[np.float64]]  # learner -> probabilities, shape (n, n_classes)


def load_training(
    dataset: DatasetRef, plan: BalancePlan, store: Store
) -> tuple[DatasetFacts, Matrix]:
    """Return the dataset's facts and its fit and val records in matrix form."""
    facts = load_facts(dataset, store)
    return facts, training_matrix(store, facts, plan)


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

    Returns
    -------
    ArmScore
        Scores over the judged classes; its arm names the amount that was best.
    """
    key = stage_key(
        "score",
        algorithm_version=ALGORITHM_VERSION,
        params=[arm, list(plan.classes), model, classic, gate],
        inputs=[dataset.key],
        seed=run_seed * 1000 + seed,
    )
    stage = Stage(store, "score", key)
    found = stage.outcome(ArmScore)
    if found is not None:
        return found
    started = time.monotonic()
    _, data = load_training(dataset, plan, store)
    folds = _folds(data, seed=run_seed * 1000 + seed)
    if seed and arm.family in FIXED and folds.min() < 0:
        # One split and no record drawn: another seed would do the same work again.
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
        )
        return stage.finish(same.model_copy(update={"seed": seed}))
    amounts = AMOUNTS if arm.amount == 0 else (arm.amount,)
    arms = [arm.model_copy(update={"amount": amount}) for amount in amounts]
    predicted = _predict_all(
        data, arms, folds, plan=plan, model=model, classic=classic, gate=gate, seed=seed
    )
    scored = [
        _summarise(data, a, p, folds, seed=seed) for a, p in zip(arms, predicted, strict=True)
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


def _folds(data: Matrix, *, seed: int) -> NDArray[np.int64]:
    """Return the fold of each record whose predictions are scored; -1 for records that only train."""
    rarest = min(
        (int(np.sum(data.is_val & (data.y == k))) for k in np.flatnonzero(data.judged)), default=0
    )
    if rarest >= SMALL_VAL:
        return np.where(data.is_val, 0, -1)
    return stratified_folds(
        data.strata, groups=data.groups, n_folds=N_FOLDS, seed=seed, keys=data.keys
    )


def _predict_all(
    data: Matrix,
    arms: Sequence[Arm],
    folds: NDArray[np.int64],
    *,
    plan: BalancePlan,
    model: ModelParams,
    classic: Classic,
    gate: Gate,
    seed: int,
) -> list[Predictions]:
    """Return each arm's out-of-fold probabilities; the arms share each fold's synthetic records."""
    shape = (len(data.y), len(data.classes))
    predictions: list[Predictions] = [
        {name: np.full(shape, np.nan) for name in gate.learners} for _ in arms
    ]
    for fold in range(folds.max() + 1):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        synthetic = None
        if arms[0].has_model:
            synthetic = draw_synthetic(
                data, train, plan=plan, model=model, gate=gate, seed=seed * 100 + fold
            )
        for arm, out in zip(arms, predictions, strict=True):
            for name, proba in fit_and_predict(
                arm,
                data,
                train,
                data.X[test],
                plan=plan,
                classic=classic,
                gate=gate,
                synthetic=synthetic,
                seed=seed,
            ):
                out[name][test] = proba
    return predictions


def fit_and_predict(
    arm: Arm,
    data: Matrix,
    train: NDArray[np.int64],
    X_test: NDArray[np.float64],
    *,
    plan: BalancePlan,
    classic: Classic,
    gate: Gate,
    synthetic: tuple[NDArray[np.float64], NDArray[np.int64]] | None,
    seed: int,
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Fit each learner on the arm's training set; yield its name and its probabilities for ``X_test``."""
    training = build_training_set(
        arm,
        data.X[train],
        data.strata[train],
        names=data.strata_names,
        plan=plan,
        synthetic=synthetic,
        is_category=data.is_category,
        n_levels=data.n_levels,
        classic=classic,
        seed=seed,
    )
    labels = data.class_of_stratum(plan)[training.strata]
    for name in gate.learners:
        learner = fit_learner(
            name,
            training.X,
            labels,
            weights=training.weights,
            is_category=data.is_category,
            n_levels=data.n_levels,
            n_classes=len(data.classes),
            seed=seed,
        )
        yield name, learner.predict_proba(X_test)


def _summarise(
    data: Matrix, arm: Arm, predictions: Predictions, folds: NDArray[np.int64], *, seed: int
) -> ArmScore:
    """Score one arm's predictions over the judged classes."""
    rows = np.flatnonzero((folds >= 0) & data.judged[data.y])
    y = data.y[rows]
    learners: dict[str, LearnerScore] = {}
    thresholds: dict[str, dict[str, float]] = {}
    for name, proba in predictions.items():
        multipliers = None
        if arm.tune_threshold:
            inner = stratified_folds(
                y, groups=_of(data.groups, rows), n_folds=N_FOLDS, seed=seed, keys=data.keys[rows]
            )
            multipliers = cross_fitted_multipliers(y, proba[rows], inner, judged=data.judged)
            tuned = tune_multipliers(y, proba[rows], judged=data.judged)
            thresholds[name] = {c: float(m) for c, m in zip(data.classes, tuned, strict=True)}
        learners[name] = score_predictions(
            y, proba[rows], classes=data.classes, judged=data.judged, multipliers=multipliers
        )
    return ArmScore(
        arm=arm,
        seed=seed,
        score=float(np.mean([s.balanced_accuracy for s in learners.values()])),
        learners=learners,
        thresholds=thresholds,
        n_train=int(np.sum(folds != 0)),
        n_val=len(rows),
    )


def _of(groups: NDArray[np.int64] | None, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
    return None if groups is None else groups[rows]
