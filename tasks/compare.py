"""Judge: which candidates pass, which strategy is best on validation records, and what the hold-out says of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager

from prefect import task

from prefect_augment.experiment.confirmation import verify
from prefect_augment.experiment.filter import judge
from prefect_augment.experiment.privacy import measure
from prefect_augment.experiment.score import choose, score
from prefect_augment.experiment.search import pilot
from prefect_augment.params import AutoModel, Budget, Classic, Gate, ModelParams
from prefect_augment.schema.base import (
    BalancePlan,
    Choice,
    DatasetRef,
    FilterResult,
    Strategy,
    StrategyScore,
    Verdict,
)
from prefect_augment.schema.privacy import Privacy
from prefect_augment.tasks._limits import gpu_slot
from prefect_augment.tasks._runtime import (
    TASK_OPTIONS,
    class_list,
    named,
    open_block_store,
    progress,
    run_log,
)

__all__ = [
    "choose_strategy",
    "confirm_choice",
    "filter_candidates",
    "measure_privacy",
    "pilot_strategy",
    "score_strategy",
]

logger = logging.getLogger(__name__)


@task(
    name="filter_candidates",
    task_run_name=named(lambda p: f"judge {class_list(p['candidates'].class_counts)}"),
    **TASK_OPTIONS,
)
def filter_candidates(
    dataset: DatasetRef,
    candidates: DatasetRef,
    plan: BalancePlan,
    *,
    gate: Gate | None = None,
    seed: int = 0,
    device: str = "auto",
) -> FilterResult:
    """Drop candidates that copy a record, look like another class or leave the domain.

    Parameters
    ----------
    dataset : DatasetRef
        The real records; training and validation are read, the hold-out is not.
    candidates : DatasetRef
        What was sampled.
    plan : BalancePlan
        How many records each class may get.
    gate : Gate, optional
        Thresholds and purpose.
    seed : int
        Of the folds between the filter's and the gate's classifier.
    device : str
        Where networks compute: auto, cpu or cuda.

    Returns
    -------
    FilterResult
        Per class: candidates, passed, kept, and the reasons of those dropped.
    """
    with run_log(), progress("judge candidates", dataset.root), _gpu(dataset, device):
        return judge(
            dataset,
            candidates,
            plan=plan,
            gate=gate or Gate(),
            seed=seed,
            store=open_block_store(dataset.root, dataset.block),
            device=device,
        )


@task(name="measure_privacy", task_run_name="measure privacy", **TASK_OPTIONS)
def measure_privacy(
    dataset: DatasetRef, candidates: DatasetRef, compared: FilterResult, plan: BalancePlan
) -> Privacy:
    """Say what synthetic records give away about the records that they were made from.

    Reports and cards that are written later of the same records have it, too.

    Parameters
    ----------
    dataset : DatasetRef
        The real records; training and validation are read, the hold-out is not.
    candidates : DatasetRef
        What a model drew that was trained on fit.
    compared : FilterResult
        What was kept of it.
    plan : BalancePlan
        Names the classes.

    Returns
    -------
    Privacy
        A membership-inference attack, distances to the closest record, exposure of isolated ones.
    """
    with run_log():
        found = measure(
            dataset,
            candidates,
            compared,
            plan=plan,
            store=open_block_store(dataset.root, dataset.block),
        )
        logger.info("Privacy: %s", found.sentence)
        return found


@task(
    name="score_strategy",
    task_run_name=named(lambda p: f"score {p['strategy'].name}, seed {p['seed']}"),
    **TASK_OPTIONS,
)
def score_strategy(
    strategy: Strategy,
    seed: int,
    *,
    dataset: DatasetRef,
    plan: BalancePlan,
    model: ModelParams | None = None,
    classic: Classic | None = None,
    gate: Gate | None = None,
    run_seed: int = 0,
    candidates: FilterResult | None = None,
    device: str = "auto",
) -> StrategyScore:
    """Train the estimators on one strategy and score them on validation records.

    Parameters
    ----------
    strategy : Strategy
        The way of treating the training part.
    seed : int
        0, 1, 2 …: another partition and other random records.
    dataset, plan, model, classic, gate
        As for the other tasks.
    run_seed : int
        The run's seed.
    candidates : FilterResult, optional
        What the gate kept of the run's own candidates; strategies of images train on them.
    device : str
        Where networks compute: auto, cpu or cuda.

    Returns
    -------
    StrategyScore
        Scores over the judged classes.
    """
    with run_log(), _gpu(dataset, device):
        return score(
            dataset,
            strategy=strategy,
            plan=plan,
            model=model or AutoModel(),
            classic=classic or Classic(),
            gate=gate or Gate(),
            seed=seed,
            run_seed=run_seed,
            store=open_block_store(dataset.root, dataset.block),
            candidates=candidates,
            device=device,
        )


@task(
    name="pilot_strategy",
    task_run_name=named(
        lambda p: f"pilots of {p['strategies'][0].name}, {len(p['strategies'])} settings"
    ),
    **TASK_OPTIONS,
)
def pilot_strategy(
    strategies: Sequence[Strategy],
    *,
    dataset: DatasetRef,
    plan: BalancePlan,
    model: ModelParams | None = None,
    classic: Classic | None = None,
    gate: Gate | None = None,
    run_seed: int = 0,
    candidates: FilterResult | None = None,
    device: str = "auto",
    budget: Budget | None = None,
) -> tuple[StrategyScore, ...]:
    """Score each setting of one strategy on validation records, with a part of the estimators' steps.

    Parameters
    ----------
    strategies : sequence of Strategy
        A strategy with each of its settings.
    budget : Budget, optional
        Train a model of tables for these pilots alone, with so much effort.
    dataset, plan, model, classic, gate, run_seed, candidates, device
        As for :func:`score_strategy`.

    Returns
    -------
    tuple of StrategyScore
        In the order of ``strategies``.
    """
    with run_log(), _gpu(dataset, device):
        return pilot(
            dataset,
            strategies=strategies,
            plan=plan,
            model=model or AutoModel(),
            classic=classic or Classic(),
            gate=gate or Gate(),
            run_seed=run_seed,
            store=open_block_store(dataset.root, dataset.block),
            candidates=candidates,
            device=device,
            budget=budget,
        )


@task(
    name="choose_strategy",
    task_run_name=named(
        lambda p: f"choose of {len({s.strategy.name for s in p['scores']})} strategies"
    ),
    **TASK_OPTIONS,
)
def choose_strategy(scores: Sequence[StrategyScore], *, prefer_model: bool = False) -> Choice:
    """Choose the best strategy and the best baseline by their scores on validation records.

    Parameters
    ----------
    scores : sequence of StrategyScore
        All strategies with one seed or more.
    prefer_model : bool
        Compare the best strategy with synthetic records even where another is better.

    Returns
    -------
    Choice
        What the hold-out will compare.
    """
    with run_log():
        return choose(scores, prefer_model=prefer_model)


@task(
    name="confirm_choice",
    task_run_name=named(
        lambda p: f"verify {p['choice'].chosen.name} against {p['choice'].baseline.name}"
    ),
    **TASK_OPTIONS,
)
def confirm_choice(
    dataset: DatasetRef,
    choice: Choice,
    plan: BalancePlan,
    *,
    scores: Sequence[StrategyScore],
    model: ModelParams | None = None,
    candidates: FilterResult | None = None,
    classic: Classic | None = None,
    gate: Gate | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int = 1,
) -> Verdict:
    """Compare the chosen strategy, the best baseline and as is on the hold-out: its one reading.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records with a hold-out.
    choice : Choice
        Fixed beforehand on validation records.
    plan : BalancePlan
        Amounts per class.
    scores : sequence of StrategyScore
        For the thresholds that were tuned on validation records.
    model, candidates, classic, gate
        What the strategies are made of.
    seed : int
        The run's seed.
    device : str
        Where networks compute: auto, cpu or cuda.
    workers : int
        Strategies that are trained at the same time.

    Returns
    -------
    Verdict
        Accept, reject or inconclusive, with intervals and reasons.
    """
    with run_log(), progress("verify", dataset.root), _gpu(dataset, device):
        return verify(
            dataset,
            choice=choice,
            plan=plan,
            scores=scores,
            model=model or AutoModel(),
            candidates=candidates,
            classic=classic or Classic(),
            gate=gate or Gate(),
            run_seed=seed,
            store=open_block_store(dataset.root, dataset.block),
            device=device,
            workers=workers,
        )


def _gpu(dataset: DatasetRef, device: str) -> AbstractContextManager[None]:
    """Hold a GPU where the judge is a network, which it is for images only."""
    return gpu_slot(device, network=dataset.modality == "image")
