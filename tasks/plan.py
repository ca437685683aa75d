"""Plan: how many records each class has, should have, and where they come from."""

from __future__ import annotations

from prefect import task

from prefect_augment.params import AutoModel, Balance, Budget, Gate, ModelParams
from prefect_augment.plan.plan import plan
from prefect_augment.report.report import plan_table
from prefect_augment.schema.base import BalancePlan, DatasetRef
from prefect_augment.tasks._runtime import (
    TASK_OPTIONS,
    artifact_key,
    class_list,
    dataset_slug,
    named,
    open_block_store,
    run_log,
    table_artifact,
)

__all__ = ["plan_balance"]


@task(
    name="plan_balance",
    task_run_name=named(lambda p: f"plan {class_list(p['dataset'].class_counts)}"),
    **TASK_OPTIONS,
)
def plan_balance(
    dataset: DatasetRef,
    balance: Balance | None = None,
    *,
    model: ModelParams | None = None,
    gate: Gate | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    searched: bool = False,
) -> BalancePlan:
    """Work out each class's target, and how much of the way synthetic and classic records go.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records.
    balance : Balance, optional
        Targets and caps; the median of the class counts by default.
    model : ModelParams, optional
        The generative model; where it is ``none`` no synthetic records are planned.
    gate : Gate, optional
        How the judge will work, for the estimate of time.
    budget : Budget, optional
        What the run may take: bounds the classifier that judges images, and decides whether a
        generator of images is worth it where ``model`` is auto.
    seed : int
        The run's seed.
    searched : bool
        The number of synthetic records is searched on validation records: where ``model`` is auto and no cap is
        given, up to 5 per real one are planned.

    Returns
    -------
    BalancePlan
        One entry per class (per class and cell with ``balance.by``), shown as a table artifact.

    Raises
    ------
    ParameterError
        If a target is below what is there, or a class or column is not known.
    """
    with run_log():
        result = plan(
            dataset,
            balance=balance or Balance(),
            model=model or AutoModel(),
            gate=gate or Gate(),
            budget=budget,
            seed=seed,
            searched=searched,
            store=open_block_store(dataset.root, dataset.block),
        )
        key = artifact_key(dataset_slug(dataset.root), "plan")
        table_artifact(key, plan_table(result), f"Plan: {result.rule}")
        return result
