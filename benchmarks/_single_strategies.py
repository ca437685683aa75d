"""Strategies one by one, each in full: the sets, their probabilities on the hold-out, and who is right."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.evaluation.metrics.predictions import predict_classes
from prefect_augment.experiment.evaluator import Evaluator, Synthetic
from prefect_augment.experiment.score import score
from prefect_augment.params import Source
from prefect_augment.plan.strategies import AMOUNTS, as_trained, candidates_wanted
from prefect_augment.schema import Experiment, FilterResult, Strategy, StrategyScore
from prefect_augment.storage import Store
from prefect_augment.tasks.compare import filter_candidates
from prefect_augment.tasks.sample import sample_classes
from prefect_augment.tasks.train import train_model

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
HOLDOUT = 0.3  # of a table

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Set:
    """One set: its label, its files below DATA; a table has no test file."""

    label: str
    source: str
    test: str = ""

    def read_as(self, seed: int) -> Source:
        """Return how it is read under a seed."""
        held: dict[str, Any] = (
            {"holdout_uri": str(DATA / self.test)} if self.test else {"holdout_fraction": HOLDOUT}
        )
        return Source(uri=str(DATA / self.source), label=self.label, **held)


SETS = {
    "ecoli": Set("site", "tabular/ecoli.parquet"),
    "german_credit": Set("credit_risk", "tabular/german_credit.parquet"),
    "hypothyroid": Set("diagnosis", "tabular/hypothyroid.parquet"),
    "predictive_maintenance": Set("machine_failure", "tabular/predictive_maintenance.parquet"),
    "mammography": Set("calcification", "tabular/mammography.parquet"),
    "adult_income": Set("income", "tabular/adult_income.parquet"),
    "bccd_cells": Set("label", "images/bccd_cells_train.parquet", "images/bccd_cells_test.parquet"),
    "fashion_lt": Set("label", "images/fashion_lt.parquet", "images/fashion_test.parquet"),
    "pneumonia": Set("label", "images/pneumonia_train.parquet", "images/pneumonia_test.parquet"),
    "cifar10lt": Set("label", "images/cifar10lt.parquet", "images/cifar10_test.parquet"),
    "magnetic_tile": Set(
        "label", "images/magnetic_tile_train.parquet", "images/magnetic_tile_test.parquet"
    ),
}


def require_data() -> None:
    """End the benchmark with a line where the datasets are not there."""
    if not DATA.is_dir():
        raise SystemExit(
            f"no data at {DATA}; this benchmark reads the datasets that lie beside the repository."
        )


def score_in_full(
    experiment: Experiment, strategy: Strategy, store: Store, *, tried: Sequence[Strategy] = ()
) -> StrategyScore:
    """Score a strategy on validation records with all steps and folds, at the best setting ``tried``, or amount."""
    amounts = AMOUNTS if strategy.amount == 0 else (strategy.amount,)
    # By amount, so that what a run has scored in full is found again.
    tried = tried or [strategy.model_copy(update={"amount": a}) for a in amounts]
    return max((score(experiment, one, 0, store) for one in tried), key=lambda found: found.score)


def right_on_holdout(
    evaluator: Evaluator,
    found: Mapping[str, tuple[Strategy, dict[str, dict[str, float]]]],
    held: Any,
    given: Synthetic | None,
    *,
    n_seeds: int,
    seed: int,
) -> tuple[dict[str, Float], dict[str, float]]:
    """Train strategies (with their thresholds, by name) on training and validation, and predict the hold-out.

    Returns by name the share of estimators that are right, by seed and record, and the CPU seconds. What differs in
    thresholds alone is trained once, and its seconds are the same.
    """
    proba: dict[Strategy, list[dict[str, Float]]] = {}
    seconds: dict[Strategy, float] = {}
    right = {}
    for name, (strategy, thresholds) in found.items():
        trained = as_trained(strategy)
        if trained not in proba:
            started = time.process_time()
            proba[trained] = _predict(evaluator, trained, held.X, given, n_seeds, run_seed=seed)
            seconds[trained] = time.process_time() - started
        right[name] = _hits(proba[trained], held.y, thresholds, evaluator.records.classes)
    return right, {name: seconds[as_trained(strategy)] for name, (strategy, _) in found.items()}


def draw_candidates(experiment: Experiment) -> FilterResult | None:
    """Train the model of the plan, draw what it wants and filter it; None where it wants nothing."""
    plan, params = experiment.plan, experiment.params
    if not plan.n_synthetic:
        return None
    model = train_model.fn(experiment)
    wanted = candidates_wanted(plan, params.quality, model.strata)
    drawn = sample_classes.fn(experiment.dataset, model, wanted, seed=params.seed)
    return filter_candidates.fn(experiment, drawn)


def _predict(
    evaluator: Evaluator,
    strategy: Strategy,
    X: Any,
    given: Synthetic | None,
    n_seeds: int,
    *,
    run_seed: int,
) -> list[dict[str, Float]]:
    """Train a strategy on training and validation with each seed; return each estimator's probabilities."""
    rows, found = np.arange(len(evaluator.records.y)), []
    for i in range(n_seeds):
        seed = run_seed * 1000 + i
        synthetic = given if strategy.has_model else None
        if strategy.has_model and i:
            synthetic = evaluator.synthetic(rows, candidates=given, seed=seed)
        found.append(dict(evaluator.predictions(strategy, rows, X, synthetic=synthetic, seed=seed)))
    return found


def _hits(
    proba: Sequence[dict[str, Float]],
    y: NDArray[np.int64],
    thresholds: dict[str, dict[str, float]],
    classes: Sequence[str],
) -> Float:
    """Return, by seed and record, the share of estimators that are right."""
    found = []
    for of_seed in proba:
        right = []
        for estimator, p in of_seed.items():
            tuned = thresholds.get(estimator, {})
            factors = np.array([tuned.get(c, 1.0) for c in classes])
            right.append(predict_classes(p, factors) == y)
        found.append(np.mean(right, axis=0))
    return np.stack(found)
